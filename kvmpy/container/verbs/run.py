"""run: create, start, and stay until the container's program ends."""

from __future__ import annotations

import posix

from kvmpy.container.foreground import Ending, SignalsWait, Terminal, wait
from kvmpy.container.verbs import create as creating
from kvmpy.container.verbs.delete import delete
from kvmpy.container.verbs.start import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.container.command_line import Call
    from kvmpy.container.verbs.create import Creation

OPTIONS = {**creating.OPTIONS, "--detach": "", "--keep": ""}
SHORT = {**creating.SHORT, "-d": "--detach"}
WORDS = ("ID",)
SUMMARY = "create and start a container, and wait for its end"


def run_in_foreground(
    creation: Creation,
    warn: Callable[[str], None],
    *,
    keep: bool = False,
    fatal: bool = False,
    output: tuple[int, Callable[[bytes], None]] | None = None,
    seconds: float | None = None,
) -> Ending:
    """Run a container to its end, and tell how it ended. Nothing is left, unless `keep`.

    `fatal` is as in foreground.Signals, `output` and `seconds` as in foreground.wait.
    """
    terminal = Terminal() if creation.plan.terminal and creation.extras.console < 0 else None
    if terminal:
        creation.extras.console = terminal.console
    try:
        with SignalsWait():
            state = creation.run()
            try:
                if terminal:
                    terminal.receive()
                pid, begin = state.process()[0], lambda: start(state, warn)
                return wait(pid, terminal, fatal=fatal, started=begin, output=output, seconds=seconds)
            finally:
                if not keep:
                    delete(state, True, warn)
    finally:
        if terminal:
            terminal.__exit__()


def main(call: Call) -> int:
    """Run the verb."""
    name = call.words[0]
    bundle = call.value("--bundle") or posix.getcwd()
    creation = creating.prepare(call.store, name, bundle, creating.extras_of(call))
    if not call.has("--detach"):
        return run_in_foreground(creation, call.warn, keep=call.has("--keep")).code
    start(creation.run(), call.warn)
    return 0
