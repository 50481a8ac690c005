"""Of many at once: what is theirs is found, and what the host disturbed is no number."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare.made import Made

from kvmpy.compare import holding
from kvmpy.compare.subjects import Process


def sample(host: float, drift: float = 0.0) -> holding.Held:
    return holding.Held(1.0, holding.Memory(10.0, 20.0), host, drift)


@pytest.mark.parametrize(
    ("samples", "missing"),
    [
        ([sample(100), sample(104), sample(98)], ""),
        ([sample(100, 30), sample(104, 30), sample(98, -30)], "the host moved by 30.0 KiB meanwhile"),
        ([sample(100), sample(10), sample(400)], "the host moved by 97.5 KiB meanwhile"),
        ([sample(-5), sample(-6), sample(-4)], "the host moved by 0.500 KiB meanwhile"),
    ],
)
def test_what_the_host_disturbed_is_no_number(samples: list[holding.Held], missing: str) -> None:
    """Either it moved as much without, or what it misses differs from time to time, or is less than nothing."""
    answer = holding.HOLDING[-1].answer(samples)
    assert answer.missing == (f"not measurable: {missing}" if missing else "")
    assert bool(answer.figure) != bool(missing)


def test_what_is_owned_does_not_depend_on_what_the_host_does(tmp_path: Path) -> None:
    """Three times a hundred processes: within 10 % of one another, each with a stack and tables of its own."""
    samples = holding.hold_often(Process(tmp_path), 100, 3)
    figure = holding.HOLDING[1].answer(samples).figure
    assert figure
    assert figure.spread <= 0.05
    assert 4 < figure.median < 500


def test_memory_of_what_is_held_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times 16 MiB of this process's own."""
    monkeypatch.setattr(holding, "SETTLE", 0.0)
    held = holding.hold(Made("memory", mib=16), 4)
    assert not held.missing
    assert 15.5 * 1024 < held.memory.resident < 17 * 1024
    assert held.owned == held.memory.resident + held.memory.kernel
    assert held.milliseconds > 0


def test_pages_that_processes_share_are_counted_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight processes of one program: its page is in the page cache once, and shared by all.

    A ninth stands for this process, whose own memory comes and goes.
    """
    monkeypatch.setattr(holding, "SETTLE", 0.0)
    subject = Process(tmp_path)
    with subject.held() as quiet:
        monkeypatch.setattr(holding.os, "getpid", lambda: quiet)
        held = holding.hold(subject, 8)
    assert held.memory.shared >= 4
    assert 0 < held.memory.resident < 64


def test_holding_stops_before_the_host_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "SPARE", 1 << 40)
    assert "MiB left" in holding.hold(Made("memory"), 10).missing
