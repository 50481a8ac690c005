"""What every device is: a name, registers at offsets, a state that can be saved, and interrupt lines."""

from __future__ import annotations

from abc import ABC, abstractmethod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Device(ABC):
    """Something the guest reaches by ports or MMIO.

    Offsets count from where the bus placed the device; `size` is the access's width in bytes (1, 2, 4, 8). The bus holds
    the machine's lock during every call, so a device needs none of its own.
    """

    name: str

    @abstractmethod
    def read(self, offset: int, size: int) -> int:
        """Answer a guest's read; bits beyond `size` bytes are cut off by the bus."""

    @abstractmethod
    def write(self, offset: int, size: int, value: int) -> None:
        """Take a guest's write of `value`, an unsigned integer of `size` bytes."""

    def write_many(self, offset: int, size: int, data: bytes) -> None:
        """Take the items of a string instruction, or of writes that were collected on the way, in order."""
        for i in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[i : i + size], "little"))

    def state(self) -> dict[str, object]:
        """Return what must be kept to go on later, as plain data."""
        return {}

    def restore(self, state: dict[str, object]) -> None:
        """Become what `state()` described."""

    def close(self) -> None:
        """Release what the device holds; harmless when repeated."""


class IrqLine:
    """One input pin of an interrupt controller, whoever implements the controller.

    `set_level(gsi, level)` reaches it: KVM's in-kernel chips or a Python PIC/IOAPIC. The last level is remembered, so that
    a device may state its level as often as it likes and only changes travel.
    """

    __slots__ = ("_set_level", "gsi", "level")

    def __init__(self, gsi: int, set_level: Callable[[int, int], None]) -> None:
        self.gsi = gsi
        self.level = 0
        self._set_level = set_level

    def set(self, level: bool) -> None:
        """Drive the line high or low (level-triggered use)."""
        if level != self.level:
            self.level = int(level)
            self._set_level(self.gsi, self.level)

    def pulse(self) -> None:
        """Raise and lower the line: one edge."""
        self.set(True)
        self.set(False)


def unconnected(gsi: int = 0) -> IrqLine:
    """Return a line that leads nowhere, for a machine without interrupts or a device under test."""
    return IrqLine(gsi, lambda _gsi, _level: None)
