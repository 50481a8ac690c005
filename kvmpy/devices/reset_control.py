"""Port 0xCF9: the reset control register of PCI chipsets (Intel ICH9 datasheet, 13.7.5, RST_CNT)."""

from __future__ import annotations

from kvmpy.devices.base import Device, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RESET_CONTROL_OFFSET = 1
SYSTEM_RESET, RESET_CPU, FULL_RESET = 1 << 1, 1 << 2, 1 << 3


class ResetControl(Device):
    """Sits at ports 0xCF8 to 0xCFB, where a wide access is PCI configuration and only a byte at 0xCF9 is this register.

    A change of RST_CPU from 0 to 1 calls `reset`. There is no PCI bus: its address register reads as all ones.
    """

    name = "reset control"

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """Return the register, or all ones beside it."""
        return self._value if (offset, size) == (RESET_CONTROL_OFFSET, 1) else -1

    def write(self, offset: int, size: int, value: int) -> None:
        """Take the new value; reset on the rising edge of RST_CPU."""
        if (offset, size) != (RESET_CONTROL_OFFSET, 1):
            return
        rising = value & ~self._value & RESET_CPU
        self._value = value & (SYSTEM_RESET | RESET_CPU | FULL_RESET)
        if rising:
            self._reset()

    def state(self) -> dict[str, object]:
        """Return the register."""
        return {"value": self._value}

    def restore(self, state: dict[str, object]) -> None:
        """Take the register back, without a reset."""
        self._value = whole(self, state, "value")
