"""config.json (runtime-spec 1.2): read, and checked field by field, so that every error names its field.

What the specification does not know is accepted, as it asks for; null is the same as absent, as in Go.
"""

from __future__ import annotations

from kvmpy.container.capabilities import SETS
from kvmpy.container.host import parse_json, read_file, reason
from kvmpy.container.kernel import NAMESPACES
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.container.host import Json

SPEC_VERSION = "1.2.1"


class Number:
    """Whole numbers of a range."""

    def __init__(self, lowest: int, highest: int) -> None:
        self.lowest = lowest
        self.highest = highest


class Each:
    """An object whose fields have any name, and values of one kind."""

    def __init__(self, kind: object) -> None:
        self.kind = kind


I32, I64 = Number(-(1 << 31), (1 << 31) - 1), Number(-(1 << 63), (1 << 63) - 1)
U16, U32, U64 = Number(0, (1 << 16) - 1), Number(0, (1 << 32) - 1), Number(0, (1 << 64) - 1)
MODE = Number(0, 0o7777)


def version(value: str) -> str:
    """Versions are semantic; a runtime for 1.x takes every 1.x."""
    parts = value.partition("-")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return f"{value!r} is no version; write {SPEC_VERSION}"
    return "" if parts[0] == "1" else f"version {value} is unknown; kvmpy knows 1.0.0 to {SPEC_VERSION}"


def absolute_path(value: str) -> str:
    """Say what keeps a text from being an absolute path."""
    return path(value) or ("" if value.startswith("/") else f"{value!r} is no absolute path")


def path(value: str) -> str:
    """Say what keeps a text from being a path."""
    if not value:
        return "the path is empty"
    return "the path has a zero byte" if "\0" in value else ""


def text(value: str) -> str:
    """Say what keeps a text from being one for the kernel."""
    return "the text has a zero byte" if "\0" in value else ""


TEXTS = [text]
ID_MAPS = [{"containerID!": U32, "hostID!": U32, "size!": U32}]
HOOKS = [{"path!": absolute_path, "args": TEXTS, "env": TEXTS, "timeout": I32}]
LIMIT = {"weight": U16, "leafWeight": U16}
THROTTLE = [{"major!": I64, "minor!": I64, "rate!": U64}]
CAPABILITIES = {name: [str] for name in SETS}

PROCESS = {
    "terminal": bool,
    "consoleSize": {"height!": U16, "width!": U16},
    "user": {"uid": U32, "gid": U32, "umask": MODE, "additionalGids": [U32], "username": str},
    "args": TEXTS,
    "env": TEXTS,
    "cwd!": absolute_path,
    "capabilities": CAPABILITIES,
    "rlimits": [{"type!": str, "soft!": U64, "hard!": U64}],
    "noNewPrivileges": bool,
    "apparmorProfile": text,
    "selinuxLabel": text,
    "oomScoreAdj": Number(-1000, 1000),
    "scheduler": {
        "policy!": str,
        "nice": I32,
        "priority": I32,
        "flags": [str],
        "runtime": U64,
        "deadline": U64,
        "period": U64,
    },
    "ioPriority": {"class!": str, "priority": Number(0, 7)},
}
RESOURCES = {
    "devices": [
        {"allow": bool, "type": ("a", "b", "c"), "major": I64, "minor": I64, "access": str},
    ],
    "memory": {
        **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), I64),
        "swappiness": Number(0, 100),
        "disableOOMKiller": bool,
        "useHierarchy": bool,
        "checkBeforeUpdate": bool,
    },
    "cpu": {
        "shares": U64,
        "quota": I64,
        "burst": U64,
        "period": U64,
        "realtimeRuntime": I64,
        "realtimePeriod": U64,
        "cpus": text,
        "mems": text,
        "idle": I64,
    },
    "pids": {"limit!": I64},
    "blockIO": {
        **LIMIT,
        "weightDevice": [{"major!": I64, "minor!": I64, **LIMIT}],
        "throttleReadBpsDevice": THROTTLE,
        "throttleWriteBpsDevice": THROTTLE,
        "throttleReadIOPSDevice": THROTTLE,
        "throttleWriteIOPSDevice": THROTTLE,
    },
    "hugepageLimits": [{"pageSize!": str, "limit!": U64}],
    "network": {"classID": U32, "priorities": [{"name!": str, "priority!": U32}]},
    "rdma": Each({"hcaHandles": U32, "hcaObjects": U32}),
    "unified": Each(text),
}
SECCOMP = {
    "defaultAction!": str,
    "defaultErrnoRet": U16,
    "architectures": [str],
    "flags": [str],
    "listenerPath": absolute_path,
    "listenerMetadata": str,
    "syscalls": [
        {
            "names!": [str],
            "action!": str,
            "errnoRet": U16,
            "args": [{"index!": Number(0, 5), "value!": U64, "valueTwo": U64, "op!": str}],
        }
    ],
}
LINUX = {
    "namespaces": [{"type!": tuple(NAMESPACES), "path": absolute_path}],
    "uidMappings": ID_MAPS,
    "gidMappings": ID_MAPS,
    "timeOffsets": Each({"secs": I64, "nanosecs": Number(0, 999_999_999)}),
    "devices": [
        {
            "type!": ("c", "b", "u", "p"),
            "path!": absolute_path,
            "major": I64,
            "minor": I64,
            "fileMode": Number(0, 0o177777),
            "uid": U32,
            "gid": U32,
        }
    ],
    "cgroupsPath": text,
    "resources": RESOURCES,
    "sysctl": Each(text),
    "seccomp": SECCOMP,
    "rootfsPropagation": ("", "shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate"),
    "maskedPaths": [absolute_path],
    "readonlyPaths": [absolute_path],
    "mountLabel": text,
    "personality": {"domain!": ("LINUX", "LINUX32"), "flags": [str]},
    "intelRdt": {},
}
CONFIG = {
    "ociVersion!": version,
    "root": {"path!": path, "readonly": bool},
    "mounts": [
        {
            "destination!": path,
            "type": text,
            "source": text,
            "options": TEXTS,
            "uidMappings": ID_MAPS,
            "gidMappings": ID_MAPS,
        }
    ],
    "process": PROCESS,
    "hostname": text,
    "domainname": text,
    "hooks": dict.fromkeys(
        ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"), HOOKS
    ),
    "annotations": Each(str),
    "linux": LINUX,
}


def load(bundle: str) -> Json:
    """Return the checked configuration of a bundle.

    Raises:
        ContainerError: it cannot be read, is no JSON, or a field is wrong.
    """
    name = f"{bundle}/config.json"
    return check(decode(read(name), name), CONFIG, "config.json")  # type: ignore[no-any-return]


def read(name: str) -> bytes:
    """Return the bytes of a file, or raise a ContainerError that names it."""
    try:
        return read_file(name)
    except OSError as error:
        raise ContainerError(f"{name}: {reason(error)}") from None


def decode(data: bytes, name: str) -> object:
    """Return the JSON value in `data`, which came from the file `name`."""
    try:
        return parse_json(data.decode())
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"{name} is no JSON: {error}") from None


def check(value: object, kind: object, where: str) -> Any:
    """Return the value without its nulls; raise a ContainerError that names the first field that is not of its kind."""
    if isinstance(kind, dict):
        return _object(value, kind, where)
    if isinstance(kind, list):
        return _list(value, kind[0], where)
    if isinstance(kind, Each):
        _demand(type(value) is dict, where, value, "an object")
        return {name: check(v, kind.kind, f"{where}.{name}") for name, v in value.items()}  # type: ignore[attr-defined]
    if isinstance(kind, Number):
        wanted = f"a whole number from {kind.lowest} to {kind.highest}"
        _demand(type(value) is int and kind.lowest <= value <= kind.highest, where, value, wanted)
    elif isinstance(kind, tuple):
        _demand(value in kind, where, value, "one of " + ", ".join(kind))
    elif isinstance(kind, type):
        _demand(type(value) is kind, where, value, "a text" if kind is str else "true or false")
    else:
        _demand(type(value) is str, where, value, "a text")
        complaint = kind(value)  # type: ignore[operator]
        if complaint:
            raise ContainerError(f"{where}: {complaint}")
    return value


def _object(value: object, kind: Json, where: str) -> Json:
    _demand(type(value) is dict, where, value, "an object")
    assert isinstance(value, dict)
    checked = {name: v for name, v in value.items() if v is not None}
    for key, kind_of_field in kind.items():
        name = key.rstrip("!")
        if name in checked:
            checked[name] = check(checked[name], kind_of_field, f"{where}.{name}")
        elif name is not key:
            raise ContainerError(f"{where}.{name} is missing")
    return checked


def _list(value: object, kind: object, where: str) -> list[Any]:
    _demand(type(value) is list, where, value, "a list")
    assert isinstance(value, list)
    return [check(item, kind, f"{where}[{number}]") for number, item in enumerate(value)]


def _demand(fits: bool, where: str, value: object, wanted: str) -> None:
    if not fits:
        shown = repr(value)
        raise ContainerError(f"{where}: {shown[:60]}{'...' if len(shown) > 60 else ''} is not {wanted}")
