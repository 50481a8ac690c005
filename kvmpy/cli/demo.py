"""kvmpy demo: short shows of how virtualization works, each with its reasons and its proofs."""

from __future__ import annotations

import os
import sys
import textwrap

from kvmpy.cli.arguments import add_accelerator, command_parser
from kvmpy.cli.ending import EndingSignals
from kvmpy.cli.exit_codes import ExitCode
from kvmpy.demos import DEMOS, load
from kvmpy.demos.scene import FAILS, HOLDS, MISSING, SAW, STEP, WHY, Scene

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EPILOG = f"""\
demos:
{chr(10).join(f"  {name:14}{summary}" for name, summary in DEMOS.items())}

A demo says what is about to happen, shows what happened, tells why, and checks each claim it makes.

exit codes:
  0    every claim held
  1    a claim did not hold on this machine
  2    wrong usage
  69   something is missing here, and the message says how to get it; what could be shown was shown
  71   the host failed
  129, 130, 143  SIGHUP, Ctrl-C, SIGTERM

examples:
  kvmpy demo
  kvmpy demo trap
  kvmpy demo paging --accel soft
  kvmpy demo all
"""
WIDEST = 100
# How each piece of the story is shown: what stands before it, and its colour on a terminal (ECMA-48, SGR).
STYLES = {
    STEP: ("", "1"),
    SAW: ("    ", ""),
    WHY: ("  ", "2"),
    HOLDS: ("  ✓ ", "32"),
    FAILS: ("  ✗ NOT SO HERE: ", "31"),
    MISSING: ("  - missing: ", "33"),
}


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("demo", "Show how virtualization works, step by step.", EPILOG)
    p.add_argument("name", nargs="?", choices=[*DEMOS, "all"], metavar="NAME", help="which one (default: list them)")
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
        code = signals.run(lambda: max(show(name, options.accel) for name in names))
    return signals.code if code is None else code


def show(name: str, accelerator: str | None) -> int:
    """Show one demo; return its exit code."""
    storyteller = Storyteller()
    storyteller.title(f"{name}: {DEMOS[name]}")
    demo = load(name)
    with Scene(storyteller.say, accelerator) as scene:
        demo.run(scene)
    storyteller.check(demo.CHECK)
    if scene.failed:
        return ExitCode.CLAIM_FAILED
    return ExitCode.MISSING if scene.lacking else ExitCode.OK


class Storyteller:
    """Prints a story, wrapped to the terminal, with colours if it is one."""

    def __init__(self) -> None:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._steps = 0
        self._width = WIDEST
        if colours:
            self._width = max(40, min(WIDEST, os.get_terminal_size(sys.stdout.fileno()).columns))
        self._colours = colours

    def title(self, text: str) -> None:
        """Print what the demo is about."""
        print(self._coloured(text, "1;4"))

    def say(self, kind: str, text: str) -> None:
        """Print a piece of the story: a numbered step, what was seen as it is, everything else wrapped."""
        mark, colour = STYLES[kind]
        if kind == STEP:
            self._steps += 1
            mark = f"\n{self._steps}. "
        lines = [mark + text] if kind == SAW else self._wrapped(mark, text)
        print("\n".join(self._coloured(line, colour) for line in lines), flush=True)

    def check(self, commands: tuple[str, ...]) -> None:
        """Print how anyone may look for themselves."""
        print("\n" + self._coloured("Check for yourself:", "1"))
        print("\n".join(f"    {command}" for command in commands))

    def _wrapped(self, mark: str, text: str) -> list[str]:
        behind = " " * len(mark.lstrip("\n"))
        return textwrap.wrap(
            text,
            self._width,
            initial_indent=mark,
            subsequent_indent=behind,
            break_long_words=False,
            drop_whitespace=True,
        )

    def _coloured(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and colour else text
