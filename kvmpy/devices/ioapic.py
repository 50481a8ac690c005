"""The I/O APIC: 24 inputs, each with an entry that says where it leads (Intel 82093AA data sheet, 290566)."""

from __future__ import annotations

from kvmpy.devices.base import Device, Field, Register
from kvmpy.devices.lapic import FIXED, LOWEST_PRIORITY, Message
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BASE, SIZE = 0xFEC0_0000, 0x1000
PINS = 24
IOREGSEL, IOWIN = 0x00, 0x10
ID, VERSION, ARBITRATION, REDIRECTION = 0x00, 0x01, 0x02, 0x10
VERSION_VALUE = 0x11 | PINS - 1 << 16
ENTRY = Register(
    REDIRECTION,
    "redirection",
    reset=1 << 16,
    size=8,
    # Data sheet, 3.2.4; delivery status and remote IRR are read-only.
    fields=(
        Field("vector", 0, 8),
        Field("mode", 8, 3),
        Field("logical", 11),
        Field("status", 12),
        Field("active_low", 13),
        Field("remote_irr", 14),
        Field("level", 15),
        Field("masked", 16),
        Field("destination", 56, 8),
    ),
)
READ_ONLY = 1 << 12 | 1 << 14


class IoApic(Device):
    """Two windows at 0xFEC00000: the number of a register, and the register. `send` carries what it puts out."""

    name = "ioapic"

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self.selected = 0
        self.id = 0
        self.levels = 0
        self.entries = [ENTRY.reset] * PINS

    def set_line(self, pin: int, level: int) -> None:
        """Drive an input; levels are as devices mean them, whatever the entry's polarity."""
        rising = level and not self.levels >> pin & 1
        self.levels = self.levels | 1 << pin if level else self.levels & ~(1 << pin)
        if rising or (level and ENTRY.get(self.entries[pin], "level")):
            self._service(pin)

    def _service(self, pin: int) -> None:
        entry = self.entries[pin]
        level = bool(ENTRY.get(entry, "level"))
        if ENTRY.get(entry, "masked") or (level and ENTRY.get(entry, "remote_irr")):
            return
        mode = ENTRY.get(entry, "mode")
        if level and mode in (FIXED, LOWEST_PRIORITY):
            self.entries[pin] = ENTRY.put(entry, "remote_irr", 1)
        self._send(
            Message(
                mode=mode,
                vector=ENTRY.get(entry, "vector"),
                destination=ENTRY.get(entry, "destination"),
                logical=bool(ENTRY.get(entry, "logical")),
                level=level,
            )
        )

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC has finished a level-triggered vector: an input that is still high interrupts again."""
        for pin, entry in enumerate(self.entries):
            if ENTRY.get(entry, "remote_irr") and ENTRY.get(entry, "vector") == vector:
                self.entries[pin] = ENTRY.put(entry, "remote_irr", 0)
                if self.levels >> pin & 1:
                    self._service(pin)

    def read(self, offset: int, size: int) -> int:
        """Answer from the window."""
        if offset == IOREGSEL:
            return self.selected
        return self._load() if offset == IOWIN else 0

    def _load(self) -> int:
        if self.selected in (ID, ARBITRATION):
            return self.id << 24
        if self.selected == VERSION:
            return VERSION_VALUE
        pin, high = divmod(self.selected - REDIRECTION, 2)
        if 0 <= pin < PINS:
            return self.entries[pin] >> 32 * high & 0xFFFF_FFFF
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a register, or write the one that was chosen."""
        if offset == IOREGSEL:
            self.selected = value & 0xFF
        elif offset == IOWIN and self.selected == ID:
            self.id = value >> 24 & 0xF
        elif offset == IOWIN and REDIRECTION <= self.selected < REDIRECTION + 2 * PINS:
            self._write_entry(*divmod(self.selected - REDIRECTION, 2), value & 0xFFFF_FFFF)

    def _write_entry(self, pin: int, high: int, value: int) -> None:
        kept = 0xFFFF_FFFF if high else READ_ONLY | 0xFFFF_FFFF << 32
        entry = self.entries[pin] & kept | value << 32 * high & ~(0 if high else READ_ONLY)
        if not ENTRY.get(entry, "level"):
            entry = ENTRY.put(entry, "remote_irr", 0)
        self.entries[pin] = entry
        if ENTRY.get(entry, "level") and self.levels >> pin & 1:
            self._service(pin)

    def state(self) -> dict[str, object]:
        """Return everything."""
        return {"selected": self.selected, "id": self.id, "levels": self.levels, "entries": list(self.entries)}

    def restore(self, state: dict[str, object]) -> None:
        """Take everything back."""
        entries = state.get("entries")
        if not isinstance(entries, list) or len(entries) != PINS or not all(isinstance(e, int) for e in entries):
            raise ConfigError(f"state of {self.name}: 'entries' cannot be {entries!r}; it was not saved by this device")
        self.entries = [int(entry) & ENTRY.mask for entry in entries]
        for name, limit in (("selected", 0xFF), ("id", 0xF), ("levels", (1 << PINS) - 1)):
            value = state.get(name)
            if not isinstance(value, int) or not 0 <= value <= limit:
                raise ConfigError(f"state of {self.name}: {name!r} cannot be {value!r}; not saved by this device")
            setattr(self, name, value)
