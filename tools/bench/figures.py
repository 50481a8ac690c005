"""What a benchmark gives: figures with their limits, and a section of docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

WIDTH = 100
REPORT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Written by `python tools/bench/run.py --write` and `tools/bench/containers.py --write`: medians of
rounds in which kvmpy and its peer take turns; in brackets the limit. These machines are shared and
noisy: ratios of one run count, milliseconds do not.

"""


@dataclass
class Figure:
    """One line of the report: what was measured, the limit, and whether it holds."""

    what: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False
    detail: str = ""

    @property
    def holds(self) -> bool:
        """True when the measured value is within the limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        bound = "≥" if self.at_least else "≤"
        verdict = "" if self.holds else ", **missed**"
        detail = f"; {self.detail}" if self.detail else ""
        return f"{self.what}: **{self.measured:.3g} {self.unit}** ({bound} {self.limit:g}{verdict}){detail}"


def listing(figures: list[Figure]) -> str:
    """Return figures as a list, with where they were measured."""
    where = f"Measured with Python {platform.python_version()} on Linux {platform.release()}, {os.cpu_count()} CPUs."
    items = [textwrap.fill(str(figure), WIDTH, initial_indent="- ", subsequent_indent="  ") for figure in figures]
    return "\n".join([where, "", *items, ""])


def write_section(title: str, text: str) -> None:
    """Put a section into the report in the place of the one that has its title."""
    sections = dict(re.findall(r"^## (.+)\n\n((?:(?!^## ).*\n?)*)", REPORT.read_text(), re.MULTILINE))
    sections[title] = text
    body = "\n".join(f"## {name}\n\n{sections[name].strip()}\n" for name in sorted(sections, reverse=True))
    REPORT.write_text(HEAD + body)
