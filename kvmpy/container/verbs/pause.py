"""pause: stop all processes of a container where they are."""

from __future__ import annotations

from kvmpy.container.state import CREATED, RUNNING
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.cgroup.base import Cgroup
    from kvmpy.container.command_line import Call
    from kvmpy.container.state import State

OPTIONS: dict[str, str] = {}
WORDS = ("ID",)
SUMMARY = "stop all processes of a container where they are"


def cgroup_of(state: State) -> Cgroup:
    """Return the control group of a container, or raise a ContainerError: it has none."""
    cgroup = state.cgroup()
    if cgroup is None:
        raise ContainerError(f"container {state.name} has no control group; only root's have one")
    return cgroup


def pause(state: State) -> None:
    """Freeze a container; ContainerError when it does not run."""
    status = state.status()
    if status not in (CREATED, RUNNING):
        raise ContainerError(f"container {state.name}: cannot pause: container not running, but {status}")
    cgroup_of(state).freeze(True)


def main(call: Call) -> int:
    """Run the verb."""
    pause(call.find())
    return 0
