"""features: tell callers what this runtime can do (features.md of the runtime specification)."""

from __future__ import annotations

from kvmpy.container.capabilities import NUMBERS
from kvmpy.container.config import SPEC_VERSION
from kvmpy.container.host import to_json
from kvmpy.container.kernel import NAMESPACES
from kvmpy.container.mount_options import ATTRIBUTES, DEFAULTS, OF_FILESYSTEM, PROPAGATION
from kvmpy.container.seccomp import ACTIONS, ARCHITECTURES, COMPARISONS, FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call

OPTIONS: dict[str, str] = {}
WORDS: tuple[str, ...] = ()
SUMMARY = "print what the runtime can do, as JSON"
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
OTHER_OPTIONS = {"bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"}


def main(call: Call) -> int:
    """Run the verb."""
    recursive = {f"r{name}" for name in ATTRIBUTES}
    options = {*ATTRIBUTES, *recursive, *PROPAGATION, *OF_FILESYSTEM, *DEFAULTS, *OTHER_OPTIONS}
    call.print(
        to_json(
            {
                "ociVersionMin": "1.0.0",
                "ociVersionMax": SPEC_VERSION,
                "hooks": list(HOOKS),
                "mountOptions": sorted(options),
                "linux": {
                    "namespaces": sorted(NAMESPACES),
                    "capabilities": list(NUMBERS),
                    "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
                    "seccomp": {
                        "enabled": True,
                        "actions": list(ACTIONS),
                        "operators": list(COMPARISONS),
                        "archs": [f"SCMP_ARCH_{name}" for name in ARCHITECTURES],
                        "knownFlags": list(FLAGS),
                        "supportedFlags": list(FLAGS),
                    },
                    "apparmor": {"enabled": True},
                    "selinux": {"enabled": True},
                    "intelRdt": {"enabled": False},
                    "mountExtensions": {"idmap": {"enabled": True}},
                },
            }
        )
    )
    return 0
