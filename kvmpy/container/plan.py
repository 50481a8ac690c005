"""A configuration becomes a plan: the ordered list of operations from the host to the container's program.

The order is the contract, and it is all in `container_plan()`; plan_mounts.py and plan_process.py fill in two parts.
"""

from __future__ import annotations

from kvmpy.container import kernel as k
from kvmpy.container import operations as ops
from kvmpy.container.host import absolute, exists
from kvmpy.container.plan_mounts import device_plan, id_map, mount_plan
from kvmpy.container.plan_process import DOMAINS, console_size, label_plan, limits_plan, priority_plan, process_plan
from kvmpy.container.tape import Descriptors
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.container.cgroup.base import Cgroup
    from kvmpy.container.host import Json
    from kvmpy.container.seccomp import Filter

    IdMap = list[tuple[int, int, int]]
    Operations = Iterator[ops.Operation]

PROPAGATION = {"private": k.MS_PRIVATE, "slave": k.MS_SLAVE, "shared": k.MS_SHARED, "unbindable": k.MS_UNBINDABLE}
# config-linux, Sysctl: only what the container has of its own may be set
SYSCTL_OF = {
    "ipc": (
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
        "kernel.shmmni", "kernel.shm_rmid_forced", "fs.mqueue.",
    ),
    "network": ("net.",),
    "uts": ("kernel.domainname", "kernel.hostname"),
}  # fmt: skip
HOOKS_BEFORE_PIVOT = ("prestart", "createRuntime", "createContainer")


class Plan:
    """What is needed to make one container: its configuration, where it is, and what the caller wants besides.

    `fds` are the descriptors that its operations name; `operations` is filled by `container_plan()`.
    """

    def __init__(
        self,
        config: Json,
        bundle: str,
        name: str,
        *,
        cgroup: Cgroup | None = None,
        filter: Filter | None = None,
        privileged: bool = True,
        pivot: bool = True,
        keyring: bool = True,
        preserved: int = 0,
        layer: str | None = None,
    ) -> None:
        self.config = config
        self.linux: Json = config.get("linux", {})
        self.bundle = bundle
        self.name = name
        self.cgroup = cgroup
        self.filter = filter
        self.privileged = privileged
        self.pivot = pivot
        self.keyring = keyring
        self.layer = layer
        self.fds = Descriptors(preserved)
        self.id_maps: list[tuple[IdMap, IdMap, str, int]] = []  # of idmapped mounts: uids, gids, field, descriptor
        self.new: list[str] = []
        self.joined: list[tuple[str, str, int]] = []
        self._sort_namespaces()
        self.terminal: bool = config["process"].get("terminal", False)
        self.operations = list(container_plan(self))

    def _sort_namespaces(self) -> None:
        entries = {}
        for number, entry in enumerate(self.linux.get("namespaces", ())):
            kind = entry["type"]
            if kind in entries:
                raise ContainerError(f"linux.namespaces[{number}].type: {kind} is there twice")
            if "path" in entry and not exists(entry["path"]):
                raise ContainerError(f"linux.namespaces[{number}].path: {entry['path']}: no such file or directory")
            entries[kind] = entry
        for kind in k.NAMESPACES:
            if kind in entries and "path" in entries[kind]:
                path = entries[kind]["path"]
                self.joined.append((kind, path, self.fds.another(f"namespace_{kind}")))
            elif kind in entries:
                self.new.append(kind)

    def own(self, kind: str) -> bool:
        """Whether the container has a namespace of this kind that is not the runtime's."""
        return kind in self.new or any(kind == joined for joined, _, _ in self.joined)

    @property
    def own_namespaces(self) -> list[str]:
        """The kinds of namespaces that the container does not share with the runtime, in the order of joining."""
        return [kind for kind in k.NAMESPACES if self.own(kind)]

    @property
    def root(self) -> str:
        """The root directory on the host."""
        return absolute(self.config["root"]["path"], self.bundle)


def container_plan(plan: Plan) -> Operations:
    """Give the operations in their order."""
    check(plan)
    config, linux = plan.config, plan.linux
    labels = label_plan(config["process"])

    # Outside, with the rights and the view of the host.
    if plan.privileged:
        yield ops.Dumpable(False)
    opened, join, into = cgroup_plan(plan.cgroup, plan.fds, "cgroup" in plan.new)
    yield from opened
    if plan.joined:
        yield ops.OpenNamespaces(plan.joined)
    yield from priority_plan(config["process"])
    user_namespace = "user" in plan.new
    if user_namespace:
        yield from limits_plan(config["process"])
    mounts, trees = mount_plan(plan)
    yield from trees
    if plan.joined:
        yield ops.JoinNamespaces(plan.joined)
    if linux.get("timeOffsets"):
        yield ops.TimeOffsets(
            {clock: (o.get("secs", 0), o.get("nanosecs", 0)) for clock, o in linux["timeOffsets"].items()}
        )
    shifted = {"time"} if linux.get("timeOffsets") else set()
    yield ops.Fork([kind for kind in plan.new if kind not in {"cgroup", *shifted}], into)

    # Inside the namespaces; the host's directories can still be seen.
    if user_namespace:
        yield ops.MapIds(id_map(linux["uidMappings"]), id_map(linux["gidMappings"]), plan.privileged)
    if not plan.privileged:
        yield ops.Dumpable(False)  # only now: an ordinary user could not have written the maps of such a process
    yield from join
    yield ops.NewSession(f"_ses.{plan.name}", plan.keyring)
    if "network" in plan.new:
        yield ops.Loopback()
    if "mount" in plan.new:
        yield from _root(plan)
        if linux.get("sysctl") or labels:
            yield ops.OpenProc()
        yield from mounts
        yield from device_plan(plan)
        if plan.terminal:
            yield ops.Console(*console_size(config["process"]), True)
        if any(config.get("hooks", {}).get(kind) for kind in HOOKS_BEFORE_PIVOT):
            yield from _hooks_before_pivot(plan)
        yield ops.PivotRoot() if plan.pivot else ops.MoveRoot()
    elif plan.terminal:
        yield ops.OpenRoot()
        yield ops.Console(*console_size(config["process"]), False)

    # Inside the container.
    if config.get("hostname") or config.get("domainname"):
        yield ops.HostNames(config.get("hostname", ""), config.get("domainname", ""))
    yield from labels
    for name, value in linux.get("sysctl", {}).items():
        yield ops.WriteProc(f"sys/{name.replace('.', '/')}", value)
    if "mount" in plan.new:
        yield from _protect(plan)
    if personality := linux.get("personality"):
        yield ops.Personality(DOMAINS[personality["domain"]])
    yield from process_plan(
        config["process"],
        plan.filter,
        limits=not user_namespace,
        keep_groups=plan.own("user") and not (user_namespace and plan.privileged),
        terminal=plan.terminal,
        wait=True,
        dumpable=not plan.privileged,
    )


def _hooks_before_pivot(plan: Plan) -> Operations:
    """Run them while the container can be joined: an ordinary user may not join what is not dumpable (ptrace(2)).

    Nobody else can look in then: where the user namespace is new, nobody has rights over it yet.
    """
    opens = not plan.privileged and "user" in plan.new
    if opens:
        yield ops.Dumpable(True)
    yield ops.RunHooks(HOOKS_BEFORE_PIVOT)
    if opens:
        yield ops.Dumpable(False)


def check(plan: Plan) -> None:
    """Raise a ContainerError for what fits together nowhere, each naming its field."""
    config, linux = plan.config, plan.linux
    if not plan.own("mount"):
        raise ContainerError("linux.namespaces: 'mount' is missing; without it the mounts would change the host's")
    if "mount" not in plan.new:
        made = [field for field in ("maskedPaths", "readonlyPaths", "rootfsPropagation") if linux.get(field)]
        if config.get("mounts") or made:
            field = "mounts" if config.get("mounts") else f"linux.{made[0]}"
            raise ContainerError(f"{field}: the mount namespace is joined by its path, and has what it has")
    if not exists(plan.root):
        raise ContainerError(f"root.path: {plan.root}: no such file or directory")
    if "user" in plan.new:
        for field in ("uidMappings", "gidMappings"):
            if not linux.get(field):
                raise ContainerError(f"linux.{field} is missing; a new user namespace needs it")
    elif not plan.own("user") and (linux.get("uidMappings") or linux.get("gidMappings")):
        raise ContainerError("linux.uidMappings: there is no user namespace in linux.namespaces for it")
    if linux.get("timeOffsets") and "time" not in plan.new:
        raise ContainerError("linux.timeOffsets: there is no new time namespace in linux.namespaces for it")
    for clock in linux.get("timeOffsets", {}):
        if clock not in ("monotonic", "boottime"):
            raise ContainerError(f"linux.timeOffsets: {clock!r} is not one of monotonic, boottime")
    for field in ("hostname", "domainname"):
        if config.get(field) and not plan.own("uts"):
            raise ContainerError(f"{field}: it would change the host's; add 'uts' to linux.namespaces")
    for name in linux.get("sysctl", {}):
        _check_sysctl(plan, name)
    for field in ("intelRdt", "mountLabel"):
        if linux.get(field):
            raise ContainerError(f"linux.{field}: kvmpy does not support it")


def _check_sysctl(plan: Plan, name: str) -> None:
    dotted = name.replace("/", ".")
    if ".." in dotted:
        raise ContainerError(f"linux.sysctl: {name!r} is no name of a sysctl")
    for kind, names in SYSCTL_OF.items():
        if any(dotted == known or (known[-1] == "." and dotted.startswith(known)) for known in names):
            if not plan.own(kind):
                raise ContainerError(f"linux.sysctl: {name} would change the host's; add {kind!r} to linux.namespaces")
            return
    raise ContainerError(f"linux.sysctl: {name} is the whole host's; no container has one of its own")


def cgroup_plan(
    cgroup: Cgroup | None, fds: Descriptors, namespace: bool
) -> tuple[list[ops.Operation], list[ops.Operation], int]:
    """Return how to open the control groups outside, how to join them inside, and the one to be born in, or 0.

    In version 1 a process joins by itself; in version 2 it is born there (CLONE_INTO_CGROUP).
    """
    unshared: list[ops.Operation] = [ops.JoinCgroups([], True)] if namespace else []
    if cgroup is None:
        return [], unshared, 0
    if cgroup.version == 2:
        fd = fds.another("cgroup")
        return [ops.OpenCgroups([(cgroup.process_directory(), fd)], True)], unshared, fd
    files = [(path, int(fds.another(f"cgroup{n}"))) for n, path in enumerate(cgroup.join_files())]
    return [ops.OpenCgroups(files, False)], [ops.JoinCgroups([fd for _, fd in files], namespace)], 0


def _root(plan: Plan) -> Operations:
    propagation = plan.linux.get("rootfsPropagation", "")
    kind = propagation.removeprefix("r") if propagation else "slave"
    yield ops.Propagation(k.MS_PRIVATE if kind in ("private", "unbindable") else k.MS_SLAVE)
    if plan.layer is None:
        yield ops.Root(plan.root)
    else:
        yield ops.OverlayRoot(plan.root, plan.layer, "user" in plan.new)


def _protect(plan: Plan) -> Operations:
    if paths := plan.linux.get("readonlyPaths"):
        yield ops.ReadonlyPaths([absolute(path, "/") for path in paths])
    if paths := plan.linux.get("maskedPaths"):
        yield ops.MaskedPaths([absolute(path, "/") for path in paths])
    propagation = plan.linux.get("rootfsPropagation", "")
    if propagation.removeprefix("r") in ("shared", "unbindable"):
        yield ops.RootPropagation(PROPAGATION[propagation.removeprefix("r")], propagation.startswith("r"))
    cwd = absolute(plan.config["process"]["cwd"], "/")
    if cwd != "/":
        yield ops.MakeDirectory(cwd)
    if plan.config["root"].get("readonly"):
        yield ops.ReadonlyRoot()
