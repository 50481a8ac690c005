"""state: tell what a container is and does, as JSON."""

from __future__ import annotations

from kvmpy.container.host import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call

OPTIONS: dict[str, str] = {}
WORDS = ("ID",)
SUMMARY = "print a container's state"


def main(call: Call) -> int:
    """Run the verb."""
    call.print(to_json(call.find().report()))
    return 0
