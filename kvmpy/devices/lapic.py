"""The local APIC of a processor: what reaches it, in which order, its timer, its messages (Intel SDM vol. 3, 10).

It knows no processor: `wake` says that there is something to take, `send` carries interrupts to other APICs, and who
runs the processor asks `pending()` and `accept()`s.
"""

from __future__ import annotations

from kvmpy.devices.base import Device, Field, Register
from kvmpy.errors import ConfigError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BASE, SIZE = 0xFEE0_0000, 0x1000
VERSION = 0x0005_0014  # an integrated APIC with six LVT entries
ID, VERSION_AT, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE = 0x380, 0x390, 0x3E0
LVTS = (LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR)
LVT_MASKED, LVT_PERIODIC = 1 << 16, 1 << 17
SVR_ENABLED = 1 << 8
ESR_ILLEGAL_VECTOR = 1 << 6
FIRST_VECTOR = 16  # below lie exceptions; such a vector is an error (10.5.2)
FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7
TIMER_HERTZ = 1_000_000_000
ROUNDING = 1e-3  # pulses: what floating point may lack
FLAT = 0xF

ICR = Register(
    ICR_LOW,
    "icr",
    size=8,
    fields=(
        Field("vector", 0, 8),
        Field("mode", 8, 3),
        Field("logical", 11),
        Field("status", 12),
        Field("level", 14),
        Field("trigger", 15),
        Field("shorthand", 18, 2),
        Field("destination", 56, 8),
    ),
)
NO_SHORTHAND, SELF, ALL, OTHERS = range(4)


@record
class Message:
    """An interrupt on its way: to whom (`destination`, `logical`), what (`mode`, `vector`), and from which APIC."""

    mode: int
    vector: int
    destination: int = 0
    logical: bool = False
    shorthand: int = NO_SHORTHAND
    level: bool = False
    assert_level: bool = True
    source: int = -1


class LocalApic(Device):
    """The 4 KiB of registers at 0xFEE00000, as this processor sees them; 32 bits each, every 16 bytes."""

    name = "lapic"

    def __init__(
        self,
        apic_id: int,
        *,
        clock: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], object],
        wake: Callable[[], None],
        send: Callable[[Message], None],
        end_of_interrupt: Callable[[int], None] = lambda _vector: None,
    ) -> None:
        self.apic_id = apic_id
        self._clock = clock
        self._call_at = call_at
        self._wake = wake
        self._send = send
        self._end_of_interrupt = end_of_interrupt
        self.irr = self.isr = self.tmr = 0  # 256 bits each
        self.nmi = False
        self.extint = False  # the PICs have a vector for this processor
        self.init = False
        self.startup: int | None = None
        self._timer_started: float | None = None
        self._generation = 0
        self.registers: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-up or INIT (10.4.7)."""
        self.irr = self.isr = self.tmr = 0
        self.registers = {
            ID: self.apic_id << 24, TPR: 0, LDR: 0, DFR: 0xFFFF_FFFF, SVR: 0xFF, ESR: 0, ICR_LOW: 0, ICR_HIGH: 0,
            TIMER_INITIAL: 0, TIMER_DIVIDE: 0, **dict.fromkeys(LVTS, LVT_MASKED),
        }  # fmt: skip
        self._stop_timer()

    # What reaches the processor

    @property
    def enabled(self) -> bool:
        """Whether SVR has the APIC on; off, it takes no fixed interrupts."""
        return bool(self.registers[SVR] & SVR_ENABLED)

    @property
    def task_priority(self) -> int:
        """TPR; bits 7 to 4 are CR8 (10.8.6.1)."""
        return self.registers[TPR]

    @task_priority.setter
    def task_priority(self, value: int) -> None:
        self.registers[TPR] = value & 0xFF

    @property
    def processor_priority(self) -> int:
        """PPR: the higher class of TPR and of the highest interrupt in service (10.8.3.1)."""
        tpr, in_service = self.registers[TPR], max(0, self.isr.bit_length() - 1)
        return tpr if tpr >> 4 >= in_service >> 4 else in_service & 0xF0

    def pending(self) -> int | None:
        """Return the vector that the processor would take now, None when there is none above its priority."""
        if not self.irr or not self.enabled:
            return None
        vector = self.irr.bit_length() - 1
        return vector if vector >> 4 > self.processor_priority >> 4 else None

    def accept(self, vector: int) -> None:
        """Move a pending vector into service."""
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector

    @property
    def takes_extint(self) -> bool:
        """Whether the PIC's output, on LINT0, reaches the processor: wired through, or the APIC off (10.4.3)."""
        entry = self.registers[LVT_LINT0]
        return not self.enabled or (not entry & LVT_MASKED and entry >> 8 & 7 == EXTINT)

    def receive(self, message: Message) -> None:
        """Take an interrupt that is meant for this APIC."""
        if message.mode in (FIXED, LOWEST_PRIORITY):
            if self.enabled:  # else it is not accepted (10.4.7.2)
                self._request(message.vector, level=message.level)
        elif message.mode == EXTINT:
            self.extint = True
        elif message.mode == NMI:
            self.nmi = True
        elif message.mode == INIT and message.assert_level:
            self.init = True
        elif message.mode == STARTUP:
            self.startup = message.vector
        self._wake()

    def _request(self, vector: int, *, level: bool = False) -> None:
        if vector < FIRST_VECTOR:
            self.registers[ESR] |= ESR_ILLEGAL_VECTOR
            return
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit

    def is_meant(self, message: Message) -> bool:
        """Tell whether a message is for this APIC (10.6.2)."""
        if message.shorthand != NO_SHORTHAND:
            is_self = message.source == self.apic_id
            return {SELF: is_self, ALL: True, OTHERS: not is_self}[message.shorthand]
        if not message.logical:
            return message.destination in (self.apic_id, 0xFF)
        mine, wanted = self.registers[LDR] >> 24, message.destination
        if self.registers[DFR] >> 28 == FLAT:
            return bool(mine & wanted)
        return wanted == 0xFF or (mine >> 4 == wanted >> 4 and bool(mine & wanted & 0xF))

    # Registers

    def read(self, offset: int, size: int) -> int:
        """Answer an aligned read of 32 bits, or of a part of one."""
        at = offset & ~0xF
        value = self._load(at) if offset & 0xF < 4 else 0
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _load(self, at: int) -> int:
        for start, bits in ((ISR, self.isr), (TMR, self.tmr), (IRR, self.irr)):
            if start <= at < start + 0x80:
                return bits >> 32 * (at - start >> 4) & 0xFFFF_FFFF
        if at == VERSION_AT:
            return VERSION
        if at == PPR:
            return self.processor_priority
        if at == TIMER_CURRENT:
            return self._timer_left()
        return self.registers.get(at, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Take an aligned write of 32 bits; others do nothing (10.4.1)."""
        if offset & 0xF or size != 4:
            return
        writer = {
            EOI: self._write_eoi, SVR: self._write_svr, ESR: self._write_esr, ICR_LOW: self._write_icr,
            TIMER_INITIAL: self._write_timer,
        }.get(offset)  # fmt: skip
        if writer:
            writer(value)
        elif offset in (TPR, LDR, DFR, ID, ICR_HIGH, TIMER_DIVIDE, *LVTS):
            kept = {TPR: 0xFF, LDR: 0xFF00_0000, ID: 0xFF00_0000, ICR_HIGH: 0xFF00_0000, TIMER_DIVIDE: 0xB}
            value &= kept.get(offset, 0xFFFF_FFFF)
            self.registers[offset] = value | 0x0FFF_FFFF if offset == DFR else value
            if offset in LVTS and not self.enabled:
                self.registers[offset] |= LVT_MASKED
            self._wake()

    def _write_eoi(self, _value: int) -> None:
        if self.isr:
            vector = self.isr.bit_length() - 1
            self.isr &= ~(1 << vector)
            if self.tmr >> vector & 1:
                self._end_of_interrupt(vector)
            self._wake()

    def _write_svr(self, value: int) -> None:
        self.registers[SVR] = value & 0x1FF
        if not self.enabled:
            for entry in LVTS:
                self.registers[entry] |= LVT_MASKED
        self._wake()

    def _write_esr(self, _value: int) -> None:
        """A write takes over what has gone wrong since the last one (10.5.3); here it is shown at once, and cleared."""
        self.registers[ESR] = 0

    def _write_icr(self, value: int) -> None:
        self.registers[ICR_LOW] = value & 0x000C_CFFF
        command = self.registers[ICR_HIGH] << 32 | value
        self._send(
            Message(
                mode=ICR.get(command, "mode"),
                vector=ICR.get(command, "vector"),
                destination=ICR.get(command, "destination"),
                logical=bool(ICR.get(command, "logical")),
                shorthand=ICR.get(command, "shorthand"),
                assert_level=bool(ICR.get(command, "level")),
                source=self.apic_id,
            )
        )

    # The timer

    @property
    def _divider(self) -> int:
        """The divisor of the divide configuration register (figure 10-10)."""
        value = self.registers[TIMER_DIVIDE]
        code = value & 3 | value >> 1 & 4
        return 1 if code == 7 else 2 << code

    def _period(self) -> float:
        return self.registers[TIMER_INITIAL] * self._divider / TIMER_HERTZ

    def _timer_left(self) -> int:
        if self._timer_started is None:
            return 0
        initial = self.registers[TIMER_INITIAL]
        done = int((self._clock() - self._timer_started) * TIMER_HERTZ / self._divider + ROUNDING)
        if self.registers[LVT_TIMER] & LVT_PERIODIC:
            return initial - done % initial
        return max(0, initial - done)

    def _stop_timer(self) -> None:
        self._generation += 1
        self._timer_started = None

    def _write_timer(self, value: int) -> None:
        self._stop_timer()
        self.registers[TIMER_INITIAL] = value
        if value:
            self._timer_started = self._clock()
            self._schedule(self._timer_started + self._period())

    def _schedule(self, when: float) -> None:
        generation = self._generation

        def expire() -> None:
            if generation != self._generation:
                return
            entry = self.registers[LVT_TIMER]
            if not entry & LVT_MASKED:
                self._request(entry & 0xFF)
                self._wake()
            if not entry & LVT_PERIODIC:
                self._stop_timer()  # at 0; to become periodic now does not start it again (10.5.4)
            else:
                # Who is late by more than a period has lost what was between: the request is one bit.
                self._schedule(max(when, self._clock() - self._period()) + self._period())

        self._call_at(when, expire)

    # State

    def state(self) -> dict[str, object]:
        """Return the registers, and how long the timer has run."""
        ran = None if self._timer_started is None else self._clock() - self._timer_started
        return {
            "registers": dict(self.registers), "irr": self.irr, "isr": self.isr, "tmr": self.tmr, "timer_ran": ran,
            "nmi": self.nmi, "extint": self.extint, "init": self.init, "startup": self.startup,
        }  # fmt: skip

    def restore(self, state: dict[str, object]) -> None:
        """Take them back; the timer goes on."""
        registers, ran = state.get("registers"), state.get("timer_ran")
        if (
            not isinstance(registers, dict)
            or set(registers) != set(self.registers)
            or not _are_words(registers.values())
        ):
            raise ConfigError(f"state of {self.name}: 'registers' cannot be {registers!r}; not saved by this device")
        if ran is not None and (not isinstance(ran, float) or not ran >= 0 or not registers[TIMER_INITIAL]):
            raise ConfigError(f"state of {self.name}: 'timer_ran' cannot be {ran!r}; not saved by this device")
        self._stop_timer()
        self.registers = {at: int(value) for at, value in registers.items()}
        for name in ("irr", "isr", "tmr"):
            value = state.get(name)
            if not isinstance(value, int) or not 0 <= value < 1 << 256:
                raise ConfigError(f"state of {self.name}: {name!r} cannot be {value!r}; not saved by this device")
            setattr(self, name, value)
        self.nmi, self.extint, self.init = (bool(state.get(name)) for name in ("nmi", "extint", "init"))
        startup = state.get("startup")
        self.startup = startup if isinstance(startup, int) else None
        if ran is not None:
            self._timer_started = self._clock() - ran
            period = self._period()
            periods = int(ran / period) + 1 if self.registers[LVT_TIMER] & LVT_PERIODIC and period else 1
            self._schedule(self._timer_started + periods * period)


def _are_words(values: Iterable[object]) -> bool:
    """Tell whether all are registers of 32 bits."""
    return all(isinstance(value, int) and 0 <= value < 1 << 32 for value in values)
