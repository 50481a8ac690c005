"""Control groups of version 2: one directory, its controllers enabled by the group above (cgroup-v2.rst)."""

from __future__ import annotations

import posix

from kvmpy.container.cgroup.base import (
    ALWAYS_ALLOWED,
    Cgroup,
    OutOfMemory,
    demand_no_leaf_weight,
    get_number,
    get_table,
    rdma_line,
    set_value,
)
from kvmpy.container.host import read_file, reason, write_file
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.host import Json

IN_MODIFY = 2
DEFAULT_PERIOD = 100_000  # microseconds, of cpu.max
THROTTLES = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}


class CgroupV2(Cgroup):
    """A group of the unified hierarchy."""

    version = 2

    @property
    def directory(self) -> str:
        """The group's one directory."""
        return self.directories[""]

    def create(self) -> None:
        """Make the directory, with every controller that the groups above can pass on."""
        try:
            self._make(self.directory)
        except OSError as error:
            raise ContainerError(f"{self.directory} cannot be made: {reason(error)}") from None

    def _make(self, directory: str) -> None:
        if _exists(directory):
            return
        above = directory.rpartition("/")[0]
        self._make(above)
        for controller in read_file(f"{above}/cgroup.controllers").decode().split():
            try:
                write_file(f"{above}/cgroup.subtree_control", f"+{controller}")
            except OSError:
                continue  # the group above has processes of its own (no internal processes rule), or may not
        posix.mkdir(directory, 0o755)

    def apply(self, resources: Json, where: str = "linux.resources") -> None:
        """Set limits (config-linux, Control groups), those of version 1 converted as the specification of runc does."""
        demand_no_leaf_weight(resources, where)
        if resources.get("network"):
            raise ContainerError(f"{where}.network: version 2 of control groups has no network classes or priorities")
        if rules := resources.get("devices"):
            from kvmpy.container.cgroup.device_filter import attach

            attach(self.directory, [*rules, *ALWAYS_ALLOWED], f"{where}.devices")
        for file, value, field in files_of(resources):
            set_value(self.directory, file, value, f"{where}.{field}")
        for file, value in resources.get("unified", {}).items():
            if "/" in file or file.startswith("cgroup."):
                raise ContainerError(f"{where}.unified: {file!r} is no file of a controller")
            set_value(self.directory, file, value, f"{where}.unified")

    def join_files(self) -> list[str]:
        """Return the file to which a process writes 0 to join."""
        return [f"{self.directory}/cgroup.procs"]

    def process_directory(self) -> str:
        """Return the directory in which all the processes are listed."""
        return self.directory

    def freeze(self, frozen: bool) -> None:
        """Stop all processes where they are, or let them go on."""
        try:
            write_file(f"{self.directory}/cgroup.freeze", "1" if frozen else "0")
        except FileNotFoundError:
            return

    def frozen(self) -> bool:
        """Whether the processes are stopped."""
        return get_number(self.directory, "cgroup.freeze") == 1

    def watch_out_of_memory(self) -> OutOfMemory:
        """Watch memory.events with inotify(7): the kernel signals a change of it."""
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        fd = library.inotify_init1(posix.O_CLOEXEC)
        if library.inotify_add_watch(fd, f"{self.directory}/memory.events".encode(), IN_MODIFY) < 0:
            posix.close(fd)
            raise ContainerError(f"{self.directory}/memory.events: {posix.strerror(ctypes.get_errno()).lower()}")
        before = 0

        def more_than_before() -> bool:
            nonlocal before
            last, before = before, get_table(self.directory, "memory.events").get("oom_kill", 0)
            return before > last

        more_than_before()
        return OutOfMemory(fd, more_than_before)

    def mounts(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return what a cgroup mount shows; of version 2 it is the group itself."""
        return [("", self.directory)], []

    def statistics(self) -> Json:
        """Return what was used, in the shape of runc's `events`."""
        cpu, memory = get_table(self.directory, "cpu.stat"), get_table(self.directory, "memory.stat")
        return {
            "cpu": {
                "usage": {
                    "total": cpu.get("usage_usec", 0) * 1000,
                    "kernel": cpu.get("system_usec", 0) * 1000,
                    "user": cpu.get("user_usec", 0) * 1000,
                },
                "throttling": {
                    "periods": cpu.get("nr_periods", 0),
                    "throttledPeriods": cpu.get("nr_throttled", 0),
                    "throttledTime": cpu.get("throttled_usec", 0) * 1000,
                },
            },
            "memory": {
                "cache": memory.get("file", 0),
                "usage": {
                    "limit": _no_limit_is_zero(get_number(self.directory, "memory.max")),
                    "usage": get_number(self.directory, "memory.current"),
                    "max": get_number(self.directory, "memory.peak"),
                    "failcnt": get_table(self.directory, "memory.events").get("max", 0),
                },
                "raw": memory,
            },
            "pids": {
                "current": get_number(self.directory, "pids.current"),
                "limit": _no_limit_is_zero(get_number(self.directory, "pids.max")),
            },
        }


def _no_limit_is_zero(limit: int) -> int:
    return 0 if limit == (1 << 64) - 1 else limit


def _exists(directory: str) -> bool:
    try:
        posix.stat(directory)
    except FileNotFoundError:
        return False
    return True


def _limit(value: int) -> int | str:
    return "max" if value < 0 else value


def files_of(resources: Json) -> list[tuple[str, object, str]]:
    """Return (file, value, field) for what version 2 says in files of its own."""
    files: list[tuple[str, object, str]] = []
    memory, cpu = resources.get("memory", {}), resources.get("cpu", {})
    block = resources.get("blockIO", {})
    if limit := memory.get("limit"):
        files.append(("memory.max", _limit(limit), "memory.limit"))
    if swap := memory.get("swap"):
        # version 1 counts memory and swap together, version 2 swap alone
        files.append(("memory.swap.max", _limit(swap if swap < 0 else swap - max(limit or 0, 0)), "memory.swap"))
    if reservation := memory.get("reservation"):
        files.append(("memory.low", _limit(reservation), "memory.reservation"))
    if shares := cpu.get("shares"):
        files.append(("cpu.weight", cpu_weight(shares), "cpu.shares"))
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota") or -1
        files.append(("cpu.max", f"{_limit(quota)} {cpu.get('period') or DEFAULT_PERIOD}", "cpu.quota"))
    files += [
        (file, cpu[field], f"cpu.{field}")
        for file, field in (
            ("cpu.max.burst", "burst"),
            ("cpu.idle", "idle"),
            ("cpuset.cpus", "cpus"),
            ("cpuset.mems", "mems"),
        )
        if cpu.get(field) not in (None, "")
    ]
    if pids := resources.get("pids"):
        files.append(("pids.max", pids["limit"] if pids["limit"] > 0 else "max", "pids.limit"))
    if weight := block.get("weight"):
        files.append(("io.bfq.weight", weight, "blockIO.weight"))
    for field, key in THROTTLES.items():
        files += [
            ("io.max", f"{rate['major']}:{rate['minor']} {key}={rate['rate']}", f"blockIO.{field}")
            for rate in block.get(field, ())
        ]
    files += [
        ("io.bfq.weight", f"{entry['major']}:{entry['minor']} {entry.get('weight', 0)}", "blockIO.weightDevice")
        for entry in block.get("weightDevice", ())
    ]
    files += [
        ("rdma.max", rdma_line(device, limits), f"rdma.{device}")
        for device, limits in resources.get("rdma", {}).items()
    ]
    files += [
        (f"hugetlb.{limit['pageSize']}.max", limit["limit"], "hugepageLimits")
        for limit in resources.get("hugepageLimits", ())
    ]
    return files


def cpu_weight(shares: int) -> int:
    """Return version 2's weight (1 to 10000) for version 1's shares (2 to 262144), in proportion."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142
