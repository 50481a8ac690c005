"""resume: let the processes of a paused container go on."""

from __future__ import annotations

from kvmpy.container.state import PAUSED
from kvmpy.container.verbs.pause import cgroup_of
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call
    from kvmpy.container.state import State

OPTIONS: dict[str, str] = {}
WORDS = ("ID",)
SUMMARY = "let the processes of a paused container go on"


def resume(state: State) -> None:
    """Thaw a container; ContainerError when it is not paused."""
    status = state.status()
    if status != PAUSED:
        raise ContainerError(f"container {state.name}: container not paused, but {status}")
    cgroup_of(state).freeze(False)


def main(call: Call) -> int:
    """Run the verb."""
    resume(call.find())
    return 0
