"""Figures in the documents are those of docs/figures.json, which the benchmarks write: none is typed by hand."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FIGURE = re.compile(r"\b\d+(?:\.\d+)?(?:e[+-]?\d+)? ?(?:ns|µs|ms|KiB|GiB|seconds|percent|%|times)(?![\w/])")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    path = ROOT / "tools" / "bench" / "figures.py"
    spec = importlib.util.spec_from_file_location("bench_figures", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_figures"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_benchmarks_is_made_of_them(figures: ModuleType) -> None:
    data = figures.load_figures()
    assert set(data) == {"Virtual machines", "Containers", "compare"}
    assert (ROOT / "docs" / "benchmarks.md").read_text() == figures.benchmarks(data)


@pytest.mark.parametrize("name", ["README.md", "docs/two-models.md"])
def test_tables_are_made_of_them_and_no_other_figure_is_there(figures: ModuleType, name: str) -> None:
    text = (ROOT / name).read_text()
    assert text == figures.filled(text, figures.load_figures()["compare"])
    assert figures.BLOCK.findall(text)
    prose = [line for line in figures.BLOCK.sub("", text).splitlines() if not line.startswith("    ")]
    assert FIGURE.findall("\n".join(prose)) == []


def test_what_the_tables_show_stands_in_them(figures: ModuleType) -> None:
    """A median of the data, in the words of the command, in the row and column of the README."""
    compared = figures.load_figures()["compare"]
    question = figures.by_title(compared)["memory of each of 100"]
    text = figures.answer(question, "container")
    assert re.fullmatch(r"[\d.]+ (KiB|MiB)", text)
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if "memory of each of 100" in line)
    assert re.split(r"  +", row.strip())[2] == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1070.4, 3, "1,070"), (0.765, 3, "0.765"), (1.0996, 4, "1.100"), (33.71, 3, "33.7"), (5.0, 3, "5.00"), (0, 3, "0"),
     (0.0813, 3, "0.0813"), (1070400, 3, "1,070,400")],
)  # fmt: skip
def test_numbers_are_plain(figures: ModuleType, value: float, digits: int, text: str) -> None:
    assert figures.plain(value, digits) == text


def test_near_a_limit_there_is_a_digit_more(figures: ModuleType) -> None:
    assert "**1.103 x** (≤ 1.1, **missed**)" in str(figures.Figure("a", 1.1031, 1.1, "x"))
    assert "**0.500 x**" not in str(figures.Figure("a", 0.5004, 0.5, "x"))
    assert "**0.5004 x** (≤ 0.5, **missed**)" in str(figures.Figure("a", 0.5004, 0.5, "x"))
    assert "**2.86 s** (≤ 5)" in str(figures.Figure("a", 2.861, 5, "s"))
