"""What `start` and `delete` do when nothing is unusual, left behind by create as tapes that the launcher plays.

So both verbs start no Python (native/launcher.c). At any surprise, an error of a call that none is expected of, the
launcher starts Python after all, which does the verb whole from whatever is left, and words the error.
"""

from __future__ import annotations

import posix

from kvmpy.container import kernel as k
from kvmpy.container.host import write_file
from kvmpy.container.state import NEW_FILE
from kvmpy.container.tape import Descriptors, Label, Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.cgroup.base import Cgroup
    from kvmpy.container.host import Json
    from kvmpy.container.state import State

HOOKS_OF_START = ("startContainer", "poststart")
PATIENCE = 5  # milliseconds for a process that is just ending
POLLIN = 1


def leave_shortcuts(state: State, pid: int, cgroup: Cgroup | None, config: Json) -> None:
    """Write the tapes; none for a verb that has hooks to run, or processes to look for."""
    hooks = config.get("hooks", {})
    if not any(hooks.get(kind) for kind in HOOKS_OF_START):
        write_file(f"{state.directory}/start.tape", start_tape(state).image(), NEW_FILE)
    kinds = [entry["type"] for entry in config["linux"]["namespaces"]]
    if "pid" in kinds and not hooks.get("poststop"):
        write_file(f"{state.directory}/delete.tape", delete_tape(state, pid, cgroup).image(), NEW_FILE)


def start_tape(state: State) -> Tape:
    """Return verbs/start.py as system calls: ENXIO says that nobody waits at the fifo."""
    tape = Tape(Descriptors())
    fifo = tape.fds.fifo
    tape.call("openat", k.AT_FDCWD, state.fifo, k.O_WRONLY | k.O_NONBLOCK | k.O_CLOEXEC, keep=fifo)
    tape.call("unlink", state.fifo)
    tape.call("write", fifo, b"\0", 1)
    return tape


def delete_tape(state: State, pid: int, cgroup: Cgroup | None) -> Tape:
    """Return verbs/delete.py as system calls, for a container whose first process has ended, and all others with it.

    If the pid is another's by now, that does not end in time, and Python looks closer.
    """
    tape, gone = Tape(Descriptors()), Label()
    process = tape.fds.container
    tape.call("pidfd_open", pid, 0, keep=process, accept=(k.ESRCH,), otherwise=gone)
    tape.call("poll", k.Struct("<ihh", fd=process, events=POLLIN, revents=0), 1, PATIENCE, nonzero=True)
    tape.place(gone)
    for directory in cgroup.directories.values() if cgroup else ():
        tape.call("rmdir", directory, accept=(k.ENOENT,))
    for name in sorted({*posix.listdir(state.directory), "pid", "delete.tape"}):
        tape.call("unlink", f"{state.directory}/{name}", accept=(k.ENOENT,))
    tape.call("rmdir", state.directory)
    return tape
