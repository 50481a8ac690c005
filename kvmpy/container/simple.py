"""The shortest way to a container: a root directory, a command and a few wishes become an OCI configuration."""

from __future__ import annotations

import posix

from kvmpy.container import capabilities
from kvmpy.container.config import SPEC_VERSION
from kvmpy.container.default_filter import default_filter
from kvmpy.container.defaults import MASKED_PATHS, MOUNTS, READONLY_PATHS
from kvmpy.container.host import DEFAULT_PATH, absolute, read_file
from kvmpy.container.kernel import NAMESPACES
from kvmpy.container.libseccomp import available as filters_system_calls
from kvmpy.container.rootfs import resolve
from kvmpy.errors import ContainerError
from kvmpy.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.container.host import Json

SHORT_NAMES = {"net": "network", "mnt": "mount", "mount": "mount", **{kind: kind for kind in NAMESPACES}}
CPU_PERIOD = 100_000  # microseconds
EVERY_ID = (1 << 32) - 1
WITHOUT_FILTER = "system calls are not filtered; install libseccomp2"
# What is in the directory of a layer: upper/ is the container's, the rest overlayfs's, where #... are its leftovers.
LAYER = {"": ("upper", "work"), "work/": ("work",), "work/work/": ()}
WITHOUT_ROOT = "without root: only your own user id, and no limits on memory, CPUs or processes"


@record
class Wish:
    """What a person wants of a container; everything else is as the field has it by default.

    `memory` is in bytes, `cpus` in processors' worth of time, `volumes` are SOURCE:TARGET[:ro], `share` the kinds of
    namespaces to share with the host. With `overlay` the root stays as it is: what is written goes to the directory
    `layer`, which is made if it is missing, or else to memory; `layer` alone means `overlay`, too.
    """

    rootfs: str
    command: list[str]
    env: list[str] = field(default_factory=list)
    cwd: str = "/"
    user: str = "0"
    hostname: str = ""
    terminal: bool = False
    read_only: bool = False
    memory: int = 0
    cpus: float = 0.0
    pids: int = 0
    volumes: list[str] = field(default_factory=list)
    overlay: bool = False
    layer: str = ""
    share: list[str] = field(default_factory=list)


def configuration(wish: Wish) -> Json:
    """Return the OCI configuration (runtime-spec 1.2) of a wish; paths are seen from the current directory.

    Raises:
        ContainerError: it cannot be; the message says which wish, and why.
    """
    here = posix.getcwd()
    rootfs = absolute(wish.rootfs, here)
    privileged = posix.geteuid() == 0
    kinds = _namespaces(wish, privileged)
    uid, gid, home = find_user(rootfs, wish.user)
    environment = [f"PATH={DEFAULT_PATH}", f"HOME={home}", "container=kvmpy"]
    if wish.terminal:
        environment.append("TERM=" + posix.environ.get(b"TERM", b"xterm").decode(errors="replace"))
    names = [f"CAP_{name}" for name in capabilities.DEFAULT]
    linux: Json = {
        "namespaces": [{"type": kind} for kind in kinds],
        "resources": _resources(wish, privileged),
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READONLY_PATHS,
    }
    if filters_system_calls():
        linux["seccomp"] = default_filter()
    if "user" in kinds:
        linux |= _id_maps(privileged)
    return {
        "ociVersion": SPEC_VERSION,
        "root": {"path": rootfs, "readonly": wish.read_only},
        "hostname": (wish.hostname or "kvmpy") if "uts" in kinds else wish.hostname,
        "process": {
            "terminal": wish.terminal,
            "user": {"uid": uid, "gid": gid},
            "args": wish.command,
            "env": environment + wish.env,
            "cwd": absolute(wish.cwd, "/"),
            "noNewPrivileges": True,
            "capabilities": {"bounding": names, "effective": names, "permitted": names} if uid == 0 else {},
        },
        "mounts": _mounts(wish, kinds, privileged, here),
        "linux": linux,
    }


def layer_of(wish: Wish) -> str | None:
    """Return where what the container writes goes, as `Extras.layer` has it."""
    if not wish.layer:
        return "" if wish.overlay else None
    here = posix.getcwd()
    layer = absolute(wish.layer, here)
    _check_layer(layer, absolute(wish.rootfs, here))
    return layer


def _check_layer(layer: str, root: str) -> None:
    """Raise a ContainerError for a directory that is somebody's own: overlayfs empties what it finds in work/."""
    from os.path import commonpath, realpath

    real, lower = realpath(layer), realpath(root)
    if commonpath([real, lower]) in (real, lower):
        raise ContainerError(f"--layer: {layer} and {root} lie in each other; give a directory beside the root")
    found = [
        f"{below}{name}"
        for below, names in LAYER.items()
        for name in _names(f"{layer}/{below}")
        if name not in names and not name.startswith("#")
    ]
    if "upper" not in _names(layer):
        found += _names(layer)
    if found:
        raise ContainerError(f"--layer: {layer} is no layer: {found[0]} is in it; give a new or an empty directory")


def _names(directory: str) -> list[str]:
    try:
        return posix.listdir(directory)
    except OSError:
        return []


def _namespaces(wish: Wish, privileged: bool) -> list[str]:
    shared = set()
    for name in wish.share:
        if name not in SHORT_NAMES or SHORT_NAMES[name] == "mount":
            known = "cgroup, ipc, net, pid, time, user, uts"
            raise ContainerError(f"--share: {name!r} cannot be shared; there are {known}")
        shared.add(SHORT_NAMES[name])
    if not privileged and "user" in shared:
        raise ContainerError("--share user needs root: without it only a user namespace gives the right to the others")
    return [kind for kind in NAMESPACES if kind not in shared]


def _id_maps(privileged: bool) -> dict[str, list[dict[str, int]]]:
    """Root's ids are the host's, so that files keep their owners; without root there is one id to map."""
    size = EVERY_ID if privileged else 1
    return {
        name: [{"containerID": 0, "hostID": 0 if privileged else own, "size": size}]
        for name, own in (("uidMappings", posix.geteuid()), ("gidMappings", posix.getegid()))
    }


def _resources(wish: Wish, privileged: bool) -> Json:
    resources = limits(wish.memory, wish.cpus, wish.pids)
    if resources and not privileged:
        raise ContainerError("--memory, --cpus and --pids need root: control groups belong to it")
    if privileged:
        resources["devices"] = [{"allow": False, "access": "rwm"}]
    return resources


def limits(memory: int, cpus: float, pids: int) -> Json:
    """Return limits as config-linux, Control groups, has them: bytes, processors' worth of time, processes; 0: none."""
    resources: dict[str, Any] = {}
    if memory:
        resources["memory"] = {"limit": memory}
    if cpus:
        resources["cpu"] = {"quota": max(int(cpus * CPU_PERIOD), 1000), "period": CPU_PERIOD}
    if pids:
        resources["pids"] = {"limit": pids}
    return resources


def _mounts(wish: Wish, kinds: list[str], privileged: bool, here: str) -> list[Json]:
    mounts: list[Json] = []
    for target, kind, source, options in MOUNTS:
        if kind == "mqueue" and "ipc" not in kinds:
            continue
        if kind == "sysfs" and "network" not in kinds and "user" in kinds:
            mounts.append({"destination": target, "source": "/sys", "options": ["rbind", "rro", "nosuid", "nodev"]})
            continue
        if kind == "proc" and "pid" not in kinds and "user" in kinds:
            mounts.append({"destination": target, "source": "/proc", "options": ["rbind", "nosuid", "nodev"]})
            continue
        more = ["gid=5"] if kind == "devpts" and privileged else []
        mounts.append({"destination": target, "type": kind, "source": source, "options": options + more})
    if privileged:
        options = ["nosuid", "noexec", "nodev", "ro"]
        mounts.append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options})
    for volume in wish.volumes:
        source, _, rest = volume.partition(":")
        target, _, mode = rest.partition(":")
        if not source or not target.startswith("/") or mode not in ("", "ro", "rw"):
            raise ContainerError(f"--volume: {volume!r} is not SOURCE:/TARGET or SOURCE:/TARGET:ro")
        rights = ["rbind", "rro" if mode == "ro" else "rw", "rprivate"]
        mounts.append({"destination": target, "source": absolute(source, here), "options": rights})
    return mounts


def find_user(rootfs: str, user: str) -> tuple[int, int, str]:
    """Return user id, group id and home of UID, UID:GID or a name of the container's own /etc/passwd."""
    name, colon, group = user.partition(":")
    entries = _table(rootfs, "passwd")
    for entry in entries:
        if len(entry) > 5 and name in (entry[0], entry[2]):
            uid, gid, home = int(entry[2]), int(entry[3]), entry[5] or "/"
            break
    else:
        if not name.isdigit() or int(name) >= EVERY_ID:
            raise ContainerError(f"--user: there is no user {name!r} in the container's /etc/passwd")
        uid, gid, home = int(name), 0, "/root" if int(name) == 0 else "/"
    if not colon:
        return uid, gid, home
    for entry in _table(rootfs, "group"):
        if len(entry) > 2 and group in (entry[0], entry[2]):
            return uid, int(entry[2]), home
    if not group.isdigit() or int(group) >= EVERY_ID:
        raise ContainerError(f"--user: there is no group {group!r} in the container's /etc/group")
    return uid, int(group), home


def _table(rootfs: str, name: str) -> list[list[str]]:
    """Return the lines of a table below the container's /etc; its links lead nowhere but into the container."""
    try:
        text = read_file(rootfs + resolve(rootfs, f"/etc/{name}", []), 1 << 20)
    except OSError:
        return []
    rows = [line.split(":") for line in text.decode(errors="replace").splitlines()]
    return [
        row for row in rows if len(row) > 2 and all(cell.isdigit() for cell in row[2 : 4 if name == "passwd" else 3])
    ]
