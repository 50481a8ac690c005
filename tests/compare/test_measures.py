"""Figures are medians of what was measured, and what could not be measured is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare.made import Made

from kvmpy.compare import measures
from kvmpy.compare.figures import Figure, shown
from kvmpy.compare.subjects import Subject
from kvmpy.errors import HostError

MIB = 1 << 20


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


def test_the_code_beside_a_figure_is_the_code() -> None:
    text = measures.code_of(measures.timed)
    assert text in Path(measures.__file__).read_text()
