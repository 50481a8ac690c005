"""delete: remove all that is left of a container."""

from __future__ import annotations

import posix

from kvmpy.container.host import exists, remove
from kvmpy.container.process import SIGKILL, bury, bury_inside, pid_namespace, send_signal, wait_for_end
from kvmpy.container.state import CREATED, CREATING, STOPPED, check_name
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.container.command_line import Call
    from kvmpy.container.state import State, Store

OPTIONS = {"--force": ""}
SHORT = {"-f": "--force"}
WORDS = ("ID",)
SUMMARY = "remove a container; with --force also one that runs"
PATIENCE = 10_000  # milliseconds that a killed process gets to end
PROMPT = 500  # after which it is looked at what it may wait for


def delete(state: State, force: bool, warn: Callable[[str], None]) -> None:
    """Remove a container and everything that runs in it.

    Raises:
        ContainerError: it runs, and `force` is not asked for; or something of it cannot be removed.
    """
    status = state.status()
    if status not in (STOPPED, CREATED) and not force:
        raise ContainerError(f"cannot delete container {state.name} that is not stopped: {status}")
    creator = state.data["creator"][0]
    if status == CREATING and creator != posix.getpid():
        _end(creator)
    cgroup = state.cgroup()
    try:
        process = state.open_process()
    except ContainerError:
        pass
    else:
        namespace = pid_namespace(state.process()[0])
        send_signal(process, SIGKILL)
        if cgroup:
            cgroup.freeze(False)
        if not wait_for_end(process, PROMPT):
            bury_inside(namespace)
            wait_for_end(process, PATIENCE)
        posix.close(process)
    bury(*state.process())
    if cgroup:
        cgroup.kill_all()
        cgroup.remove()
    try:
        state.run_hooks("poststop", STOPPED)
    except ContainerError as error:
        warn(str(error))
    state.forget()


def _end(creator: int) -> None:
    """End a create that is under way, so that it undoes what it began."""
    try:
        process = posix.pidfd_open(creator, 0)
    except ProcessLookupError:
        return
    send_signal(process, SIGKILL)
    wait_for_end(process, PATIENCE)
    posix.close(process)


def delete_by_name(store: Store, name: str, force: bool, warn: Callable[[str], None]) -> None:
    """Remove a container; with `force`, one that is not there is one that is gone."""
    try:
        state = store.find(name)
    except ContainerError:
        if not force:
            raise
        forget_remains(store, name)
    else:
        delete(state, force, warn)


def forget_remains(store: Store, name: str) -> None:
    """Remove the directory of a container whose create was cut off before it had written a word."""
    check_name(name)
    directory = f"{store.root}/{name}"
    if exists(directory):
        for entry in posix.listdir(directory):
            remove(f"{directory}/{entry}")
        posix.rmdir(directory)


def main(call: Call) -> int:
    """Run the verb."""
    delete_by_name(call.store, call.words[0], call.has("--force"), call.warn)
    return 0
