"""The local APIC, after Intel SDM vol. 3, chapter 10, with a clock that the test moves; and the I/O APIC."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmpy.devices.ioapic import IOREGSEL, IOWIN, REDIRECTION, IoApic
from kvmpy.devices.lapic import (
    DFR,
    EOI,
    ESR,
    EXTINT,
    FIXED,
    ICR_HIGH,
    ICR_LOW,
    INIT,
    IRR,
    ISR,
    LDR,
    LVT_LINT0,
    LVT_TIMER,
    NMI,
    OTHERS,
    PPR,
    SELF,
    STARTUP,
    SVR,
    TIMER_CURRENT,
    TIMER_DIVIDE,
    TIMER_INITIAL,
    TPR,
    VERSION_AT,
    LocalApic,
    Message,
)
from kvmpy.errors import ConfigError

DIVIDE_BY_1 = 0xB
NANOSECOND = 1e-9


class Bench:
    """One APIC, enabled, with what it asked for."""

    def __init__(self, apic_id: int = 0, *, enabled: bool = True) -> None:
        self.now = 0.0
        self.woken = 0
        self.sent: list[Message] = []
        self.ended: list[int] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.apic = LocalApic(
            apic_id,
            clock=lambda: self.now,
            call_at=lambda at, call: self.timers.append((at, call)),
            wake=self._wake,
            send=self.sent.append,
            end_of_interrupt=self.ended.append,
        )
        if enabled:
            self.write(SVR, 0x1FF)

    def _wake(self) -> None:
        self.woken += 1

    def write(self, at: int, value: int) -> None:
        self.apic.write(at, 4, value)

    def read(self, at: int) -> int:
        return self.apic.read(at, 4)

    def request(self, *vectors: int) -> None:
        for vector in vectors:
            self.apic.receive(Message(FIXED, vector))

    def take(self) -> int | None:
        vector = self.apic.pending()
        if vector is not None:
            self.apic.accept(vector)
        return vector

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end + 1e-12]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_highest_vector_comes_first(bench: Bench) -> None:
    bench.request(0x31, 0x80, 0x45)
    taken = []
    while (vector := bench.take()) is not None:
        taken.append(vector)
        bench.write(EOI, 0)
    assert taken == [0x80, 0x45, 0x31]
    assert bench.woken >= 3


def test_a_vector_of_the_same_class_waits_for_the_end_of_the_one_in_service(bench: Bench) -> None:
    bench.request(0x45)
    assert bench.take() == 0x45
    bench.request(0x4F, 0x35)
    assert bench.take() is None
    bench.request(0x51)
    assert bench.take() == 0x51
    bench.write(EOI, 0)
    assert bench.take() is None
    bench.write(EOI, 0)
    assert bench.take() == 0x4F


def test_the_task_priority_holds_back_its_class_and_those_below(bench: Bench) -> None:
    bench.write(TPR, 0x50)
    bench.request(0x5F)
    assert bench.take() is None
    assert bench.read(PPR) == 0x50
    bench.request(0x60)
    assert bench.take() == 0x60
    assert bench.read(PPR) == 0x60
    bench.write(EOI, 0)
    bench.write(TPR, 0x40)
    assert bench.take() == 0x5F


def test_requests_and_service_can_be_read_bit_by_bit(bench: Bench) -> None:
    bench.request(0x41, 0xFF)
    assert bench.read(IRR + 0x20) == 1 << 1
    assert bench.read(IRR + 0x70) == 1 << 31
    bench.take()
    assert bench.read(IRR + 0x70) == 0
    assert bench.read(ISR + 0x70) == 1 << 31


def test_vectors_of_exceptions_are_errors(bench: Bench) -> None:
    bench.request(15)
    assert bench.take() is None
    assert bench.read(ESR) == 1 << 6
    bench.write(ESR, 0)
    assert bench.read(ESR) == 0


def test_switched_off_it_takes_nothing_and_lets_the_pic_through() -> None:
    bench = Bench(enabled=False)
    bench.request(0x50)
    assert bench.take() is None
    assert bench.apic.takes_extint
    bench.write(SVR, 0x1FF)
    assert bench.take() is None  # it was not accepted either (10.4.7.2)
    assert not bench.apic.takes_extint  # LINT0 is masked
    bench.write(LVT_LINT0, 0x700)
    assert bench.apic.takes_extint


def test_an_end_of_a_level_triggered_interrupt_is_told(bench: Bench) -> None:
    bench.apic.receive(Message(FIXED, 0x61, level=True))
    bench.request(0x62)
    assert [bench.take(), bench.take()] == [0x62, None]
    bench.write(EOI, 0)
    assert bench.take() == 0x61
    bench.write(EOI, 0)
    assert bench.ended == [0x61]


def test_nmi_init_and_startup_are_kept_for_the_processor(bench: Bench) -> None:
    bench.apic.receive(Message(NMI, 0))
    bench.apic.receive(Message(INIT, 0))
    bench.apic.receive(Message(STARTUP, 0x8))
    assert (bench.apic.nmi, bench.apic.init, bench.apic.startup) == (True, True, 8)
    bench.apic.init = False
    bench.apic.receive(Message(INIT, 0, assert_level=False))  # the de-assert of old systems
    assert not bench.apic.init


def test_the_interrupt_command_sends_a_message(bench: Bench) -> None:
    bench.write(ICR_HIGH, 3 << 24)
    bench.write(ICR_LOW, 0x4608)
    bench.write(ICR_LOW, 0xC4500)
    bench.write(ICR_LOW, 0x48855)
    startup, init, own = bench.sent
    assert (startup.mode, startup.vector, startup.destination, startup.shorthand) == (STARTUP, 8, 3, 0)
    assert (init.mode, init.shorthand) == (INIT, OTHERS)
    assert (own.vector, own.logical, own.shorthand, own.source) == (0x55, True, SELF, 0)


@pytest.mark.parametrize(
    ("message", "meant"),
    [
        (Message(FIXED, 0x50, 2), True),
        (Message(FIXED, 0x50, 3), False),
        (Message(FIXED, 0x50, 0xFF), True),
        (Message(FIXED, 0x50, 0x06, logical=True), True),
        (Message(FIXED, 0x50, 0x03, logical=True), False),
        (Message(FIXED, 0x50, shorthand=SELF, source=2), True),
        (Message(FIXED, 0x50, shorthand=SELF, source=1), False),
        (Message(FIXED, 0x50, shorthand=OTHERS, source=1), True),
        (Message(FIXED, 0x50, shorthand=OTHERS, source=2), False),
    ],
)
def test_who_is_meant(message: Message, meant: bool) -> None:
    bench = Bench(2)
    bench.write(LDR, 0x04 << 24)
    assert bench.apic.is_meant(message) == meant


def test_the_cluster_model_compares_cluster_and_member() -> None:
    bench = Bench(2)
    bench.write(DFR, 0x0FFF_FFFF)
    bench.write(LDR, 0x24 << 24)
    assert bench.apic.is_meant(Message(FIXED, 0x50, 0x26, logical=True))
    assert not bench.apic.is_meant(Message(FIXED, 0x50, 0x34, logical=True))
    assert bench.apic.is_meant(Message(FIXED, 0x50, 0xFF, logical=True))


def test_a_one_shot_timer_fires_once(bench: Bench) -> None:
    bench.write(TIMER_DIVIDE, DIVIDE_BY_1)
    bench.write(LVT_TIMER, 0x40)
    bench.write(TIMER_INITIAL, 1000)
    bench.run(600 * NANOSECOND)
    assert bench.read(TIMER_CURRENT) == 400
    assert bench.take() is None
    bench.run(401 * NANOSECOND)
    assert bench.take() == 0x40
    assert bench.read(TIMER_CURRENT) == 0
    bench.write(EOI, 0)
    bench.run(1)
    assert bench.take() is None


def test_a_periodic_timer_fires_again_and_again(bench: Bench) -> None:
    bench.write(TIMER_DIVIDE, DIVIDE_BY_1)
    bench.write(LVT_TIMER, 1 << 17 | 0x40)
    bench.write(TIMER_INITIAL, 1000)
    for _ in range(3):
        bench.run(1000 * NANOSECOND)
        assert bench.take() == 0x40
        bench.write(EOI, 0)
    bench.write(TIMER_INITIAL, 0)
    bench.run(1)
    assert bench.take() is None


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)])
def test_the_timer_s_divisor(bench: Bench, code: int, divisor: int) -> None:
    """Intel SDM vol. 3, figure 10-10."""
    bench.write(TIMER_DIVIDE, code)
    bench.write(TIMER_INITIAL, 1000)
    bench.run(100 * divisor * NANOSECOND + 1e-12)
    assert bench.read(TIMER_CURRENT) in (899, 900, 901)


def test_the_current_count_of_a_periodic_timer_runs_down_and_starts_over(bench: Bench) -> None:
    bench.write(TIMER_DIVIDE, DIVIDE_BY_1)
    bench.write(LVT_TIMER, 0x2_0040)
    bench.write(TIMER_INITIAL, 1000)
    for after, left in ((300, 700), (600, 100), (200, 900)):
        bench.run(after * NANOSECOND)
        assert bench.read(TIMER_CURRENT) == left


def test_a_one_shot_timer_that_becomes_periodic_does_not_start_again(bench: Bench) -> None:
    bench.write(TIMER_DIVIDE, DIVIDE_BY_1)
    bench.write(LVT_TIMER, 0x40)
    bench.write(TIMER_INITIAL, 1000)
    bench.run(1500 * NANOSECOND)
    assert bench.take() == 0x40
    bench.write(LVT_TIMER, 0x2_0040)
    bench.run(5000 * NANOSECOND)
    assert (bench.read(TIMER_CURRENT), bench.take()) == (0, None)


def test_an_extint_message_lets_the_pics_through(bench: Bench) -> None:
    assert not bench.apic.extint
    bench.apic.receive(Message(EXTINT, 0))
    assert bench.apic.extint
    assert bench.take() is None  # the vector is the PICs'


def test_only_aligned_words_are_written(bench: Bench) -> None:
    bench.apic.write(TPR, 1, 0x50)
    bench.apic.write(TPR + 4, 4, 0x50)
    assert bench.read(TPR) == 0
    assert bench.read(VERSION_AT) & 0xFF == 0x14


def test_state_goes_on_elsewhere(bench: Bench) -> None:
    bench.write(TIMER_DIVIDE, DIVIDE_BY_1)
    bench.write(LVT_TIMER, 0x40)
    bench.write(TIMER_INITIAL, 1000)
    bench.request(0x90, 0x91)
    bench.take()
    bench.run(300 * NANOSECOND)
    other = Bench()
    other.now = 5.0
    other.apic.restore(bench.apic.state())
    assert other.read(TIMER_CURRENT) == bench.read(TIMER_CURRENT)
    other.run(701 * NANOSECOND)
    other.write(EOI, 0)
    assert [other.take(), other.take()] == [0x90, None]
    other.write(EOI, 0)
    assert other.take() == 0x40


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"registers": {}},
        {"irr": -1 << 300},
        {"irr": -1},
        {"timer_ran": "x"},
        {"timer_ran": -1.0},
        {"timer_ran": float("nan")},
        {"timer_ran": 1.0},
        {"registers": dict.fromkeys(Bench().apic.registers, -1)},
    ],
)
def test_a_state_that_is_none_is_refused(bench: Bench, broken: dict[str, object]) -> None:
    state = {**bench.apic.state(), **broken} if broken else {}
    with pytest.raises(ConfigError, match="not saved by this device"):
        bench.apic.restore(state)


# The I/O APIC


class Io:
    """An I/O APIC whose pin 5 leads to vector 0x65 of processor 1."""

    def __init__(self, low: int) -> None:
        self.sent: list[Message] = []
        self.ioapic = IoApic(self.sent.append)
        self.put(REDIRECTION + 11, 1 << 24)
        self.put(REDIRECTION + 10, low)

    def put(self, register: int, value: int) -> None:
        self.ioapic.write(IOREGSEL, 4, register)
        self.ioapic.write(IOWIN, 4, value)

    def get(self, register: int) -> int:
        self.ioapic.write(IOREGSEL, 4, register)
        return self.ioapic.read(IOWIN, 4)


EDGE, LEVEL, MASKED = 0x65, 0x8065, 0x1_0065
REMOTE_IRR = 1 << 14


def test_an_edge_is_sent_once() -> None:
    io = Io(EDGE)
    io.ioapic.set_line(5, 1)
    io.ioapic.set_line(5, 1)
    assert [(m.mode, m.vector, m.destination, m.level) for m in io.sent] == [(FIXED, 0x65, 1, False)]
    io.ioapic.set_line(5, 0)
    io.ioapic.set_line(5, 1)
    assert len(io.sent) == 2


def test_a_level_is_sent_again_after_its_end_while_it_is_there() -> None:
    io = Io(LEVEL)
    io.ioapic.set_line(5, 1)
    assert io.get(REDIRECTION + 10) & REMOTE_IRR
    io.ioapic.set_line(5, 1)
    assert len(io.sent) == 1
    io.ioapic.end_of_interrupt(0x65)
    assert len(io.sent) == 2
    io.ioapic.set_line(5, 0)
    io.ioapic.end_of_interrupt(0x65)
    assert len(io.sent) == 2
    assert not io.get(REDIRECTION + 10) & REMOTE_IRR


def test_a_masked_pin_sends_nothing_and_a_level_waits() -> None:
    io = Io(MASKED | 1 << 15)
    io.ioapic.set_line(5, 1)
    assert io.sent == []
    io.put(REDIRECTION + 10, LEVEL)
    assert len(io.sent) == 1


def test_writing_a_level_entry_while_its_line_is_low_sends_nothing() -> None:
    io = Io(MASKED | 1 << 15)
    io.put(REDIRECTION + 10, LEVEL)
    assert io.sent == []
    io.ioapic.set_line(4, 1)  # a neighbour's
    io.ioapic.set_line(6, 1)
    io.put(REDIRECTION + 10, LEVEL)
    assert io.sent == []


def test_its_registers() -> None:
    io = Io(EDGE)
    assert io.get(1) == 0x0017_0011  # 24 entries, version 0x11
    io.put(0, 0x0A00_0000)
    assert io.get(0) == 0x0A00_0000
    assert io.get(REDIRECTION + 10) == EDGE
    assert io.get(REDIRECTION + 11) == 1 << 24
    io.put(REDIRECTION + 10, EDGE | REMOTE_IRR | 1 << 12)
    assert io.get(REDIRECTION + 10) == EDGE  # read-only bits
    assert io.get(0x80) == 0


def test_the_io_apic_s_state_goes_on_elsewhere() -> None:
    io, other = Io(LEVEL), Io(MASKED)
    io.ioapic.set_line(5, 1)
    other.ioapic.restore(io.ioapic.state())
    other.ioapic.end_of_interrupt(0x65)
    assert len(other.sent) == 1
    with pytest.raises(ConfigError, match="not saved by this device"):
        other.ioapic.restore({"entries": [0]})
