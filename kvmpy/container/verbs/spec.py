"""spec: write a configuration to begin with."""

from __future__ import annotations

import posix

from kvmpy.container.config import SPEC_VERSION
from kvmpy.container.defaults import MASKED_PATHS, MOUNTS, READONLY_PATHS
from kvmpy.container.host import DEFAULT_PATH, absolute, reason, write_file
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call
    from kvmpy.container.host import Json

OPTIONS = {"--bundle": "DIR", "--rootless": ""}
SHORT = {"-b": "--bundle"}
WORDS: tuple[str, ...] = ()
SUMMARY = "write a config.json to begin with"
CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]


def specification(rootless: bool) -> Json:
    """Return a configuration that runs a shell in ./rootfs on a terminal."""
    kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    linux: Json = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in (*kinds, *(["user"] if rootless else []))],
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READONLY_PATHS,
    }
    if rootless:
        del linux["resources"]
        linux["uidMappings"] = [{"containerID": 0, "hostID": posix.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": posix.getegid(), "size": 1}]
    mounts = [
        {"destination": target, "type": kind, "source": source, "options": options}
        for target, kind, source, options in MOUNTS
    ]
    if not rootless:
        options = ["nosuid", "noexec", "nodev", "relatime", "ro"]
        mounts.append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options})
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [f"PATH={DEFAULT_PATH}", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "kvmpy",
        "mounts": mounts,
        "linux": linux,
    }


def main(call: Call) -> int:
    """Run the verb."""
    import json

    path = absolute("config.json", absolute(call.value("--bundle") or ".", posix.getcwd()))
    text = json.dumps(specification(call.has("--rootless")), indent="\t") + "\n"
    try:
        write_file(path, text, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o644)
    except FileExistsError:
        raise ContainerError(f"{path} exists; remove it first") from None
    except OSError as error:
        raise ContainerError(f"{path}: {reason(error)}") from None
    return 0
