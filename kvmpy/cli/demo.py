"""kvmpy demo: short shows of how virtualization works, each with its reasons and its proofs."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap

from kvmpy.cli.arguments import add_accelerator, command_parser
from kvmpy.cli.ending import EndingSignals
from kvmpy.cli.exit_codes import ExitCode
from kvmpy.cli.streams import complain
from kvmpy.demos import DEMOS, load
from kvmpy.demos.scene import FAILS, HOLDS, MISSING, NOTICE, SAW, STEP, WHY, Scene

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EPILOG = f"""\
demos:
{chr(10).join(f"  {name:14}{summary}" for name, summary in DEMOS.items())}

A demo says what is about to happen, shows what happened, tells why, and checks
each claim it makes.

exit codes:
  0    every claim held
  1    a claim did not hold on this machine
  2    wrong usage
  69   something is missing here, and the message says how to get it; what could
       be shown was shown
  71   the host failed
  129, 130, 143  SIGHUP, Ctrl-C, SIGTERM

examples:
  kvmpy demo
  kvmpy demo trap
  kvmpy demo paging --accel soft
  kvmpy demo all
  kvmpy demo paging --pause
"""
WIDTH = 80
# How each piece of the story is shown: what stands before it, and its colour on a terminal (ECMA-48, SGR).
STYLES = {
    STEP: ("", "1"),
    SAW: ("    ", ""),
    WHY: ("  ", "2"),
    NOTICE: ("  ", "2"),
    HOLDS: ("  ✓ ", "32"),
    FAILS: ("  ✗ NOT SO HERE: ", "31"),
    MISSING: ("  - missing: ", "33"),
}


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("demo", "Show how virtualization works, step by step.", EPILOG)
    p.add_argument("name", nargs="?", choices=[*DEMOS, "all"], metavar="NAME", help="which one (default: list them)")
    p.add_argument("--pause", action="store_true", help="wait for Enter before each step")
    p.add_argument("--json", action="store_true", help="print one JSON object for each demo instead of the story")
    add_accelerator(p)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """List the demos, or show one, or all."""
    if options.name is None:
        print("\n".join(f"{name:14}{summary}" for name, summary in DEMOS.items()))
        print("\n'kvmpy demo NAME' shows one, 'kvmpy demo all' all of them.")
        return ExitCode.OK
    names = list(DEMOS) if options.name == "all" else [options.name]
    with EndingSignals() as signals:
        code = signals.run(lambda: show_all(names, options))
    return signals.code if code is None else code


def show_all(names: list[str], options: argparse.Namespace) -> int:
    """Show demos one after the other, with a summary behind several; return the worst of their exit codes."""
    teller = Recorder() if options.json else Storyteller(pause=options.pause)
    codes = {name: show(name, options.accel, teller) for name in names}
    if len(names) > 1:
        teller.sum_up(codes)
    return max(codes.values())


def show(name: str, accelerator: str | None, teller: Storyteller | Recorder) -> int:
    """Show one demo; return its exit code."""
    teller.begin(name)
    demo = load(name)
    with Scene(teller.say, accelerator) as scene:
        demo.run(scene)
    code = ExitCode.CLAIM_FAILED if scene.failed else ExitCode.MISSING if scene.lacking else ExitCode.OK
    teller.end(demo.CHECK, code)
    return code


class Storyteller:
    """Prints stories, wrapped to the terminal, with colours if it is one."""

    def __init__(self, *, pause: bool = False) -> None:
        terminal = sys.stdout.isatty()
        self._steps = 0
        self._shown = 0
        self._noticed: set[str] = set()
        self._pause = pause
        self._width = WIDTH
        if terminal:
            self._width = max(40, min(WIDTH, os.get_terminal_size(sys.stdout.fileno()).columns))
        self._colours = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def begin(self, name: str) -> None:
        """Print what the demo is about, behind a rule if there was one before."""
        if self._shown:
            print(f"\n{'─' * self._width}\n")
        self._shown += 1
        self._steps = 0
        print("\n".join(self._coloured(line, "1;4") for line in self._wrapped("", f"{name}: {DEMOS[name]}")))

    def say(self, kind: str, text: str) -> None:
        """Print a piece of the story: a numbered step, what was seen, everything else; what is noticed, once."""
        if kind == NOTICE and text in self._noticed:
            return
        self._noticed.add(text)
        mark, colour = STYLES[kind]
        if kind == STEP:
            self._steps += 1
            mark = f"\n{self._steps}. "
            if self._pause and self._steps > 1:
                self._wait()
        lines = self._seen(text) if kind == SAW else self._wrapped(mark, text)
        print("\n".join(self._coloured(line, colour) for line in lines), flush=True)

    def _wait(self) -> None:
        """Wait for Enter, or for the end of the input; what is asked is no part of the story."""
        complain("\n[Enter]")
        sys.stdin.readline()

    def end(self, commands: tuple[str, ...], _code: int) -> None:
        """Print how anyone may look for themselves: a command, and beside it, or below, what for."""
        print("\n" + self._coloured("Check for yourself:", "1"))
        for line in commands:
            command, _, purpose = line.partition("  ")
            if 4 + len(line) <= self._width:
                print(f"    {line}")
            else:
                print(f"    {command}\n        {purpose.strip()}")

    def sum_up(self, codes: dict[str, int]) -> None:
        """Print how each of several ended."""
        ends = {ExitCode.OK: "every claim held", ExitCode.MISSING: "something is missing here, see above"}
        print(f"\n{'─' * self._width}\n\n{self._coloured(f'{len(codes)} demos', '1')}")
        for name, code in codes.items():
            print(f"  {name:14}{ends.get(code, 'a claim did not hold here, see above')}")

    def _seen(self, text: str) -> list[str]:
        """Return what was seen as it is; what is too long for a line goes on below, further in."""
        mark = STYLES[SAW][0]
        inner = mark + re.match(" *", text)[0] + "    "  # type: ignore[index]
        return self._fill(text, mark, inner) if len(mark + text) > self._width else [mark + text]

    def _wrapped(self, mark: str, text: str) -> list[str]:
        return self._fill(text, mark, " " * len(mark.lstrip("\n")))

    def _fill(self, text: str, first: str, following: str) -> list[str]:
        return textwrap.wrap(
            text, self._width, initial_indent=first, subsequent_indent=following, break_on_hyphens=False
        )

    def _coloured(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and colour else text


class Recorder:
    """Prints a JSON object for each demo: its steps, with what was seen, why, and what held."""

    def begin(self, name: str) -> None:
        """Take up a demo."""
        self._story: dict[str, Any] = {"demo": name, "about": DEMOS[name], NOTICE: [], "steps": []}

    def say(self, kind: str, text: str) -> None:
        """Take a piece of the story."""
        steps: list[dict[str, Any]] = self._story["steps"]
        if kind == STEP:
            steps.append({STEP: text, SAW: [], WHY: [], HOLDS: [], FAILS: [], MISSING: []})
        elif kind == NOTICE or not steps:
            self._story.setdefault(kind, []).append(text)
        else:
            steps[-1][kind].append(text)

    def end(self, commands: tuple[str, ...], code: int) -> None:
        """Print it."""
        print(json.dumps(self._story | {"check": list(commands), "exit_code": code}, ensure_ascii=False), flush=True)

    def sum_up(self, _codes: dict[str, int]) -> None:
        """Say nothing: each object has its exit code."""
