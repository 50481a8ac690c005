"""start: let a created container's program run."""

from __future__ import annotations

import posix

from kvmpy.container.host import remove
from kvmpy.container.state import CREATED, RUNNING, STOPPED
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.container.command_line import Call
    from kvmpy.container.state import State

OPTIONS: dict[str, str] = {}
WORDS = ("ID",)
SUMMARY = "start the program of a container that create made"


def start(state: State, warn: Callable[[str], None]) -> None:
    """Let the container's program run; `warn` hears of hooks that fail when it is too late to stop it.

    Raises:
        ContainerError: it is not in the state created, or a startContainer hook failed.
    """
    if state.status() != CREATED:
        raise ContainerError(_why_not(state))
    pid = state.live_pid()
    state.run_hooks("startContainer", CREATED, pid)
    try:
        fifo = posix.open(state.fifo, posix.O_WRONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
    except OSError:  # ENXIO: nobody reads it any more
        raise ContainerError(_why_not(state)) from None
    try:
        remove(state.fifo)
        posix.write(fifo, b"\0")
    finally:
        posix.close(fifo)
    try:
        state.run_hooks("poststart", RUNNING, pid)
    except ContainerError as error:
        warn(str(error))


def _why_not(state: State) -> str:
    if state.status() == STOPPED:
        return f"container {state.name}: cannot start a container that has stopped"
    return f"container {state.name}: cannot start an already running container"


def main(call: Call) -> int:
    """Run the verb."""
    start(call.find(), call.warn)
    return 0
