"""What every device is: a name, registers at offsets, a state that can be saved, and interrupt lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

from kvmpy.errors import ConfigError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Device(ABC):
    """Something the guest reaches by ports or MMIO.

    Offsets count from where the bus placed the device; `size` is the access's width in bytes (1, 2, 4, 8). The bus
    holds the machine's lock during every call, so a device needs none of its own.
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


@record
class Register:
    """A byte-wide register: offset, the data sheet's name, its value after reset, the bits that a write changes."""

    offset: int
    name: str
    reset: int = 0
    writable: int = 0xFF


class RegisterDevice(Device):
    """A device of byte-wide registers, declared in `REGISTERS`. Wider accesses reach the neighbours, as on ISA.

    A register is storage unless the class has methods `read_NAME()` and `write_NAME(value)`. An offset without a
    register reads as all ones and ignores writes.
    """

    REGISTERS: tuple[Register, ...] = ()

    def __init__(self) -> None:
        self.registers = {register.name: register.reset for register in self.REGISTERS}
        self._readers = {r.offset: getattr(self, f"read_{r.name}", partial(self._load, r)) for r in self.REGISTERS}
        self._writers = {r.offset: getattr(self, f"write_{r.name}", partial(self._store, r)) for r in self.REGISTERS}

    def _load(self, register: Register) -> int:
        return self.registers[register.name]

    def _store(self, register: Register, value: int) -> None:
        kept = self.registers[register.name] & ~register.writable
        self.registers[register.name] = kept | value & register.writable

    def read(self, offset: int, size: int) -> int:
        """Answer from the registers at `offset` and behind it."""
        value = 0
        for i in range(size):
            reader = self._readers.get(offset + i)
            value |= (reader() & 0xFF if reader else 0xFF) << 8 * i
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the registers at `offset` and behind it, lowest first."""
        for i in range(size):
            writer = self._writers.get(offset + i)
            if writer:
                writer(value >> 8 * i & 0xFF)

    def state(self) -> dict[str, object]:
        """Return every register by name."""
        return dict(self.registers)

    def restore(self, state: dict[str, object]) -> None:
        """Take every register back; ConfigError when one is missing or no byte."""
        self.registers = {name: whole(self, state, name) for name in self.registers}


def whole(device: Device, state: dict[str, object], name: str, limit: int = 0xFF) -> int:
    """Return the number `name` of a saved state; ConfigError unless it is an integer from 0 to `limit`."""
    value = state.get(name)
    if not isinstance(value, int) or not 0 <= value <= limit:
        raise ConfigError(f"state of {device.name}: {name!r} cannot be {value!r}; it was not saved by this device")
    return int(value)


class IrqLine:
    """One input pin of an interrupt controller, whoever implements the controller.

    `set_level(gsi, level)` reaches it: KVM's in-kernel chips or a Python PIC/IOAPIC. The last level is remembered, so
    that a device may state its level as often as it likes and only changes travel.
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
