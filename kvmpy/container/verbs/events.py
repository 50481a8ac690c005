"""events: tell what a container uses, and when the kernel killed in it for want of memory."""

from __future__ import annotations

import posix
from select import POLLIN, poll

from kvmpy.container.host import to_json
from kvmpy.container.verbs.pause import cgroup_of
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvmpy.container.command_line import Call
    from kvmpy.container.host import Json
    from kvmpy.container.state import State

OPTIONS = {"--stats": "", "--interval": "SECONDS"}
WORDS = ("ID",)
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}
SUMMARY = "print what a container uses, once (--stats) or every five seconds"


def seconds(text: str) -> float:
    """Return an interval in seconds: 5, 5s, 500ms or 1m."""
    number, factor = text, 1.0
    for unit, its_factor in UNITS.items():
        if text.endswith(unit):
            number, factor = text.removesuffix(unit), its_factor
            break
    try:
        value = float(number) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ContainerError(f"--interval: {text!r} is no time; write 5s")
    return value


def watch(state: State, interval: float) -> Iterator[tuple[str, Json]]:
    """Give ("stats", what it uses) every `interval` seconds, ("oom", {}) when the kernel killed; until it ends."""
    cgroup = cgroup_of(state)
    process = state.open_process()
    poller = poll()
    poller.register(process, POLLIN)
    try:
        with cgroup.watch_out_of_memory() as killing:
            poller.register(killing.fd, POLLIN)
            while True:
                ready = {fd for fd, _ in poller.poll(interval * 1000)}
                if killing.fd in ready and killing.happened():
                    yield "oom", {}
                if process in ready:
                    return
                if not ready:
                    yield "stats", cgroup.statistics()
    finally:
        posix.close(process)


def main(call: Call) -> int:
    """Run the verb; without --stats until the container ends."""
    state = call.find()
    if call.has("--stats"):
        posix.close(state.open_process())  # what has ended uses nothing
        found: Iterable[tuple[str, Json]] = [("stats", cgroup_of(state).statistics())]
    else:
        found = watch(state, seconds(call.value("--interval") or "5s"))
    for kind, data in found:
        call.print(to_json({"type": kind, "id": state.name, **({"data": data} if data else {})}))
    return 0
