"""The timer of a PC: three counters that run down at 1.193182 MHz (Intel 8254 data sheet, order number 231164).

Nothing counts here: a counter's value follows from the time since it was loaded. Counter 0 is the tick of the machine,
counter 2 the speaker's, with its gate and output in port 0x61.
"""

from __future__ import annotations

from kvmpy.devices.base import Register, RegisterDevice
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FREQUENCY = 1_193_182
LATCH, LOW, HIGH, LOW_THEN_HIGH = range(4)  # bits 5:4 of the control word
READ_BACK = 3  # counter "3" of a control word
ONE_SHOT, RATE, SQUARE = 1, 2, 3
PERIODIC = (RATE, SQUARE)
GATED_START = (1, 5)  # these modes begin at the gate's rising edge, and do not look at its level
LIMITS = {  # of a counter's fields, for restore()
    "mode": (0, 5), "bcd": (0, 1), "access": (LOW, LOW_THEN_HIGH), "reload": (1, 0x10000), "gate": (0, 1),
    "latched": (-1, 0xFFFF), "status": (-1, 0xFF), "write_low": (0, 0xFF), "second_write": (0, 1),
    "second_read": (0, 1),
}  # fmt: skip
SPEAKER_GATE, SPEAKER_DATA, REFRESH, SPEAKER_OUT = 0x01, 0x02, 0x10, 0x20
ROUNDING = 1e-3  # pulses: what floating point may lack
REFRESH_SECONDS = 15e-6
BEHIND_LIMIT = 64  # periods; who is later than that has lost the rest


class Counter:
    """One counter. `clock` gives seconds; `loaded` is called when counting begins anew."""

    def __init__(self, clock: Callable[[], float], loaded: Callable[[], None]) -> None:
        self._clock = clock
        self._loaded = loaded
        self.mode = 0
        self.bcd = 0
        self.access = LOW_THEN_HIGH
        self.reload = 0x10000
        self.gate = 1
        self.started: float | None = None
        self.held: float | None = None  # since when the gate keeps it from counting
        self.latched = -1
        self.status = -1
        self.write_low = 0
        self.second_write = 0
        self.second_read = 0

    # Counting

    def elapsed(self) -> int:
        """Clock pulses since counting began; -1 before it."""
        if self.started is None:
            return -1
        return int(self.seconds(self.started) * FREQUENCY + ROUNDING)

    def seconds(self, started: float) -> float:
        """How long it has counted."""
        return (self._clock() if self.held is None else self.held) - started

    def value(self) -> int:
        """What a read would give now, 16 bits."""
        done = self.elapsed()
        if done < 0:
            left = self.reload
        elif self.mode == SQUARE:
            left = self.reload - 2 * done % self.reload
        elif self.mode == RATE:
            left = self.reload - done % self.reload
        else:
            left = self.reload - done
        return _to_bcd(left % 10000) if self.bcd else left & 0xFFFF

    def output(self) -> int:
        """The level of OUT (data sheet, "Mode Definitions")."""
        done = self.elapsed()
        if done < 0 or (self.mode in PERIODIC and not self.gate):
            return int(self.mode != 0)
        if self.mode == RATE:
            return int(done % self.reload != self.reload - 1)
        if self.mode == SQUARE:
            return int(done % self.reload < (self.reload + 1) // 2)
        return int(done >= self.reload if self.mode in (0, 1) else done != self.reload)

    def next_edge(self, after: int) -> int | None:
        """Return the pulse, behind `after`, at which OUT rises; None when it does not any more."""
        if self.started is None or self.held is not None:
            return None
        if self.mode in PERIODIC:
            return (after // self.reload + 1) * self.reload
        return self.reload if after < self.reload else None

    def set_gate(self, level: int) -> None:
        """Drive GATE. Its rising edge begins modes 1, 2, 3 and 5 anew; while it is low, all but 1 and 5 hold."""
        rising, falling, self.gate = level and not self.gate, self.gate and not level, level
        if rising and (self.mode in PERIODIC or self.mode in GATED_START):
            self._start()
        elif rising and self.held is not None and self.started is not None:
            self.started += self._clock() - self.held
            self.held = None
            self._loaded()
        elif falling and self.mode not in GATED_START and self.started is not None:
            self.held = self._clock()
            self._loaded()

    def _start(self) -> None:
        self.started = self._clock()
        self.held = None if self.gate or self.mode in GATED_START else self.started
        self._loaded()

    # Access

    def control(self, access: int, mode: int, bcd: int) -> None:
        """Take a control word: the counter stops until it is loaded."""
        if access == LATCH:
            self.latch()
            return
        self.access, self.bcd = access, bcd
        self.mode = mode & 3 if mode & 2 else mode  # 6 and 7 are 2 and 3
        self.second_write = self.second_read = 0
        self.latched = self.status = -1
        self.started = self.held = None
        self._loaded()

    def latch(self) -> None:
        """Keep the value for the next read; a latch that was not read stays."""
        if self.latched < 0:
            self.latched = self.value()

    def latch_status(self) -> None:
        """Keep the status byte for the next read (data sheet, figure 12)."""
        if self.status < 0:
            waiting = int(self.started is None)
            self.status = self.output() << 7 | waiting << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def write(self, value: int) -> None:
        """Load a byte, or the first of two."""
        if self.access == LOW_THEN_HIGH and not self.second_write:
            self.write_low, self.second_write = value, 1
            return
        count = {LOW: value, HIGH: value << 8}.get(self.access, self.write_low | value << 8)
        self.second_write = 0
        self._load(_from_bcd(count) or 10000 if self.bcd else count or 0x10000)

    def _load(self, count: int) -> None:
        self.reload = count
        if self.mode not in GATED_START:
            self._start()

    def read(self) -> int:
        """Read the status if latched, else the latched value, else the running one, a byte at a time."""
        if self.status >= 0:
            status, self.status = self.status, -1
            return status
        value = self.value() if self.latched < 0 else self.latched
        high = self.access == HIGH or (self.access == LOW_THEN_HIGH and bool(self.second_read))
        if self.access == LOW_THEN_HIGH:
            self.second_read ^= 1
        if self.access != LOW_THEN_HIGH or not self.second_read:
            self.latched = -1
        return value >> 8 if high else value & 0xFF


class Pit8254(RegisterDevice):
    """The chip at ports 0x40 to 0x43. `tick` is called for every rise of counter 0's output.

    `call_at(when, callback)` calls back once the clock has reached `when`.
    """

    name = "pit8254"
    REGISTERS = (Register(0, "counter0"), Register(1, "counter1"), Register(2, "counter2"), Register(3, "control"))

    def __init__(
        self,
        tick: Callable[[], None],
        *,
        clock: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], object],
    ) -> None:
        super().__init__()
        self._tick = tick
        self._clock = clock
        self._call_at = call_at
        self._generation = 0
        self._edge = 0  # pulses since counter 0 was loaded, at its last rise
        self.counters = [Counter(clock, self._schedule_anew), Counter(clock, _ignore), Counter(clock, _ignore)]
        self.counters[2].gate = 0
        self.speaker = 0

    # The tick

    def _schedule_anew(self) -> None:
        self._generation += 1
        self._edge = 0
        self._schedule()

    def _schedule(self) -> None:
        counter, generation = self.counters[0], self._generation
        edge = counter.next_edge(self._edge)
        if edge is None or counter.started is None:
            return

        def rise() -> None:
            if generation == self._generation:
                self._edge = max(edge, counter.elapsed() - BEHIND_LIMIT * counter.reload)
                self._tick()
                self._schedule()

        self._call_at(counter.started + edge / FREQUENCY, rise)

    # Registers

    def write_control(self, value: int) -> None:
        """A control word, a latch, or a read-back command."""
        number, access, mode = value >> 6, value >> 4 & 3, value >> 1 & 7
        if number != READ_BACK:
            self.counters[number].control(access, mode, value & 1)
            return
        for i, counter in enumerate(self.counters):
            if value >> i + 1 & 1:
                if not value & 0x20:
                    counter.latch()
                if not value & 0x10:
                    counter.latch_status()

    def read_control(self) -> int:
        """Nothing can be read here."""
        return 0

    def read_counter0(self) -> int:
        """Read counter 0."""
        return self.counters[0].read()

    def read_counter1(self) -> int:
        """Read counter 1."""
        return self.counters[1].read()

    def read_counter2(self) -> int:
        """Read counter 2."""
        return self.counters[2].read()

    def write_counter0(self, value: int) -> None:
        """Load counter 0."""
        self.counters[0].write(value)

    def write_counter1(self, value: int) -> None:
        """Load counter 1."""
        self.counters[1].write(value)

    def write_counter2(self, value: int) -> None:
        """Load counter 2."""
        self.counters[2].write(value)

    # State

    def state(self) -> dict[str, object]:
        """Return the counters, with how far each has run."""
        counters = [
            {name: getattr(c, name) for name in LIMITS}
            | {"seconds": None if c.started is None else c.seconds(c.started), "held": c.held is not None}
            for c in self.counters
        ]
        return {**super().state(), "counters": counters, "speaker": self.speaker}

    def restore(self, state: dict[str, object]) -> None:
        """Take the counters back; they go on where they were."""
        saved = state.get("counters")
        if not isinstance(saved, list) or len(saved) != len(self.counters):
            raise ConfigError(f"state of {self.name}: 'counters' cannot be {saved!r}; it was not saved by this device")
        for values in saved:
            self._check_counter(values)
        super().restore(state)
        now = self._clock()
        for counter, values in zip(self.counters, saved, strict=True):
            for name in LIMITS:
                setattr(counter, name, values[name])
            counter.started = None if values["seconds"] is None else now - values["seconds"]
            counter.held = now if values["held"] else None
        self.speaker = int(bool(state.get("speaker")))
        self._generation += 1
        self._edge = max(0, self.counters[0].elapsed())
        self._schedule()

    def _check_counter(self, values: object) -> None:
        if not isinstance(values, dict) or not _is_counter(values):
            raise ConfigError(f"state of {self.name}: a counter cannot be {values!r}; it was not saved by this device")


class SystemControl(RegisterDevice):
    """Port 0x61: the speaker's gate and data, and what counter 2 puts out (Intel 82371AB data sheet, 4.3.1)."""

    name = "port61"
    REGISTERS = (Register(0, "control"),)

    def __init__(self, pit: Pit8254, clock: Callable[[], float]) -> None:
        super().__init__()
        self._pit = pit
        self._clock = clock

    def write_control(self, value: int) -> None:
        """Set gate and data."""
        self._pit.counters[2].set_gate(value & SPEAKER_GATE)
        self._pit.speaker = int(bool(value & SPEAKER_DATA))

    def read_control(self) -> int:
        """Gate, data, output, and a bit that changes with every refresh of memory."""
        counter = self._pit.counters[2]
        refresh = REFRESH if int(self._clock() / REFRESH_SECONDS) & 1 else 0
        data = SPEAKER_DATA if self._pit.speaker else 0
        return counter.gate | data | refresh | (SPEAKER_OUT if counter.output() else 0)


def _is_counter(values: dict[str, object]) -> bool:
    for name, (low, high) in LIMITS.items():
        value = values.get(name)
        if not isinstance(value, int) or not low <= value <= high:
            return False
    seconds = values.get("seconds", -1)
    has_run = seconds is None or (isinstance(seconds, float) and seconds >= 0)
    return has_run and isinstance(values.get("held"), bool)


def _ignore() -> None:
    """The outputs of counters 1 and 2 interrupt nobody."""


def _to_bcd(value: int) -> int:
    return int(str(value), 16)


def _from_bcd(value: int) -> int:
    return sum((value >> 4 * i & 0xF) * 10**i for i in range(4))
