"""What the runtime keeps of a container between two verbs, in a directory of its own: ROOT/ID.

state.json   what it is; written before anything of the host's is changed, so that all can be undone
config.json  a copy of the bundle's, for exec
pid          its first process, with the time that it started: pids are used again
exec.fifo    there until the container is started
*.tape       what the launcher does without Python (shortcuts.py)
"""

from __future__ import annotations

import posix
from time import gmtime, strftime, time_ns

from kvmpy.container.host import (
    exists,
    make_directories,
    parse_json,
    read_file,
    reason,
    remove,
    replace_file,
    start_time,
    to_json,
    write_file,
)
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.cgroup.base import Cgroup
    from kvmpy.container.host import Json

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-")
LONGEST_NAME = 255
DIRECTORY_OF_OURS = 0o040700  # st_mode
NEW_FILE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"


def default_root() -> str:
    """Return where the containers of this user are kept: /run/kvmpy-oci, or below XDG_RUNTIME_DIR without root."""
    if posix.geteuid() == 0:
        return "/run/kvmpy-oci"
    home = posix.environ.get(b"XDG_RUNTIME_DIR")
    if home:
        return f"{home.decode()}/kvmpy-oci"
    directory = f"/tmp/kvmpy-oci-{posix.geteuid()}"
    make_directories(directory)
    status = posix.lstat(directory)
    if status.st_uid != posix.geteuid() or status.st_mode != DIRECTORY_OF_OURS:
        raise ContainerError(f"{directory} is not ours alone; set XDG_RUNTIME_DIR, or give --root")
    return directory


class State:
    """One container that the runtime knows. `data` is what state.json has."""

    def __init__(self, directory: str, data: Json) -> None:
        self.directory = directory
        self.data = data
        self.name: str = data["id"]
        self.bundle: str = data["bundle"]

    @property
    def fifo(self) -> str:
        """Where a created container waits for `start`."""
        return f"{self.directory}/exec.fifo"

    def config(self) -> Json:
        """Return the configuration that it was made from."""
        from kvmpy.container.config import CONFIG, check, decode, read

        name = f"{self.directory}/config.json"
        return check(decode(read(name), name), CONFIG, "config.json")  # type: ignore[no-any-return]

    def hooks(self, kind: str) -> list[Json]:
        """Return the hooks of a kind."""
        found: list[Json] = self.data["hooks"].get(kind, [])
        return found

    def run_hooks(self, kind: str, status: str, pid: int = 0) -> None:
        """Run the hooks of a kind, if there are any (see hooks.py)."""
        if self.hooks(kind):
            from kvmpy.container.hooks import run_hooks

            run_hooks(self, kind, status, pid)

    def cgroup(self) -> Cgroup | None:
        """Return its control group, if it has one."""
        saved = self.data["cgroups"]
        if not saved:
            return None
        from kvmpy.container.cgroup import reopen

        return reopen(saved)

    def process(self) -> tuple[int, int]:
        """Return the pid of its first process and when that started; zeros while there is none yet."""
        try:
            pid, started = read_file(f"{self.directory}/pid").split()
        except FileNotFoundError:
            return 0, 0
        return int(pid), int(started)

    def set_process(self, pid: int) -> None:
        """Keep its first process."""
        write_file(f"{self.directory}/pid", f"{pid} {start_time(pid)}", NEW_FILE)

    def live_pid(self) -> int:
        """Return the pid of its first process, or 0 when that has ended."""
        pid, started = self.process()
        return pid if pid and start_time(pid) == started else 0

    def open_process(self) -> int:
        """Return a pidfd of its first process; ContainerError when it has ended.

        The pid is looked at again once it is held: between two looks it may have become another's.
        """
        pid = self.live_pid()
        if pid:
            try:
                fd = posix.pidfd_open(pid, 0)
            except ProcessLookupError:
                pass
            else:
                if self.live_pid():
                    return fd
                posix.close(fd)
        raise ContainerError(f"container {self.name}: container not running")

    def status(self) -> str:
        """Return creating, created, running, paused or stopped."""
        if not self.live_pid():
            creator = self.data["creator"]
            busy = not self.process()[0] and start_time(creator[0]) == creator[1]
            return CREATING if busy else STOPPED
        if exists(self.fifo):
            return CREATED
        cgroup = self.cgroup()
        return PAUSED if cgroup and cgroup.frozen() else RUNNING

    def report(self, status: str = "", pid: int | None = None) -> Json:
        """Return the state as runtime.md, State, has it; `status` and `pid` for hooks, which see it in between."""
        return {
            "ociVersion": self.data["ociVersion"],
            "id": self.name,
            "pid": self.live_pid() if pid is None else pid,
            "status": status or self.status(),
            "bundle": self.bundle,
            "rootfs": self.data["rootfs"],
            "created": self.data["created"],
            "annotations": self.data["annotations"],
            "owner": self.data["owner"],
        }

    def forget(self) -> None:
        """Remove all that is kept of the container."""
        for entry in posix.listdir(self.directory):
            remove(f"{self.directory}/{entry}")
        posix.rmdir(self.directory)


class Store:
    """All containers below one root."""

    def __init__(self, root: str = "") -> None:
        self.root = root or default_root()

    def find(self, name: str) -> State:
        """Return a container, or raise a ContainerError: it does not exist."""
        check_name(name)
        directory = f"{self.root}/{name}"
        try:
            data = parse_json(read_file(f"{directory}/state.json").decode())
        except FileNotFoundError:
            raise ContainerError(f"container {name} does not exist") from None
        except ValueError as error:
            raise ContainerError(f"container {name}: its state is damaged ({error}); delete --force it") from None
        assert isinstance(data, dict)
        return State(directory, data)

    def all(self) -> list[State]:
        """Return every container, by name."""
        try:
            names = sorted(posix.listdir(self.root))
        except FileNotFoundError:
            return []
        return [self.find(name) for name in names if exists(f"{self.root}/{name}/state.json")]

    def demand_free(self, name: str) -> None:
        """Raise a ContainerError if there is a container of that name."""
        check_name(name)
        if exists(f"{self.root}/{name}"):
            raise ContainerError(f"container with id exists: {name}")

    def new(
        self, name: str, bundle: str, config: Json, rootfs: str, namespaces: list[str], cgroup: Cgroup | None
    ) -> State:
        """Keep a new container; ContainerError when there is one of that name, or nothing can be kept."""
        from kvmpy.container.config import SPEC_VERSION

        self.demand_free(name)
        data = {
            "ociVersion": SPEC_VERSION,
            "id": name,
            "bundle": bundle,
            "rootfs": rootfs,
            "created": timestamp(),
            "annotations": config.get("annotations", {}),
            "owner": "",
            "cgroups": cgroup.directories if cgroup else {},
            "namespaces": namespaces,
            "hooks": config.get("hooks", {}),
            "creator": [posix.getpid(), start_time(posix.getpid())],
        }
        directory = f"{self.root}/{name}"
        try:
            make_directories(self.root)
            posix.mkdir(directory, 0o700)
        except FileExistsError:
            raise ContainerError(f"container with id exists: {name}") from None
        except OSError as error:
            raise ContainerError(f"{directory} cannot be made: {reason(error)}") from None
        state = State(directory, data)
        try:
            replace_file(f"{directory}/state.json", to_json(data))
            write_file(f"{directory}/config.json", to_json(config), NEW_FILE)
            posix.mkfifo(state.fifo, 0o600)
        except OSError as error:
            state.forget()
            raise ContainerError(f"{directory} cannot be filled: {reason(error)}") from None
        return state


def check_name(name: str) -> None:
    """Raise a ContainerError unless this may name a container: it becomes the name of a directory."""
    if not name or name in (".", "..") or not NAME_CHARACTERS.issuperset(name) or len(name) > LONGEST_NAME:
        raise ContainerError(f"invalid id format: {name[:60]!r}; use letters, digits and _ + . -")


def timestamp() -> str:
    """Return now as RFC 3339 has it."""
    seconds, nanoseconds = divmod(time_ns(), 1_000_000_000)
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds)) + f".{nanoseconds:09}Z"
