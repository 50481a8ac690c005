"""Port 0xE9: the debug console of Bochs and QEMU. A byte written is a byte printed."""

from __future__ import annotations

from kvmpy.devices.base import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PRESENT = 0xE9  # reading the port gives its own number: so a guest finds out that somebody listens


class DebugConsole(Device):
    """Gives every byte written to `output`."""

    name = "debug console"

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def read(self, offset: int, size: int) -> int:
        """Return 0xE9 in the lowest byte, as QEMU's isa-debugcon does."""
        return PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        """Print the lowest byte."""
        self._output(bytes((value & 0xFF,)))

    def write_many(self, offset: int, size: int, data: bytes) -> None:
        """Print the lowest byte of each item, all at once."""
        self._output(data[::size])
