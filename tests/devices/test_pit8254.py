"""The 8254, after its data sheet, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmpy.devices.pit8254 import FREQUENCY, Pit8254, SystemControl
from kvmpy.errors import ConfigError


class Bench:
    """A PIT on a clock of pulses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ticks = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.pit = Pit8254(self._tick, clock=lambda: self.now, call_at=lambda at, call: self.timers.append((at, call)))

    def _tick(self) -> None:
        self.ticks += 1

    def run(self, pulses: int) -> None:
        """Let so many pulses pass, and every timer fire at its time."""
        end = self.now + pulses / FREQUENCY
        while due := [timer for timer in self.timers if timer[0] <= end + 1e-9]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end

    def program(self, counter: int, mode: int, count: int, *, access: int = 3, bcd: int = 0) -> None:
        self.pit.write(3, 1, counter << 6 | access << 4 | mode << 1 | bcd)
        if access & 1:
            self.pit.write(counter, 1, count & 0xFF)
        if access & 2:
            self.pit.write(counter, 1, count >> 8 & 0xFF)

    def count(self, counter: int) -> int:
        """Latch and read two bytes."""
        self.pit.write(3, 1, counter << 6)
        low = self.pit.read(counter, 1)
        return low | self.pit.read(counter, 1) << 8


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("mode", [2, 3, 6, 7])
def test_periodic_modes_tick_once_a_period(bench: Bench, mode: int) -> None:
    bench.program(0, mode, 1000)
    bench.run(999)
    assert bench.ticks == 0
    bench.run(1)
    assert bench.ticks == 1
    bench.run(10_000)
    assert bench.ticks == 11


@pytest.mark.parametrize("mode", [0, 4])
def test_one_shot_modes_tick_once(bench: Bench, mode: int) -> None:
    bench.program(0, mode, 500)
    bench.run(5000)
    assert bench.ticks == 1


def test_zero_is_the_largest_count(bench: Bench) -> None:
    bench.program(0, 2, 0)
    bench.run(0xFFFF)
    assert bench.ticks == 0
    bench.run(1)
    assert bench.ticks == 1


def test_the_count_runs_down_and_starts_over(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.run(300)
    assert bench.count(0) == 700
    bench.run(800)
    assert bench.count(0) == 900


def test_a_square_wave_counts_by_two(bench: Bench) -> None:
    bench.program(0, 3, 1000)
    bench.run(300)
    assert bench.count(0) == 400
    bench.run(250)
    assert bench.count(0) == 900


def test_a_one_shot_count_goes_on_below_zero(bench: Bench) -> None:
    bench.program(0, 0, 10)
    bench.run(13)
    assert bench.count(0) == 0xFFFD


def test_a_latch_stays_until_it_is_read(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.run(100)
    bench.pit.write(3, 1, 0)
    bench.run(100)
    bench.pit.write(3, 1, 0)  # ignored: the first was not read yet
    assert bench.pit.read(0, 1) | bench.pit.read(0, 1) << 8 == 900
    assert bench.pit.read(0, 1) | bench.pit.read(0, 1) << 8 == 800


@pytest.mark.parametrize(("access", "count", "period"), [(1, 0x34, 0x34), (2, 0x1200, 0x1200)])
def test_a_count_can_be_one_byte(bench: Bench, access: int, count: int, period: int) -> None:
    bench.program(0, 2, count, access=access)
    bench.run(period)
    assert bench.ticks == 1


def test_bcd(bench: Bench) -> None:
    bench.program(0, 2, 0x0100, bcd=1)
    bench.run(100)
    assert bench.ticks == 1
    bench.run(25)
    assert bench.count(0) == 0x75


def test_read_back_gives_status_then_count(bench: Bench) -> None:
    """Data sheet, figure 12: OUT, null count, access, mode, BCD."""
    bench.program(2, 3, 400)
    bench.pit.write(3, 1, 0xC0 | 1 << 3)  # both, of counter 2
    assert bench.pit.read(2, 1) == 0x80 | 3 << 4 | 3 << 1
    assert bench.pit.read(2, 1) | bench.pit.read(2, 1) << 8 == 400
    bench.pit.write(3, 1, 2 << 6 | 3 << 4 | 0 << 1)  # a new mode, not loaded yet
    bench.pit.write(3, 1, 0xE0 | 1 << 3)
    assert bench.pit.read(2, 1) == 0x40 | 3 << 4


def test_a_control_word_stops_the_counter(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.run(1500)
    bench.pit.write(3, 1, 0x34)
    bench.run(5000)
    assert bench.ticks == 1


def test_who_is_late_catches_up_but_not_for_ever(bench: Bench) -> None:
    bench.program(0, 2, 100)
    bench.now += 10_000_050 / FREQUENCY
    bench.run(0)
    assert 1 <= bench.ticks <= 70


def test_the_speaker_s_gate_starts_counter_2(bench: Bench) -> None:
    """A delay as firmware makes it: mode 0 on counter 2, watched in bit 5 of port 0x61."""
    control = SystemControl(bench.pit, lambda: bench.now)
    control.write(0, 1, 1)
    bench.program(2, 0, 1193)
    assert not control.read(0, 1) & 0x20
    bench.run(1193)
    assert control.read(0, 1) & 0x21 == 0x21


def test_state_goes_on_elsewhere(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.run(400)
    other = Bench()
    other.now = 77.0
    other.pit.restore(bench.pit.state())
    assert other.count(0) == bench.count(0) == 600
    other.run(599)
    assert other.ticks == 0
    other.run(2)
    assert other.ticks == 1


@pytest.mark.parametrize("mode", range(6))
def test_a_counter_that_was_never_loaded_stands_still(bench: Bench, mode: int) -> None:
    """Its count is undefined, but does not run; OUT is low in mode 0, high in the others (figures 15 to 20)."""
    bench.pit.write(3, 1, 0xB0 | mode << 1)
    first = bench.count(2)
    bench.run(500)
    assert bench.count(2) == first
    assert bench.pit.counters[2].output() == int(mode != 0)


@pytest.mark.parametrize("mode", [1, 2, 3, 5])
def test_the_gate_s_rising_edge_begins_anew(bench: Bench, mode: int) -> None:
    counter = bench.pit.counters[2]
    bench.program(2, mode, 1000)
    counter.set_gate(1)
    bench.run(100)
    assert bench.count(2) == (800 if mode == 3 else 900)
    counter.set_gate(1)  # a level is no edge
    assert bench.count(2) == (800 if mode == 3 else 900)
    counter.set_gate(0)
    counter.set_gate(1)
    assert bench.count(2) == 1000


@pytest.mark.parametrize("mode", [0, 4])
def test_a_low_gate_holds_the_count(bench: Bench, mode: int) -> None:
    """And it goes on where it was (data sheet, "Gate Pin Operations Summary")."""
    counter = bench.pit.counters[2]
    bench.program(2, mode, 1000)
    bench.run(300)
    assert bench.count(2) == 1000
    counter.set_gate(1)
    bench.run(300)
    counter.set_gate(0)
    bench.run(5000)
    assert bench.count(2) == 700
    counter.set_gate(1)
    bench.run(100)
    assert bench.count(2) == 600


@pytest.mark.parametrize("mode", [2, 3])
def test_a_low_gate_sets_the_output_of_the_periodic_modes(bench: Bench, mode: int) -> None:
    counter = bench.pit.counters[2]
    counter.set_gate(1)
    bench.program(2, mode, 1000)
    bench.run(999)
    assert counter.output() == 0
    counter.set_gate(0)
    assert counter.output() == 1


def test_a_counter_that_is_held_is_so_elsewhere(bench: Bench) -> None:
    bench.pit.counters[2].set_gate(1)
    bench.program(2, 0, 1000)
    bench.run(300)
    bench.pit.counters[2].set_gate(0)
    bench.run(100)
    other = Bench()
    other.now = 33.0
    other.pit.restore(bench.pit.state())
    other.run(100)
    assert other.count(2) == 700
    other.pit.counters[2].set_gate(1)
    other.run(100)
    assert other.count(2) == 600


COUNTER = Bench().pit.state()["counters"][0]  # type: ignore[index]


@pytest.mark.parametrize(
    "state",
    [
        {}, {"counters": []}, {"counters": 5}, {"counters": [{}] * 3}, {"counters": [None] * 3},
        *({"counters": [{**COUNTER, **broken}] * 3} for broken in (
            {"reload": 0}, {"reload": "x"}, {"mode": 7}, {"access": 0}, {"seconds": -1.0}, {"seconds": "x"},
            {"seconds": float("nan")}, {"held": None}, {"latched": 1 << 20},
        )),
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(bench: Bench, state: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="not saved by this device"):
        bench.pit.restore(state)


def test_any_bytes_do_no_harm(bench: Bench) -> None:
    for value in range(256):
        for offset in range(4):
            bench.pit.write(offset, 1, (value * 37 + offset) & 0xFF)
            assert 0 <= bench.pit.read(offset, 1) <= 0xFF
        bench.run(value)
