"""update: change the limits of a container that is there."""

from __future__ import annotations

import posix

from kvmpy.container import config as configuration
from kvmpy.container.config import RESOURCES
from kvmpy.container.state import STOPPED
from kvmpy.container.verbs.pause import cgroup_of
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call
    from kvmpy.container.host import Json
    from kvmpy.container.state import State

# option, and where its number is in linux.resources
NUMBERS = {
    "--blkio-weight": ("blockIO", "weight"),
    "--cpu-period": ("cpu", "period"),
    "--cpu-quota": ("cpu", "quota"),
    "--cpu-burst": ("cpu", "burst"),
    "--cpu-rt-period": ("cpu", "realtimePeriod"),
    "--cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "--cpu-share": ("cpu", "shares"),
    "--cpu-idle": ("cpu", "idle"),
    "--memory": ("memory", "limit"),
    "--memory-reservation": ("memory", "reservation"),
    "--memory-swap": ("memory", "swap"),
    "--pids-limit": ("pids", "limit"),
}
TEXTS = {"--cpuset-cpus": ("cpu", "cpus"), "--cpuset-mems": ("cpu", "mems")}
OPTIONS = {"--resources": "FILE", **dict.fromkeys([*NUMBERS, *TEXTS], "VALUE")}
SHORT = {"-r": "--resources"}
WORDS = ("ID",)
SUMMARY = "change a container's limits"


def update(state: State, resources: Json) -> None:
    """Apply resources, as in config.json; ContainerError names what cannot be."""
    if state.status() == STOPPED:
        raise ContainerError(f"container {state.name}: cannot update: container not running")
    cgroup_of(state).apply(configuration.check(resources, RESOURCES, "resources"), "resources")


def resources_of(call: Call) -> Json:
    """Return the resources that the command line asks for."""
    file = call.value("--resources")
    resources: Json = {}
    if file:
        data = _standard_input() if file == "-" else configuration.read(file)
        resources = configuration.check(configuration.decode(data, file), RESOURCES, "resources")
    for table, is_number in ((NUMBERS, True), (TEXTS, False)):
        for option, (group, field) in table.items():
            text = call.value(option)
            if not text:
                continue
            if is_number and not text.removeprefix("-").isdigit():
                raise ContainerError(f"{option}: {text!r} is no whole number")
            resources.setdefault(group, {})[field] = int(text) if is_number else text
    return resources


def _standard_input() -> bytes:
    data = b""
    while piece := posix.read(0, 65536):
        data += piece
    return data


def main(call: Call) -> int:
    """Run the verb."""
    update(call.find(), resources_of(call))
    return 0
