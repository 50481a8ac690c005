"""Figures are medians of what was measured, and what could not be measured is told."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmpy.compare import measures
from kvmpy.compare.figures import Figure, shown
from kvmpy.compare.subjects import Process, Subject
from kvmpy.errors import HostError

MIB = 1 << 20


class Made(Subject):
    """A subject of the test's own; each that is held takes some memory."""

    what = "made up"

    def __init__(self, name: str, mib: int = 0) -> None:
        super().__init__()
        self.name = name
        self._mib = mib

    @contextmanager
    def held(self) -> Iterator[object]:
        with mmap.mmap(-1, max(self._mib, 1) * MIB) as memory:
            for at in range(0, self._mib * MIB, 4096):
                memory[at] = 1
            yield memory


def test_a_figure_is_the_median_with_its_quartiles() -> None:
    """The inclusive method, as numpy.percentile and R's type 7 have it: quartiles of 1..5 are 2, 3, 4."""
    assert Figure.of([5, 3, 1, 4, 2]) == Figure(3, 2, 4, 5)
    assert Figure.of([1, 2, 3, 4]) == Figure(2.5, 1.75, 3.25, 4)
    assert Figure.of([7]) == Figure(7, 7, 7, 1)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5123, "ms", "512 µs"),
        (1234, "ms", "1.23 s"),
        (0.0, "ms", "0.000 ms"),
        (99.94, "ns", "99.9 ns"),
        (1536, "KiB", "1.50 MiB"),
        (0.25, "x", "0.250 x"),
        (3 * 1024 * 1024, "KiB", "3.00 GiB"),
        (12.345, "", "12.3"),
    ],
)
def test_values_are_shown_in_a_unit_that_suits_them(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_everyone_has_a_turn_in_every_round() -> None:
    turns: list[str] = []

    def sample(subject: Subject) -> float:
        turns.append(subject.name)
        return 100.0 + len(turns)

    answers = measures.sampled([Made("a"), Made("b")], 3, sample)
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert answers["a"].figure == Figure.of([101, 103, 105])


def test_one_that_fails_is_left_out_with_the_reason() -> None:
    def sample(subject: Subject) -> float:
        if subject.name == "bad":
            raise HostError("no such luck")
        return 1.0

    answers = measures.sampled([Made("bad"), Made("good")], 3, sample)
    assert (answers["bad"].missing, answers["bad"].figure) == ("no such luck", None)
    assert answers["good"].figure == Figure(1, 1, 1, 3)


def test_one_that_is_missing_is_not_asked() -> None:
    absent = Made("absent")
    absent.missing = "not installed"
    answers = measures.sampled([absent], 3, lambda _subject: pytest.fail("it was asked"))
    assert answers["absent"].missing == "not installed"


@pytest.mark.parametrize(("seconds", "times"), [(2, 3), (5, 1)])
def test_a_slow_one_is_asked_three_times_and_a_very_slow_one_once(
    seconds: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, seconds))
    monkeypatch.setattr(measures.time, "perf_counter", lambda: float(next(clock)))
    answers = measures.sampled([Made("slow")], 10, lambda _subject: 1.0)
    assert answers["slow"].figure is not None
    assert answers["slow"].figure.count == times


@pytest.mark.parametrize(("values", "times"), [([100.0, 101.0] * 50, 4), ([100.0, 300.0, 200.0] * 50, 12)])
def test_what_lies_far_apart_is_asked_for_longer(values: list[float], times: int) -> None:
    """Four rounds, and up to three times as many until the quartiles are within 10 % of one another."""
    given = iter(values)
    answers = measures.sampled([Made("a")], 4, lambda _subject: next(given))
    assert answers["a"].figure is not None
    assert answers["a"].figure.count == times


def sample(host: float, drift: float = 0.0) -> measures.Held:
    return measures.Held(1.0, measures.Memory(10.0, 20.0), host, drift)


@pytest.mark.parametrize(
    ("samples", "missing"),
    [
        ([sample(100), sample(104), sample(98)], ""),
        ([sample(100, 30), sample(104, 30), sample(98, -30)], "the host moved by 30.0 KiB meanwhile"),
        ([sample(100), sample(10), sample(400)], "the host moved by 97.5 KiB meanwhile"),
        ([sample(-5), sample(-6), sample(-4)], "the host moved by 0.500 KiB meanwhile"),
    ],
)
def test_what_the_host_disturbed_is_no_number(samples: list[measures.Held], missing: str) -> None:
    """Either it moved as much without, or what it misses differs from time to time, or is less than nothing."""
    answer = measures.HOLDING[-1].answer(samples)
    assert answer.missing == (f"not measurable: {missing}" if missing else "")
    assert bool(answer.figure) != bool(missing)


def test_what_is_owned_does_not_depend_on_what_the_host_does(tmp_path: Path) -> None:
    """Three times a hundred processes: within 10 % of one another, each with a stack and tables of its own."""
    samples = measures.hold_often(Process(tmp_path), 100, 3)
    figure = measures.HOLDING[1].answer(samples).figure
    assert figure
    assert figure.spread <= 0.05
    assert 4 < figure.median < 500


def test_memory_of_what_is_held_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times 16 MiB of this process's own."""
    monkeypatch.setattr(measures, "SETTLE", 0.0)
    held = measures.hold(Made("memory", mib=16), 4)
    assert not held.missing
    assert 15.5 * 1024 < held.memory.resident < 17 * 1024
    assert held.owned == held.memory.resident + held.memory.kernel
    assert held.milliseconds > 0


def test_pages_that_processes_share_are_counted_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight processes of one program: its page is in the page cache once, and shared by all.

    A ninth stands for this process, whose own memory comes and goes.
    """
    monkeypatch.setattr(measures, "SETTLE", 0.0)
    subject = Process(tmp_path)
    with subject.held() as quiet:
        monkeypatch.setattr(measures.os, "getpid", lambda: quiet)
        held = measures.hold(subject, 8)
    assert held.memory.shared >= 4
    assert 0 < held.memory.resident < 64


def test_holding_stops_before_the_host_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "SPARE", 1 << 40)
    assert "MiB left" in measures.hold(Made("memory"), 10).missing


def test_the_code_beside_a_figure_is_the_code() -> None:
    text = measures.code_of(measures.timed)
    assert text in Path(measures.__file__).read_text()
