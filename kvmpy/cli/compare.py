"""kvmpy compare: the same questions asked of a process, a container and a virtual machine."""

from __future__ import annotations

import json
import os
import sys
import time

from kvmpy.cli.arguments import command_parser
from kvmpy.cli.ending import EndingSignals
from kvmpy.cli.exit_codes import ExitCode
from kvmpy.errors import HostError
from kvmpy.packages import package

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from kvmpy.compare.figures import Answer, Question, Report

EPILOG = """\
Everything is measured here and now: time to start, memory of each, many at
once, the cost of entering the kernel, speed, and what each sees, reaches, and
does to others by its crash. What this machine lacks is said where it is missed.

exit codes:
  0    everything was measured
  2    wrong usage
  69   something is missing here: the report says what, and how to get it, and
       has all the rest
  71   the host failed, or FILE cannot be written
  74   standard output was closed
  129, 130, 143  SIGHUP, Ctrl-C, SIGTERM

examples:
  kvmpy compare --quick
  kvmpy compare --html report.html
  kvmpy compare --json | jq '.questions[] | .title'
"""


WIDTH = 80
QUESTION_WIDTH, ANSWER_WIDTH = 24, 14


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("compare", "Compare a process, a container and a virtual machine.", EPILOG)
    p.add_argument("--quick", action="store_true", help="fewer rounds, at most a hundred at once: about a minute")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    p.add_argument("--html", metavar="FILE", help="write a page with charts, methods and code, too")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """Compare, and print or write the report."""
    from kvmpy.compare.report import compare

    package("rich")
    if options.html:
        check_writable(options.html)
    with EndingSignals() as signals:
        report = signals.run(lambda: with_progress(lambda tell: compare(options.quick, tell)))
    if report is None:
        return signals.code
    if options.html:
        write_page(report, options.html)
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        show(report)
    return ExitCode.MISSING if report.missing else ExitCode.OK


def with_progress(work: Callable[[Callable[[str, int, int], None]], Report]) -> Report:
    """Do the work, with a bar on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=1)
        return work(lambda what, done, of: progress.update(task, description=what, completed=done, total=of))


def show(report: Report) -> None:
    """Print the report as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from kvmpy.compare.report import GROUPS

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    columns = [name for name in report.subjects if name not in report.beside]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", width=max(QUESTION_WIDTH, min(2 * QUESTION_WIDTH, console.width - 4 * ANSWER_WIDTH)))
    for name in columns:
        table.add_column(name, overflow="fold")
    for group, title in GROUPS.items():
        questions = [question for question in report.questions if question.group == group]
        if questions:
            table.add_section()
            table.add_row(title, style="bold")
        for question in questions:
            table.add_row(f" {question.title}", *(cell(question, name, report) for name in columns))
            for other, beside in report.beside.items():
                if other in question.answers and not question.answers[other].missing:
                    cells = (cell(question, other, report) if name == beside else "" for name in columns)
                    table.add_row(f"   by {other}", *cells)
    for name, value in report.machine.items():
        console.print(f"{name}: {value}", markup=False)
    console.print(table)
    for name, reason in report.missing.items():
        console.print(f"{name}: {reason}", markup=False, soft_wrap=True)


def cell(question: Question, name: str, report: Report) -> str:
    """Return an answer as the table has it."""
    from rich.markup import escape

    from kvmpy.compare.figures import told

    answer: Answer | None = question.answers.get(name)
    if answer is None:
        return ""
    if answer.missing:
        return "-" if name in report.missing else escape(answer.missing)
    return escape(told(answer.figure, question.unit)) if answer.figure else escape(answer.words)


def check_writable(path: str) -> None:
    """Raise a HostError now, and not after a minute, if the page cannot be written."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise HostError(f"--html {path}: cannot be written; choose a file in a directory of yours")


def write_page(report: Report, path: str) -> None:
    """Write the report as a page."""
    from kvmpy.compare.page import page

    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page(report, time.strftime("%Y-%m-%d %H:%M %Z")))
    except OSError as error:
        raise HostError(f"--html {path}: {os.strerror(error.errno or 0).lower()}") from None
