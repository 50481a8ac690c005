"""Port 0xF4: QEMU's isa-debug-exit. What the guest writes ends the machine and becomes its exit code.

QEMU itself exits with twice the value plus one; kvmpy gives the value as it is.
"""

from __future__ import annotations

from kvmpy.devices.base import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class DebugExit(Device):
    """Calls `exit` with the value written."""

    name = "debug exit"

    def __init__(self, exit: Callable[[int], None]) -> None:
        self._exit = exit

    def read(self, offset: int, size: int) -> int:
        """Return 0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine."""
        self._exit(value)
