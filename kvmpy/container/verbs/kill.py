"""kill: send a signal to a container's first process, or to all of them."""

from __future__ import annotations

import posix

from kvmpy.container.process import SIGKILL, send_signal, signal_number
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call
    from kvmpy.container.state import State

OPTIONS = {"--all": ""}
SHORT = {"-a": "--all"}
WORDS = ("ID", "[SIGNAL]")
SUMMARY = "send a signal (TERM unless told otherwise)"


def kill(state: State, signal: int, everyone: bool = False) -> None:
    """Send a signal; a container that is paused hears SIGKILL too.

    Raises:
        ContainerError: it does not run (with `everyone` that is no error).
    """
    cgroup = state.cgroup()
    if everyone and cgroup:
        cgroup.kill(signal)
    else:
        try:
            process = state.open_process()
        except ContainerError:
            if everyone:
                return
            raise
        send_signal(process, signal)
        posix.close(process)
    if signal == SIGKILL and cgroup and cgroup.frozen():
        cgroup.freeze(False)


def main(call: Call) -> int:
    """Run the verb."""
    signal = signal_number(call.words[1] if len(call.words) > 1 else "TERM")
    kill(call.find(), signal, call.has("--all"))
    return 0
