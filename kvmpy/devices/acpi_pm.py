"""ACPI's fixed power management registers at 0x600: what a guest needs to switch the machine off (ACPI 6.5, 4.8.3)."""

from __future__ import annotations

from kvmpy.devices.base import Field, Register, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONTROL = Register(
    4,
    "pm1_control",
    reset=0x0001,  # SCI_EN: the machine is in ACPI mode from the start
    size=2,
    # ACPI 6.5, table 4.16; SLP_EN reads as 0.
    fields=(
        Field("sci_en", 0),
        Field("bm_rld", 1),
        Field("gbl_rls", 2),
        Field("slp_typ", 10, 3),
        Field("slp_en", 13),
    ),
)


class AcpiPm(RegisterDevice):
    """PM1 status, enable and control. Setting SLP_EN calls `power_off`: soft-off is the only sleep state there is."""

    name = "ACPI power management"
    REGISTERS = (Register(0, "pm1_status", size=2, writable=0), Register(2, "pm1_enable", size=2), CONTROL)

    def __init__(self, power_off: Callable[[], None]) -> None:
        super().__init__()
        self._power_off = power_off

    def write_pm1_control(self, value: int) -> None:
        """Keep SLP_TYP; go to sleep on SLP_EN."""
        self.registers["pm1_control"] = CONTROL.put(value, "slp_en", 0)
        if CONTROL.get(value, "slp_en"):
            self._power_off()
