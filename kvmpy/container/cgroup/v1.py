"""Control groups of version 1: one directory for each hierarchy, one hierarchy for each controller."""

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
from kvmpy.container.host import exists, read_file, reason, write_file
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.host import Json

# controller, file, and where the number is in linux.resources; in this order
FILES = (
    ("memory", "memory.soft_limit_in_bytes", "memory", "reservation"),
    ("memory", "memory.kmem.tcp.limit_in_bytes", "memory", "kernelTCP"),
    ("memory", "memory.swappiness", "memory", "swappiness"),
    ("cpu", "cpu.shares", "cpu", "shares"),
    ("cpu", "cpu.cfs_period_us", "cpu", "period"),
    ("cpu", "cpu.cfs_quota_us", "cpu", "quota"),
    ("cpu", "cpu.cfs_burst_us", "cpu", "burst"),
    ("cpu", "cpu.rt_period_us", "cpu", "realtimePeriod"),
    ("cpu", "cpu.rt_runtime_us", "cpu", "realtimeRuntime"),
    ("cpu", "cpu.idle", "cpu", "idle"),
    ("cpuset", "cpuset.cpus", "cpu", "cpus"),
    ("cpuset", "cpuset.mems", "cpu", "mems"),
    ("blkio", "blkio.bfq.weight", "blockIO", "weight"),
    ("net_cls", "net_cls.classid", "network", "classID"),
)
THROTTLES = {
    "throttleReadBpsDevice": "blkio.throttle.read_bps_device",
    "throttleWriteBpsDevice": "blkio.throttle.write_bps_device",
    "throttleReadIOPSDevice": "blkio.throttle.read_iops_device",
    "throttleWriteIOPSDevice": "blkio.throttle.write_iops_device",
}
UNLIMITED = 0x7FFFFFFFFFFFF000  # what version 1 shows for no limit at all


class CgroupV1(Cgroup):
    """A group of the same path in every hierarchy of version 1."""

    version = 1

    def controller(self, name: str) -> str | None:
        """Return the directory of a controller, or None where the host has not got it."""
        for controllers, directory in self.directories.items():
            if name in controllers.split(","):
                return directory
        return None

    def create(self) -> None:
        """Make the directories; a new one below cpuset has no CPUs and takes its parent's."""
        for controllers, directory in self.directories.items():
            cpuset = "cpuset" in controllers.split(",")
            try:
                _make(directory, cpuset)
            except OSError as error:
                raise ContainerError(f"{directory} cannot be made: {reason(error)}") from None

    def apply(self, resources: Json, where: str = "linux.resources") -> None:
        """Set limits (config-linux, Control groups)."""
        if rules := resources.get("devices"):
            self._devices(rules, f"{where}.devices")
        self._memory(resources.get("memory", {}), f"{where}.memory")
        for controller, file, group, field in FILES:
            value = resources.get(group, {}).get(field)
            if value not in (None, "") and not (value == 0 and field in ("shares", "period", "quota")):
                self._set(controller, file, value, f"{where}.{group}.{field}")
        if pids := resources.get("pids"):
            self._set("pids", "pids.max", pids["limit"] if pids["limit"] > 0 else "max", f"{where}.pids.limit")
        for limit in resources.get("hugepageLimits", ()):
            file = f"hugetlb.{limit['pageSize']}.limit_in_bytes"
            self._set("hugetlb", file, limit["limit"], f"{where}.hugepageLimits")
        for field, file in THROTTLES.items():
            for rate in resources.get("blockIO", {}).get(field, ()):
                self._set("blkio", file, f"{rate['major']}:{rate['minor']} {rate['rate']}", f"{where}.blockIO.{field}")
        demand_no_leaf_weight(resources, where)
        for entry in resources.get("blockIO", {}).get("weightDevice", ()):
            line = f"{entry['major']}:{entry['minor']} {entry.get('weight', 0)}"
            self._set("blkio", "blkio.bfq.weight_device", line, f"{where}.blockIO.weightDevice")
        for device, limits in resources.get("rdma", {}).items():
            self._set("rdma", "rdma.max", rdma_line(device, limits), f"{where}.rdma.{device}")
        for entry in resources.get("network", {}).get("priorities", ()):
            self._set("net_prio", "net_prio.ifpriomap", f"{entry['name']} {entry['priority']}", f"{where}.network")

    def _memory(self, memory: Json, where: str) -> None:
        """Memory, and memory with swap, which must never be less: the order depends on which way they move."""
        limit, swap = memory.get("limit"), memory.get("swap")
        both = [("memory.limit_in_bytes", limit, "limit"), ("memory.memsw.limit_in_bytes", swap, "swap")]
        directory = self.controller("memory")
        if directory and limit and swap:
            now = get_number(directory, "memory.limit_in_bytes")
            if swap == -1 or (limit != -1 and limit > now):
                both.reverse()
        for file, value, field in both:
            if value:
                self._set("memory", file, value, f"{where}.{field}")
        if memory.get("disableOOMKiller"):
            self._set("memory", "memory.oom_control", 1, f"{where}.disableOOMKiller")

    def _devices(self, rules: list[Json], where: str) -> None:
        for number, rule in enumerate(rules):
            kind = rule.get("type", "a")
            places = [rule.get(name, -1) for name in ("major", "minor")]
            everything = kind == "a" and places == [-1, -1]
            line = "a" if everything else device_line(rule)
            file = "devices.allow" if rule.get("allow") else "devices.deny"
            self._set("devices", file, line, f"{where}[{number}]")
        directory = self.controller("devices")
        allow = posix.open(f"{directory}/devices.allow", posix.O_WRONLY | posix.O_CLOEXEC)
        for rule in ALWAYS_ALLOWED:
            posix.write(allow, device_line(rule).encode())
        posix.close(allow)

    def _set(self, controller: str, file: str, value: object, where: str) -> None:
        directory = self.controller(controller)
        if directory is None:
            raise ContainerError(f"{where}: this host has no {controller} controller of cgroup version 1")
        set_value(directory, file, value, where)

    def join_files(self) -> list[str]:
        """Return the files to which a process of one thread writes 0 to join."""
        return [f"{directory}/tasks" for directory in self.directories.values()]

    def process_directory(self) -> str:
        """Return a directory in which all the processes are listed."""
        return self.controller("pids") or next(iter(self.directories.values()))

    def freeze(self, frozen: bool) -> None:
        """Stop all processes where they are, or let them go on."""
        directory = self.controller("freezer")
        if directory is None:
            raise ContainerError("this host has no freezer: a container cannot be paused")
        try:
            write_file(f"{directory}/freezer.state", "FROZEN" if frozen else "THAWED")
        except FileNotFoundError:
            return
        while frozen and read_file(f"{directory}/freezer.state").strip() == b"FREEZING":
            write_file(f"{directory}/freezer.state", "FROZEN")

    def frozen(self) -> bool:
        """Whether the processes are stopped."""
        directory = self.controller("freezer")
        if directory is None:
            return False
        try:
            return read_file(f"{directory}/freezer.state").strip() != b"THAWED"
        except FileNotFoundError:
            return False

    def watch_out_of_memory(self) -> OutOfMemory:
        """Register an eventfd with memory.oom_control (cgroup-v1/memory.rst, 10. OOM Control)."""
        directory = self.controller("memory")
        if directory is None:
            raise ContainerError("this host has no memory controller of cgroup version 1")
        control = posix.open(f"{directory}/memory.oom_control", posix.O_RDONLY | posix.O_CLOEXEC)
        event = posix.eventfd(0, posix.EFD_CLOEXEC)
        try:
            write_file(f"{directory}/cgroup.event_control", f"{event} {control}")
        finally:
            posix.close(control)
        return OutOfMemory(event, lambda: exists(directory))  # the removal of the group is signalled too

    def mounts(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return what a cgroup mount shows: directories by name, and links for controllers mounted together."""
        groups, links = [], []
        for controllers, directory in self.directories.items():
            name = controllers.removeprefix("name=")
            groups.append((name, directory))
            if "," in name:
                links += [(alone, name) for alone in name.split(",")]
        return groups, links

    def statistics(self) -> Json:
        """Return what was used, in the shape of runc's `events`."""
        cpu, usage = self.controller("cpu") or "", self.controller("cpuacct") or ""
        memory, pids = self.controller("memory") or "", self.controller("pids") or ""
        throttling, details = get_table(cpu, "cpu.stat"), get_table(memory, "memory.stat")
        tick = 10_000_000  # nanoseconds; cpuacct.stat counts in USER_HZ
        modes = get_table(usage, "cpuacct.stat")
        return {
            "cpu": {
                "usage": {
                    "total": get_number(usage, "cpuacct.usage"),
                    "kernel": modes.get("system", 0) * tick,
                    "user": modes.get("user", 0) * tick,
                },
                "throttling": {
                    "periods": throttling.get("nr_periods", 0),
                    "throttledPeriods": throttling.get("nr_throttled", 0),
                    "throttledTime": throttling.get("throttled_time", 0),
                },
            },
            "memory": {
                "cache": details.get("cache", 0),
                "usage": _memory_use(memory, "memory."),
                "swap": _memory_use(memory, "memory.memsw."),
                "kernel": _memory_use(memory, "memory.kmem."),
                "raw": details,
            },
            "pids": {
                "current": get_number(pids, "pids.current"),
                "limit": _no_limit_is_zero(get_number(pids, "pids.max")),
            },
        }


def device_line(rule: Json) -> str:
    """Return a rule as the devices controller writes it (cgroup-v1/devices.rst)."""
    numbers = ":".join("*" if rule.get(name, -1) < 0 else str(rule[name]) for name in ("major", "minor"))
    return f"{rule.get('type', 'a')} {numbers} {rule.get('access') or 'rwm'}"


def _memory_use(directory: str, prefix: str) -> Json:
    return {
        "limit": _no_limit_is_zero(get_number(directory, f"{prefix}limit_in_bytes")),
        "usage": get_number(directory, f"{prefix}usage_in_bytes"),
        "max": get_number(directory, f"{prefix}max_usage_in_bytes"),
        "failcnt": get_number(directory, f"{prefix}failcnt"),
    }


def _no_limit_is_zero(limit: int) -> int:
    return 0 if limit >= UNLIMITED else limit


def _make(directory: str, cpuset: bool) -> None:
    try:
        posix.mkdir(directory, 0o755)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make(directory.rpartition("/")[0], cpuset)
        posix.mkdir(directory, 0o755)
    if cpuset:
        above = directory.rpartition("/")[0]
        for file in ("cpuset.cpus", "cpuset.mems"):
            write_file(f"{directory}/{file}", read_file(f"{above}/{file}"))
