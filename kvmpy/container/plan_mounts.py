"""The part of a plan that mounts: linux and root say what belongs to every container, mounts[] the rest."""

from __future__ import annotations

from kvmpy.container import kernel as k
from kvmpy.container import operations as ops
from kvmpy.container.host import absolute, is_directory, reason
from kvmpy.container.mount_options import MountOptions
from kvmpy.container.rootfs import resolve
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.container.host import Json
    from kvmpy.container.plan import Plan

DEVICE_KINDS = {"c": k.S_IFCHR, "u": k.S_IFCHR, "b": k.S_IFBLK, "p": k.S_IFIFO}
CGROUP_TYPES = ("cgroup", "cgroup2")


def mount_plan(plan: Plan) -> tuple[list[ops.Operation], list[ops.Operation]]:
    """Return the mounts, and what must be taken from the host for them while the process still has its rights."""
    mounts: list[ops.Operation] = []
    trees: list[ops.Operation] = []
    covered: list[str] = []
    for number, mount in enumerate(plan.config.get("mounts", ())):
        where = f"mounts[{number}]"
        options = MountOptions(mount.get("options", []))
        target = absolute(mount["destination"], "/")
        if target == "/":
            raise ContainerError(f"{where}.destination: {mount['destination']!r} is the root, which is mounted already")
        missing = resolve(plan.root, target, covered)
        kind = mount.get("type", "")
        if options.remount:
            mounts.append(ops.Remount(target, options))
        elif options.bind or kind == "bind":
            mounts.append(_bind(plan, mount, where, target, missing, options, trees))
        elif kind in CGROUP_TYPES:
            mounts.append(_cgroup(plan, where, target, missing, options))
        elif not kind:
            raise ContainerError(f"{where}.type is missing; only a bind mount has none")
        else:
            if target == "/dev":
                options.leave_writable()  # for the devices; device_plan makes it read-only
            made = ops.FilesystemMount(kind, mount.get("source", kind), target, missing, options)
            mounts.append(_filled(plan, made) if options.copy_up else made)
        covered.append(target)
    return mounts, trees


def _filled(plan: Plan, mount: ops.FilesystemMount) -> ops.Operation:
    from kvmpy.container.operations.copy_up import copy_up

    return copy_up(plan.root, mount)


def _bind(
    plan: Plan,
    mount: Json,
    where: str,
    target: str,
    missing: str,
    options: MountOptions,
    trees: list[ops.Operation],
) -> ops.Operation:
    if not mount.get("source"):
        raise ContainerError(f"{where}.source is missing")
    source = absolute(mount["source"], plan.bundle)
    try:
        directory = is_directory(source)
    except OSError as error:
        raise ContainerError(f"{where}.source: {source}: {reason(error)}") from None
    mapped = options.idmap or "uidMappings" in mount or "gidMappings" in mount
    tree = 0
    if mapped or (plan.privileged and "user" in plan.new):
        tree = plan.fds.another(f"tree{len(trees)}")
        map_fd = _id_map(plan, mount, where) if mapped else 0
        trees.append(ops.OpenTree(source, options.bind_all, map_fd, options.idmap_all, tree))
    return ops.BindMount(source, target, missing, directory, options, tree)


def _id_map(plan: Plan, mount: Json, where: str) -> int:
    """Return the descriptor of the map of an idmapped mount: its own, or else the container's."""
    if not plan.privileged:
        raise ContainerError(f"{where}: an idmapped mount needs root")
    maps = mount if "uidMappings" in mount else plan.linux
    for field in ("uidMappings", "gidMappings"):
        if not maps.get(field):
            raise ContainerError(f"{where}.{field} is missing; an idmapped mount needs it, or the container's own")
    fd = plan.fds.another(f"idmap{len(plan.id_maps)}")
    plan.id_maps.append((id_map(maps["uidMappings"]), id_map(maps["gidMappings"]), where, fd))
    return fd


def id_map(entries: list[Json]) -> list[tuple[int, int, int]]:
    """Return a mapping of ids as (container's, host's, how many)."""
    return [(entry["containerID"], entry["hostID"], entry["size"]) for entry in entries]


def _cgroup(plan: Plan, where: str, target: str, missing: str, options: MountOptions) -> ops.Operation:
    if plan.cgroup is None:
        raise ContainerError(f"{where}.type: the container has no control groups of its own to show")
    if plan.cgroup.version == 2:
        return ops.FilesystemMount("cgroup2", "cgroup", target, missing, options)
    groups, links = plan.cgroup.mounts()
    return ops.CgroupMount(target, missing, groups, links, options)


def device_plan(plan: Plan) -> Iterator[ops.Operation]:
    """Give the default devices and the configured ones; a /dev that is the host's own is left alone."""
    options: list[str] = []
    for mount in plan.config.get("mounts", ()):
        if absolute(mount["destination"], "/") == "/dev":
            options += mount.get("options", ())
    if "bind" in options or "rbind" in options:
        return
    devices = {device.path: device for device in ops.DEFAULT_DEVICES}
    for number, entry in enumerate(plan.linux.get("devices", ())):
        device = _device(entry, f"linux.devices[{number}]")
        devices[device.path] = device
    yield ops.MakeDevices(list(devices.values()), plan.own("user") or not plan.privileged)
    yield ops.LinkDevices(ops.DEVICE_LINKS)
    if "ro" in options:
        yield ops.Remount("/dev", MountOptions(["ro"]))


def _device(entry: Json, where: str) -> ops.Device:
    if entry["type"] != "p" and not ("major" in entry and "minor" in entry):
        raise ContainerError(f"{where}: major and minor are missing; a device of type {entry['type']!r} needs them")
    path = absolute(entry["path"], "/")
    mode = entry.get("fileMode", 0o666) & 0o7777
    owner = entry.get("uid", 0), entry.get("gid", 0)
    return ops.Device(path, DEVICE_KINDS[entry["type"]], entry.get("major", 0), entry.get("minor", 0), mode, *owner)
