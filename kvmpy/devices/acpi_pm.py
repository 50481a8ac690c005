"""ACPI's fixed power management registers at 0x600: what a guest needs to switch the machine off (ACPI 6.5, 4.8.3)."""

from __future__ import annotations

from kvmpy.devices.base import Register, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SLEEP_ENABLE = 1 << 13 - 8  # SLP_EN, bit 13 of PM1_CNT; reads as 0 (ACPI 6.5, table 4.16)


class AcpiPm(RegisterDevice):
    """PM1 status, enable and control. Setting SLP_EN calls `power_off`: soft-off is the only sleep state there is."""

    name = "ACPI power management"
    REGISTERS = (
        Register(0, "pm1_status_low", writable=0),
        Register(1, "pm1_status_high", writable=0),
        Register(2, "pm1_enable_low"),
        Register(3, "pm1_enable_high"),
        Register(4, "pm1_control_low", 0x01),  # SCI_EN: the machine is in ACPI mode from the start
        Register(5, "pm1_control_high"),
    )

    def __init__(self, power_off: Callable[[], None]) -> None:
        super().__init__()
        self._power_off = power_off

    def write_pm1_control_high(self, value: int) -> None:
        """Keep SLP_TYP; go to sleep on SLP_EN."""
        self.registers["pm1_control_high"] = value & ~SLEEP_ENABLE
        if value & SLEEP_ENABLE:
            self._power_off()
