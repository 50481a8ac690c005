"""What is measured goes to docs/figures.json, and from there into the documents: nothing in them is typed by hand.

python tools/bench/figures.py     put what is in docs/figures.json into the documents again
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvmpy.compare.figures import Figure as Measured
from kvmpy.compare.figures import shown
from kvmpy.compare.report import processor

WIDTH = 100
ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures.json"
NEAR = 0.05  # of a limit: then one more digit is shown
HEAD = """\
# Benchmarks

Written by `python tools/bench/run.py --write`, `tools/bench/containers.py --write` and
`tools/bench/compare.py --write`, with [the figures as data](figures.json): medians of rounds in
which kvmpy and its peer take turns; in brackets the limit. These machines are shared and noisy:
ratios of one run count, milliseconds do not.
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
        close = abs(self.measured - self.limit) < NEAR * self.limit
        number = plain(self.measured, 4 if close else 3)
        return f"{self.what}: **{number} {self.unit}** ({bound} {self.limit:g}{verdict}){detail}"


def plain(value: float, digits: int) -> str:
    """Return a number with so many digits that count, never as a power of ten."""
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{round(value, decimals):,.{decimals}f}"


def where(load: float) -> dict[str, str]:
    """Return what figures were taken on; `load` is the host's when it began."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{processor()}, {os.cpu_count()} CPUs",
        "kernel": f"Linux {platform.release()}",
        "Python": platform.python_version(),
        "load": f"{load:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end",
    }


def write_section(title: str, figures: list[Figure], load: float) -> None:
    """Keep what was measured, and write the documents anew."""
    keep(title, {"where": where(load), "figures": [asdict(figure) for figure in figures]})


def keep(title: str, section: dict[str, Any]) -> None:
    """Keep a section of the figures, and write the documents anew."""
    data = load_figures()
    data[title] = section
    FIGURES.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    write_pages(data)


def load_figures() -> dict[str, Any]:
    """Return all that was measured, by section."""
    data: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return data


def listing(figures: list[Figure]) -> str:
    """Return figures as a list."""
    items = [textwrap.fill(str(figure), WIDTH, initial_indent="- ", subsequent_indent="  ") for figure in figures]
    return "\n".join(items)


def benchmarks(data: dict[str, Any]) -> str:
    """Return the page of benchmarks."""
    sections = [HEAD]
    for title in ("Virtual machines", "Containers"):
        if title in data:
            places = "; ".join(f"{name} {value}" for name, value in data[title]["where"].items())
            place = textwrap.fill(f"Measured on {places}.", WIDTH)
            figures = [Figure(**figure) for figure in data[title]["figures"]]
            sections.append(f"## {title}\n\n{place}\n\n{listing(figures)}\n")
    return "\n".join(sections)


# Blocks of other documents: between these two lines, by name.
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SUBJECTS = ("process", "container", "vm", "software CPU")
# The rows that the README shows, by title, and what stands beside the container and the machine.
README_ROWS = (
    "from a command to its end", "from a process that is warm", "100 made", "memory of each of 100", "a system call",
    "an exit: OUT to a device", "speed of arithmetic / native",
)  # fmt: skip
BESIDE = {"crun": "container", "runc": "container", "QEMU (TCG)": "vm"}


def answer(question: dict[str, Any], name: str) -> str:
    """Return an answer in the words of the report; nothing where it was not asked or is missing."""
    found = question["answers"].get(name, {})
    if figure := found.get("figure"):
        return shown(Measured(**figure).median, question["unit"])
    return str(found.get("words") or "")


def by_title(compared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the questions of a comparison by their titles."""
    return {question["title"]: question for question in compared["questions"]}


def readme_table(compared: dict[str, Any]) -> str:
    """Return some rows of the comparison as the command prints them, to be shown as code."""
    questions = by_title(compared)
    rows = [["", *SUBJECTS]]
    for title in README_ROWS:
        question = questions[title]
        rows.append([title, *(answer(question, name) for name in SUBJECTS)])
        for other, column in BESIDE.items():
            if text := answer(question, other):
                rows.append([f"  by {other}", *(text if name == column else "" for name in SUBJECTS)])
    widths = [max(len(row[n]) for row in rows) + 2 for n in range(len(rows[0]))]
    lines = [
        "    " + "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n" + "\n".join(["    $ kvmpy compare", *lines, "      …"]) + "\n\n"


def markdown(rows: list[list[str]]) -> str:
    """Return rows as a table of Markdown, the first its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n" + "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n\n"


def table(compared: dict[str, Any], titles: dict[str, str], names: tuple[str, ...] = SUBJECTS) -> str:
    """Return questions, by their titles and how a document words them, as a table."""
    questions = by_title(compared)
    rows = [["", *names]]
    rows += [[words, *(answer(questions[title], name) or "-" for name in names)] for title, words in titles.items()]
    return markdown(rows)


BORDER = {
    "a system call": "a system call",
    "an exit: CPUID, without Python": "an exit that KVM answers, or the engine: CPUID",
    "an exit: OUT to a device": "an exit that Python answers: OUT to a port",
    "an exit: MMIO write to a device": "the same to a device's memory",
    "speed of arithmetic / native": "arithmetic, as a part of native speed",
}
COSTS = {
    "from a command to its end": "one, by a command",
    "from a process that is warm": "one, from a warm process",
    "1000 made": "a thousand made",
    "memory of each of 1000": "memory of each of a thousand, the kernel's for them included",
}
SEEN = {
    "which kernel it runs on": "which kernel?",
    "processes it sees": "which processes?",
    "network interfaces it sees": "which network interfaces?",
    "memory it sees": "how much memory?",
    "can it read a file of the host's?": "can it read a file of the host's?",
    "can it reach a server on the host's 127.0.0.1?": "can it reach a server on the host?",
}


def taken_on(compared: dict[str, Any]) -> str:
    """Return a sentence on the machine."""
    machine = compared["machine"]
    return f"Taken on {machine['processor']}; {machine['kernel']}; load {machine['load']}; kvmpy {machine['kvmpy']}."


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "readme": readme_table,
    "seen": lambda compared: table(compared, SEEN, SUBJECTS[:3]),
    "border": lambda compared: table(compared, BORDER),
    "costs": lambda compared: table(compared, COSTS),
    "peers": lambda compared: table(
        compared, {"from a command to its end": "from a command to its end"},
        ("kvmpy-oci", "crun", "runc", "vm", "QEMU (TCG)", "QEMU (KVM)"),
    ),
    "host": lambda compared: f"\n{textwrap.fill(taken_on(compared), WIDTH)}\n\n",
}  # fmt: skip
PAGES = {ROOT / "README.md", ROOT / "docs" / "two-models.md"}


def filled(text: str, compared: dict[str, Any]) -> str:
    """Return a document with its blocks made of the comparison."""
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]](compared) + found[3], text)


def write_pages(data: dict[str, Any]) -> None:
    """Write what was measured into the documents."""
    (ROOT / "docs" / "benchmarks.md").write_text(benchmarks(data))
    if "compare" in data:
        for page in PAGES:
            page.write_text(filled(page.read_text(), data["compare"]))


if __name__ == "__main__":
    write_pages(load_figures())
