"""events: tell what a container uses, and when the kernel killed in it for want of memory."""

from __future__ import annotations

from select import POLLIN, poll

from kvmpy.container.host import to_json
from kvmpy.container.verbs.pause import cgroup_of
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call

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


def main(call: Call) -> int:
    """Run the verb; without --stats until the container ends."""
    state = call.find()
    cgroup = cgroup_of(state)
    process = state.open_process()

    def tell(kind: str, **data: object) -> None:
        call.print(to_json({"type": kind, "id": state.name, **data}))

    if call.has("--stats"):
        tell("stats", data=cgroup.statistics())
        return 0
    interval = seconds(call.value("--interval") or "5s")
    poller = poll()
    poller.register(process, POLLIN)
    with cgroup.watch_out_of_memory() as watch:
        poller.register(watch.fd, POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(interval * 1000)}
            if watch.fd in ready and watch.happened():
                tell("oom")
            if process in ready:
                return 0
            if not ready:
                tell("stats", data=cgroup.statistics())
