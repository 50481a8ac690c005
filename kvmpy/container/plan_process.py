"""The part of a plan that `create` and `exec` share: who the program is, what it may do, and what it is."""

from __future__ import annotations

from kvmpy.container import operations as ops
from kvmpy.container.capabilities import SETS, mask
from kvmpy.container.host import DEFAULT_PATH
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.container.host import Json
    from kvmpy.container.seccomp import Filter

# In the order of their numbers, <asm-generic/resource.h>.
RLIMITS = ("CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME").split()
RLIMIT_NUMBERS = {f"RLIMIT_{name}": number for number, name in enumerate(RLIMITS)}
# <linux/sched.h>
POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}  # fmt: skip
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
DOMAINS = {"LINUX": 0x0, "LINUX32": 0x8}  # <linux/personality.h>
DEFAULT_UMASK = 0o022


def process_plan(
    process: Json,
    filter: Filter | None,
    *,
    limits: bool = True,
    keep_groups: bool = False,
    terminal: bool = False,
    wait: bool = False,
    dumpable: bool = False,
    where: str = "process",
) -> Iterator[ops.Operation]:
    """Give the last operations.

    `limits`: resource limits are set here, not before; `keep_groups`: see Identity; `terminal`: TERMINAL is open;
    `wait`: for `start`; `dumpable`: an ordinary user's runtime must be able to join it while it waits (setns(2)).
    """
    arguments = process.get("args")
    if not arguments or not arguments[0]:
        raise ContainerError(f"{where}.args is missing; it is the program and its arguments")
    user = process.get("user", {})
    if terminal:
        yield ops.UseConsole(user.get("uid", 0))
    if limits:
        yield from limits_plan(process, where)
    loading = [ops.LoadSeccomp(filter.program, filter.flags, filter.notify)] if filter else []
    if process.get("noNewPrivileges"):
        yield ops.NoNewPrivileges()
    yield ops.CloseDirectories()
    if not process.get("noNewPrivileges"):
        yield from loading
    capabilities = process.get("capabilities", {})
    sets = [mask(capabilities.get(name, []), f"{where}.capabilities.{name}") for name in SETS]
    yield ops.Identity(
        user.get("uid", 0),
        user.get("gid", 0),
        user.get("additionalGids", []),
        keep_groups,
        user.get("umask", DEFAULT_UMASK),
        process["cwd"],
        *sets,
    )
    environment = process.get("env", [])
    candidates = search_path(arguments[0], environment)
    yield ops.FindExecutable(arguments[0], candidates)
    if dumpable:
        yield ops.Dumpable(True)
    if process.get("noNewPrivileges"):
        yield from loading
    yield ops.TellReady()
    if wait:
        yield ops.WaitForStart()
    yield ops.Execute(candidates, arguments, environment)


def search_path(name: str, environment: list[str]) -> list[str]:
    """Return where a program may be: as it is written, or in each directory of PATH."""
    if "/" in name:
        return [name]
    path = DEFAULT_PATH
    for entry in environment:
        if entry.startswith("PATH="):
            path = entry[5:]
    return [f"{directory or '.'}/{name}" for directory in path.split(":")]


def priority_plan(process: Json, where: str = "process") -> Iterator[ops.Operation]:
    """Give what needs the rights of the host's namespaces: the out-of-memory score, and priorities."""
    if process.get("oomScoreAdj") is not None:
        yield ops.OomScore(process["oomScoreAdj"])
    if scheduler := process.get("scheduler"):
        yield _scheduling(scheduler, f"{where}.scheduler")
    if priority := process.get("ioPriority"):
        if priority["class"] not in IO_CLASSES:
            wanted = ", ".join(IO_CLASSES)
            raise ContainerError(f"{where}.ioPriority.class: {priority['class']!r} is not one of {wanted}")
        yield ops.IoPriority(IO_CLASSES[priority["class"]], priority.get("priority", 0))


def label_plan(process: Json) -> list[ops.Operation]:
    """Return how to set the security labels of the program to come, by the stage's own proc."""
    labels: list[ops.Operation] = []
    if process.get("apparmorProfile"):
        labels.append(ops.WriteProc("self/attr/apparmor/exec", f"exec {process['apparmorProfile']}"))
    if process.get("selinuxLabel"):
        labels.append(ops.WriteProc("self/attr/exec", process["selinuxLabel"]))
    return labels


def limits_plan(process: Json, where: str = "process") -> Iterator[ops.Operation]:
    """Give the resource limits."""
    limits: list[tuple[str, int, int, int]] = []
    for number, entry in enumerate(process.get("rlimits", ())):
        name, field = entry["type"], f"{where}.rlimits[{number}]"
        if name not in RLIMIT_NUMBERS:
            raise ContainerError(f"{field}.type: there is no limit {name!r}")
        if any(name == other for other, *_ in limits):
            raise ContainerError(f"{field}.type: {name} is there twice")
        if entry["soft"] > entry["hard"]:
            raise ContainerError(f"{field}.soft: {entry['soft']} is more than the hard limit, {entry['hard']}")
        limits.append((name, RLIMIT_NUMBERS[name], entry["soft"], entry["hard"]))
    if limits:
        yield ops.Rlimits(limits)


def _scheduling(scheduler: Json, where: str) -> ops.Operation:
    if scheduler["policy"] not in POLICIES:
        raise ContainerError(f"{where}.policy: {scheduler['policy']!r} is not one of {', '.join(POLICIES)}")
    flags = 0
    for number, name in enumerate(scheduler.get("flags", ())):
        if name not in SCHEDULER_FLAGS:
            raise ContainerError(f"{where}.flags[{number}]: {name!r} is not one of {', '.join(SCHEDULER_FLAGS)}")
        flags |= SCHEDULER_FLAGS[name]
    times = (scheduler.get(name, 0) for name in ("nice", "priority", "runtime", "deadline", "period"))
    return ops.Scheduling(POLICIES[scheduler["policy"]], flags, *times)


def console_size(process: Json) -> tuple[int, int]:
    """Return the rows and columns of the terminal, 0 for whatever it has."""
    size = process.get("consoleSize", {})
    return size.get("height", 0), size.get("width", 0)
