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
class Field:
    """Bits of a register that have a name of their own: the lowest one's number, and how many there are."""

    name: str
    bit: int
    width: int = 1


@record
class Register:
    """A register of 1, 2, 4 or 8 bytes: offset, the data sheet's name, its value after reset, the bits a write changes.

    `fields` name its bits: `REGISTER.get(value, "field")` takes one out of a value, `put()` returns the value with one
    changed, `decode()` shows them all.

    >>> line_control = Register(3, "lcr", fields=(Field("word_length", 0, 2), Field("dlab", 7)))
    >>> line_control.decode(0x83), hex(line_control.put(0x83, "dlab", 0))
    ({'word_length': 3, 'dlab': 1}, '0x3')
    """

    offset: int
    name: str
    reset: int = 0
    writable: int = -1
    size: int = 1
    fields: tuple[Field, ...] = ()

    @property
    def mask(self) -> int:
        """All bits of the register."""
        return (1 << 8 * self.size) - 1

    def _field(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise ConfigError(f"register {self.name!r}: no field {name!r}; it has {', '.join(f.name for f in self.fields)}")

    def get(self, value: int, name: str) -> int:
        """Return a field of a value of the register."""
        field = self._field(name)
        return value >> field.bit & (1 << field.width) - 1

    def put(self, value: int, name: str, content: int) -> int:
        """Return the value with a field changed; ConfigError when the content does not fit."""
        field = self._field(name)
        limit = (1 << field.width) - 1
        if not 0 <= content <= limit:
            raise ConfigError(f"register {self.name!r}: field {name!r} of {field.width} bits cannot hold {content:#x}")
        return value & ~(limit << field.bit) | content << field.bit

    def decode(self, value: int) -> dict[str, int]:
        """Return every field of a value by name."""
        return {field.name: self.get(value, field.name) for field in self.fields}


class RegisterDevice(Device):
    """A device of registers, declared in `REGISTERS`. An access may be wider than a register, or narrower.

    A register is storage unless the class has methods `read_NAME()` and `write_NAME(value)`; each is called once per
    access, with the whole register's value: the bytes that a narrow write leaves out are as they were. Bytes without a
    register read as all ones and ignore writes, as on ISA. ConfigError, when the class is made, for registers that
    overlap.

    >>> class Scratch(RegisterDevice):
    ...     name = "scratch"
    ...     REGISTERS = (Register(0, "low", reset=0x11), Register(1, "high", reset=0x22, writable=0xF0))
    >>> device = Scratch()
    >>> device.write(1, 1, 0x5F)
    >>> hex(device.read(0, 2)), hex(device.read(2, 1))
    ('0x5211', '0xff')
    """

    REGISTERS: tuple[Register, ...] = ()

    def __init_subclass__(cls) -> None:
        """Refuse registers that overlap, and fields that do not fit, when the class is made."""
        super().__init_subclass__()
        taken: dict[int, str] = {}
        for register in cls.REGISTERS:
            _check_register(cls.__name__, register)
            for at in range(register.offset, register.offset + register.size):
                if at in taken:
                    both = f"{taken[at]!r} and {register.name!r}"
                    raise ConfigError(f"{cls.__name__}: registers {both} overlap at {at:#x}")
                taken[at] = register.name

    def __init__(self) -> None:
        self.registers = {register.name: register.reset for register in self.REGISTERS}
        self._at = {r.offset + i: r for r in self.REGISTERS for i in range(r.size)}
        self._readers = {r.name: getattr(self, f"read_{r.name}", partial(self._load, r)) for r in self.REGISTERS}
        self._writers = {r.name: getattr(self, f"write_{r.name}", partial(self._store, r)) for r in self.REGISTERS}

    def _load(self, register: Register) -> int:
        return self.registers[register.name]

    def _store(self, register: Register, value: int) -> None:
        writable = register.writable & register.mask
        self.registers[register.name] = self.registers[register.name] & ~writable | value & writable

    def read(self, offset: int, size: int) -> int:
        """Answer from the registers at `offset` and behind it."""
        answer, at, end = 0, offset, offset + size
        while at < end:
            register = self._at.get(at)
            value = self._readers[register.name]() & register.mask if register else 0xFF
            start, behind = (register.offset, register.offset + register.size) if register else (at, at + 1)
            part = min(behind, end) - at
            answer |= (value >> 8 * (at - start) & (1 << 8 * part) - 1) << 8 * (at - offset)
            at += part
        return answer

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the registers at `offset` and behind it, lowest first."""
        at, end = offset, offset + size
        while at < end:
            register = self._at.get(at)
            start, behind = (register.offset, register.offset + register.size) if register else (at, at + 1)
            part = min(behind, end) - at
            if register:
                shift, bits = 8 * (at - start), (1 << 8 * part) - 1
                content = value >> 8 * (at - offset) & bits
                kept = self.registers[register.name] & register.mask & ~(bits << shift) if part < register.size else 0
                self._writers[register.name](kept | content << shift)
            at += part

    def state(self) -> dict[str, object]:
        """Return every register by name."""
        return dict(self.registers)

    def restore(self, state: dict[str, object]) -> None:
        """Take every register back; ConfigError when one is missing or does not fit."""
        limits = {register.name: register.mask for register in self.REGISTERS}
        self.registers = {name: whole(self, state, name, limits.get(name, 0xFF)) for name in self.registers}


def _check_register(owner: str, register: Register) -> None:
    if register.size not in (1, 2, 4, 8):
        raise ConfigError(f"{owner}: register {register.name!r} of {register.size} bytes; they have 1, 2, 4 or 8")
    taken = 0
    for field in register.fields:
        bits = (1 << field.width) - 1 << field.bit
        if field.width < 1 or bits & ~register.mask or bits & taken:
            raise ConfigError(f"{owner}: field {field.name!r} of {register.name!r} overlaps another, or does not fit")
        taken |= bits


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

    >>> line = IrqLine(4, lambda gsi, level: print(f"line {gsi} is {level}"))
    >>> line.set(True)
    line 4 is 1
    >>> line.set(True)
    >>> line.set(False)
    line 4 is 0
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
