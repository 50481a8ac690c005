"""What a control group is to the runtime: made, given its limits, joined, frozen, counted, emptied and removed."""

from __future__ import annotations

import posix

from kvmpy.container.host import read_file, reason, write_file
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from kvmpy.container.host import Json

SIGKILL = 9
PIECE = 4096
ENOENT, EBUSY = 2, 16
PATIENCE = 2000  # milliseconds that killed processes get to end


# config-linux, Allowed Device list: what every container may use besides: the default devices, terminals, making nodes
ALWAYS_ALLOWED: list[Json] = [
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136},
]


class Hierarchy:
    """A hierarchy: version, controllers with commas between, where it is mounted, what of it, our place in it."""

    def __init__(self, version: int, controllers: str, mounted: str, root: str, place: str) -> None:
        self.version = version
        self.controllers = controllers
        self.mounted = mounted
        self.root = root
        self.place = place

    def directory(self, path: str) -> str:
        """Return the directory of a group: an absolute path is as the mount shows it, another below our own group."""
        if path.startswith("/"):
            return f"{self.mounted}{path}"
        own = self.place.removeprefix(self.root.rstrip("/"))
        return f"{self.mounted}{own.rstrip('/')}/{path}"


class OutOfMemory:
    """A descriptor that can be read when the kernel killed in a group for want of memory. Use as a context manager.

    `is_one` tells of a signal whether it is one of those: the kernel signals other things by the same way.
    """

    def __init__(self, fd: int, is_one: Callable[[], bool]) -> None:
        self.fd = fd
        self._is_one = is_one

    def happened(self) -> bool:
        """Take a signal; say whether the kernel killed."""
        posix.read(self.fd, PIECE)
        return self._is_one()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        posix.close(self.fd)


class Cgroup:
    """A control group of one version; `directories` are its directories by controllers, "" for version 2."""

    version: int

    def __init__(self, directories: dict[str, str]) -> None:
        self.directories = directories

    @classmethod
    def at(cls, hierarchies: list[Hierarchy], path: str) -> Self:
        """Return the group at a path in these hierarchies."""
        return cls({h.controllers: h.directory(path).rstrip("/") for h in hierarchies})

    def create(self) -> None:
        """Make the directories."""
        raise NotImplementedError

    def apply(self, resources: Json, where: str = "linux.resources") -> None:
        """Set limits (config-linux, Control groups); ContainerError names the field that cannot be."""
        raise NotImplementedError

    def join_files(self) -> list[str]:
        """Return the files to which a process writes 0 to join."""
        raise NotImplementedError

    def freeze(self, frozen: bool) -> None:
        """Stop all processes where they are, or let them go on."""
        raise NotImplementedError

    def frozen(self) -> bool:
        """Whether the processes are stopped."""
        raise NotImplementedError

    def watch_out_of_memory(self) -> OutOfMemory:
        """Watch for the kernel's killing here for want of memory."""
        raise NotImplementedError

    def statistics(self) -> Json:
        """Return what was used, in the shape of runc's `events`."""
        raise NotImplementedError

    def mounts(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return what a cgroup mount shows: directories by name, and links (name, target)."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Return the processes in this group and all below it."""
        directory = self.process_directory()
        found: list[int] = []
        try:
            for below in self._tree(directory):
                found += map(int, read_file(f"{below}/cgroup.procs").split())
        except FileNotFoundError:
            pass
        return found

    def process_directory(self) -> str:
        """Return a directory in which all the processes are listed."""
        raise NotImplementedError

    def kill(self, signal: int = SIGKILL) -> None:
        """Send a signal to every process."""
        for pid in self.pids():
            try:
                posix.kill(pid, signal)
            except ProcessLookupError:
                pass

    def kill_all(self) -> None:
        """Kill until nobody is left, also who forks meanwhile; ContainerError when someone stays."""
        from time import monotonic, sleep

        deadline = monotonic() + PATIENCE / 1000
        while self.pids():
            self.freeze(True)
            self.kill()
            self.freeze(False)
            if monotonic() > deadline:
                raise ContainerError(f"processes {self.pids()} cannot be killed; look at /proc/PID/stack")
            sleep(0.001)

    def remove(self) -> None:
        """Remove the directories and all below them; the kernel refuses while it still buries a process."""
        for directory in self.directories.values():
            for below in reversed(list(self._tree(directory))):
                _remove_directory(below)

    def _tree(self, directory: str) -> list[str]:
        """Return a directory and all below it, each after the one it is in."""
        found = [directory]
        for here in found:
            try:
                found += [entry.path for entry in posix.scandir(here) if entry.is_dir(follow_symlinks=False)]
            except FileNotFoundError:
                pass
        return found


def _remove_directory(path: str) -> None:
    for patience in range(PATIENCE + 1):
        try:
            return posix.rmdir(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != EBUSY or patience == PATIENCE:
                raise ContainerError(f"{path} cannot be removed: {reason(error)}") from None
            from time import sleep

            sleep(0.001)
    return None


def set_value(directory: str, name: str, value: object, where: str) -> None:
    """Write a limit to its file; ContainerError names the field it came from."""
    try:
        write_file(f"{directory}/{name}", str(value))
    except OSError as error:
        why = "this host's kernel lacks it" if error.errno == ENOENT else reason(error)
        raise ContainerError(f"{where}: {value} cannot be written to {directory}/{name}: {why}") from None


def rdma_line(device: str, limits: Json) -> str:
    """Return a line of rdma.max, which is the same in both versions (cgroup-v2.rst, RDMA)."""
    words = [("hca_handle", limits.get("hcaHandles")), ("hca_object", limits.get("hcaObjects"))]
    return " ".join([device, *(f"{word}={number}" for word, number in words if number is not None)])


def demand_no_leaf_weight(resources: Json, where: str) -> None:
    """Raise a ContainerError for what only the CFQ scheduler had, which went with Linux 5.0."""
    block = resources.get("blockIO", {})
    if any("leafWeight" in entry for entry in (block, *block.get("weightDevice", ()))):
        raise ContainerError(f"{where}.blockIO.leafWeight: Linux has had no such weight since 5.0; leave it out")


def get_number(directory: str, name: str) -> int:
    """Return a number from a file; 0 where it is missing, the highest one for "max"."""
    try:
        text = read_file(f"{directory}/{name}").strip()
    except OSError:
        return 0
    return (1 << 64) - 1 if text == b"max" else int(text)


def get_table(directory: str, name: str) -> dict[str, int]:
    """Return a file of "name number" lines."""
    try:
        lines = read_file(f"{directory}/{name}").decode().splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, value in (line.split(" ", 1) for line in lines if " " in line)}
