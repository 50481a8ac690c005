"""Control groups behind one interface, whichever version the host has.

`open_cgroup()` finds the host's hierarchies and gives a `Cgroup` (base.py) of version 1 (v1.py) or 2 (v2.py).
"""

from __future__ import annotations

from kvmpy.container.cgroup.base import Cgroup, Hierarchy
from kvmpy.container.host import read_file
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CONTROLLERS_OF_V1 = (
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "pids", "blkio", "hugetlb", "net_cls", "net_prio",
    "perf_event", "rdma", "misc", "debug",
)  # fmt: skip


def open_cgroup(path: str) -> Cgroup:
    """Return the control group at a path of config-linux, Cgroups Path: absolute, or below the runtime's own.

    Raises:
        ContainerError: the path climbs out, or the host has no control groups.
    """
    if ".." in path.split("/"):
        raise ContainerError(f"linux.cgroupsPath: {path!r} leads upwards; name a group below the host's")
    if not path.strip("/."):
        raise ContainerError(f"linux.cgroupsPath: {path!r} is the host's own group; name one below it")
    hierarchies = list(find_hierarchies())
    if any(hierarchy.version == 1 for hierarchy in hierarchies):
        from kvmpy.container.cgroup.v1 import CgroupV1

        return CgroupV1.at([h for h in hierarchies if h.version == 1], path)
    if not hierarchies:
        raise ContainerError("no control groups are mounted; mount them at /sys/fs/cgroup")
    from kvmpy.container.cgroup.v2 import CgroupV2

    return CgroupV2.at(hierarchies, path)


def reopen(saved: dict[str, str]) -> Cgroup:
    """Return the control group whose directories, by controllers, were saved; nothing is looked up."""
    if "" in saved:
        from kvmpy.container.cgroup.v2 import CgroupV2

        return CgroupV2(saved)
    from kvmpy.container.cgroup.v1 import CgroupV1

    return CgroupV1(saved)


def find_hierarchies() -> Iterator[Hierarchy]:
    """Give the mounted hierarchies (cgroups(7), proc(5) mountinfo) with the runtime's own place in each."""
    places = {}
    for line in read_file("/proc/self/cgroup").decode().splitlines():
        _, controllers, place = line.split(":", 2)
        places[controllers] = place
    seen = set()
    for line in read_file("/proc/self/mountinfo").decode("utf-8", "surrogateescape").splitlines():
        if " - cgroup" not in line:
            continue
        before, after = line.split(" - ", 1)
        kind, _, options = after.split(" ")[:3]
        root, mounted = before.split(" ")[3:5]
        words = options.split(",")
        names = [w for w in words if w in CONTROLLERS_OF_V1 or w.startswith("name=")]
        controllers = "" if kind == "cgroup2" else ",".join(names)
        if controllers in seen or controllers not in places:
            continue
        seen.add(controllers)
        yield Hierarchy(2 if kind == "cgroup2" else 1, controllers, unescape(mounted), root, places[controllers])


def unescape(path: str) -> str:
    r"""Return a path of mountinfo, in which blanks are octal: `\040`."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path
