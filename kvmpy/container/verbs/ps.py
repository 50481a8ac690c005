"""ps: tell of the processes in a container."""

from __future__ import annotations

from kvmpy.container.host import to_json
from kvmpy.container.verbs.pause import cgroup_of
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call

OPTIONS = {"--format": "table|json"}
SHORT = {"-f": "--format"}
WORDS = ("ID", "[PS OPTION...]")
TAIL = True
SUMMARY = "list a container's processes, as ps(1) shows them"


def main(call: Call) -> int:
    """Run the verb."""
    form = call.value("--format") or "table"
    if form not in ("table", "json"):
        raise ContainerError(f"--format: {form!r} is not one of table, json")
    pids = sorted(cgroup_of(call.find()).pids())
    if form == "json":
        call.print(to_json(pids))
        return 0
    import subprocess

    try:
        done = subprocess.run(["ps", *(call.words[1:] or ["-ef"])], stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ContainerError(f"ps: {error}; use --format json") from None
    head, *lines = done.stdout.splitlines()
    if "PID" not in head.split():
        raise ContainerError("ps: the options leave out the column PID")
    column = head.split().index("PID")
    call.print("\n".join([head, *(line for line in lines if int(line.split()[column]) in pids)]))
    return 0
