"""Containers from Python: the verbs of the runtime as methods, for a process that makes many.

    with Container.from_wish(Wish("rootfs", ["sleep", "1000"], memory=64 << 20)) as box:
        box.start()
        print(box.exec(["ps"]).stdout)

A warm process makes a container in a fifth of the time that a runtime called for each verb takes.
"""

from __future__ import annotations

import os
import tempfile
import uuid

from kvmpy.container.foreground import SignalsWait
from kvmpy.container.host import start_time
from kvmpy.container.process import SIGKILL, exit_code, signal_number, wait_for_end
from kvmpy.container.simple import Wish, configuration, layer_of
from kvmpy.container.state import STOPPED, Store
from kvmpy.container.verbs import delete, events, kill, pause, resume, start, update
from kvmpy.container.verbs.create import Creation, Extras, prepare
from kvmpy.container.verbs.exec import execute
from kvmpy.errors import ContainerError, DeadlineError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from kvmpy.container.host import Json
    from kvmpy.container.state import State

NO_CODE = -1


@record
class Finished:
    """How a program ended: its exit code, 128 + the signal it died of, and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


class Container:
    """A container that this process made, or found by name. Use as a context manager: it is deleted at the end.

    Everything raises ContainerError when it cannot be done. Containers that kvmpy-oci made can be found here, and the
    other way round, if both have the same store. `warnings` keeps what failed without making a verb fail.
    """

    def __init__(self, state: State, store: Store) -> None:
        self._state = state
        self._store = store
        self._code = NO_CODE
        self.warnings: list[str] = []

    @classmethod
    def create(
        cls, bundle: str | os.PathLike[str], name: str = "", root: str = "", extras: Extras | None = None
    ) -> Self:
        """Make a container of an OCI bundle; it waits for `start()`.

        `root` is where containers are kept, by default as kvmpy-oci has it; without a name it gets one.
        """
        store = Store(root)
        return cls(_made(store, name, lambda name: prepare(store, name, os.fspath(bundle), extras or Extras())), store)

    @classmethod
    def from_config(cls, config: Json, name: str = "", root: str = "", extras: Extras | None = None) -> Self:
        """Make a container of a configuration (runtime-spec config.json); paths are seen from the current directory."""
        from kvmpy.container.config import CONFIG, check

        store, checked = Store(root), check(config, CONFIG, "config")
        here = os.getcwd()
        return cls(_made(store, name, lambda name: Creation(store, name, here, checked, extras or Extras())), store)

    @classmethod
    def from_wish(cls, wish: Wish, name: str = "", root: str = "") -> Self:
        """Make a container of a directory and a command, with everything else as the field has it."""
        return cls.from_config(configuration(wish), name, root, Extras(layer=layer_of(wish)))

    @classmethod
    def find(cls, name: str, root: str = "") -> Self:
        """Return a container that is there already."""
        store = Store(root)
        return cls(store.find(name), store)

    @property
    def name(self) -> str:
        """Its name."""
        return self._state.name

    @property
    def pid(self) -> int:
        """The pid of its first process; 0 when that has ended."""
        return self._state.live_pid()

    @property
    def status(self) -> str:
        """creating, created, running, paused or stopped."""
        return self._state.status()

    @property
    def state(self) -> Json:
        """Its state, as the runtime specification has it."""
        return self._state.report()

    def start(self) -> None:
        """Let its program run."""
        start.start(self._state, self.warnings.append)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of its program; return the exit code, 128 + the signal it died of.

        Raises:
            DeadlineError: it still runs after `timeout` seconds.
            ContainerError: it is another process's child, whose end this one does not hear of.
        """
        if self._code == NO_CODE:
            pid, started = self._state.process()
            if start_time(pid, ended=True) != started:
                raise ContainerError(f"container {self.name}: its program has ended, and another process was told how")
            self._code = wait_for_child(pid, timeout, f"container {self.name}")
        return self._code

    def kill(self, signal: int | str = "TERM", everyone: bool = False) -> None:
        """Send a signal to its first process, or to all of them."""
        kill.kill(self._state, signal if isinstance(signal, int) else signal_number(signal), everyone)

    def pause(self) -> None:
        """Stop all its processes where they are."""
        pause.pause(self._state)

    def resume(self) -> None:
        """Let them go on."""
        resume.resume(self._state)

    def update(self, resources: Json) -> None:
        """Change its limits; `resources` is as in config.json."""
        update.update(self._state, resources)

    def pids(self) -> list[int]:
        """Return the processes in it, by the host's numbers."""
        return sorted(pause.cgroup_of(self._state).pids())

    def stats(self) -> Json:
        """Return what it uses, in the shape of runc's `events`."""
        return pause.cgroup_of(self._state).statistics()

    def events(self, interval: float = 5.0) -> Iterator[tuple[str, Json]]:
        """Give ("stats", what it uses) every `interval` seconds, ("oom", {}) when the kernel killed; until it ends."""
        return events.watch(self._state, interval)

    def exec(
        self,
        command: list[str],
        *,
        input: bytes = b"",
        timeout: float | None = None,
        env: list[str] | None = None,
        cwd: str = "",
        user: tuple[int, int] | None = None,
    ) -> Finished:
        """Run another program in it to its end, and return its code and what it wrote.

        `env` is added to the environment of the container's own program, whose working directory, user and
        capabilities it has unless told otherwise. Raises DeadlineError, and kills it, after `timeout` seconds.
        """
        process = dict(self._state.config()["process"])
        process |= {"args": command, "terminal": False, "env": process.get("env", []) + (env or [])}
        if cwd:
            process["cwd"] = cwd
        if user:
            process["user"] = {"uid": user[0], "gid": user[1]}
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(input)
            given.seek(0)
            streams = {number: stream.fileno() for number, stream in enumerate((given, out, err))}
            pid = execute(self._state, process, Extras(streams=streams), self._store.root)
            try:
                code = wait_for_child(pid, timeout, f"{command[0]} in container {self.name}")
            except BaseException:  # its time is over, or Ctrl-C: without it the container could not end (bury_inside)
                os.kill(pid, SIGKILL)
                os.waitpid(pid, 0)
                raise
            for stream in (out, err):
                stream.seek(0)
            return Finished(code, out.read(), err.read())

    def delete(self, force: bool = True) -> None:
        """Remove it, and with `force` whatever still runs in it; Ctrl-C is heard when it is gone."""
        if self.status == STOPPED and self._code == NO_CODE:
            self._note_end()
        with SignalsWait():
            delete.delete(self._state, force, self.warnings.append)
        _invented.discard((self._store.root, self.name))

    def _note_end(self) -> None:
        """Keep the exit code of a program that has ended: deleting it takes the last note of it."""
        try:
            self.wait(0)
        except ContainerError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if os.path.exists(self._state.directory):
            self.delete()

    def __repr__(self) -> str:
        return f"Container({self.name!r}, {self.status})"


_invented: set[tuple[str, str]] = set()  # stores and names of containers that this process named and did not delete


def _made(store: Store, name: str, plan: Callable[[str], Creation]) -> State:
    """Make a container; without a name it gets one that no other has."""
    if name:
        return plan(name).run()
    known = store.root, f"kvmpy-{uuid.uuid4().hex[:12]}"
    _invented.add(known)
    try:
        return plan(known[1]).run()
    except ContainerError:
        _invented.discard(known)
        raise


def delete_invented() -> None:
    """Remove every container that this process gave a name, whole or in part, for a process that a signal ends.

    The signal may have come while one was on its way to a variable, or when it was half deleted.
    """
    for root, name in sorted(_invented):
        delete.delete_by_name(Store(root), name, True, lambda _: None)
        _invented.discard((root, name))


def wait_for_child(pid: int, timeout: float | None, what: str) -> int:
    """Wait for a child; return its exit code, 128 + the signal it died of.

    Raises:
        DeadlineError: it still runs when its time is over.
        ContainerError: it is no child of this process.
    """
    pidfd = os.pidfd_open(pid)
    try:
        if not wait_for_end(pidfd, None if timeout is None else timeout * 1000):
            raise DeadlineError(f"{what} still runs after {timeout} s")
        status = os.waitpid(pid, 0)[1]
    except ChildProcessError:
        raise ContainerError(f"{what} is not this process's child; see its state instead") from None
    finally:
        os.close(pidfd)
    return exit_code(status)
