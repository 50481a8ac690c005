"""exec: run another program in a container."""

from __future__ import annotations

import posix

from kvmpy.container import config as configuration
from kvmpy.container import operations as ops
from kvmpy.container import seccomp
from kvmpy.container.config import PROCESS
from kvmpy.container.foreground import SignalsWait, Terminal, wait
from kvmpy.container.launch import Launch
from kvmpy.container.plan import cgroup_plan
from kvmpy.container.plan_process import console_size, label_plan, limits_plan, priority_plan, process_plan
from kvmpy.container.state import CREATED, PAUSED, RUNNING
from kvmpy.container.tape import Descriptors
from kvmpy.container.verbs.create import Extras, connect_console, write_pid_file
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.container.command_line import Call
    from kvmpy.container.host import Json
    from kvmpy.container.state import State

OPTIONS = {
    "--process": "FILE",
    "--detach": "",
    "--pid-file": "FILE",
    "--console-socket": "PATH",
    "--tty": "",
    "--cwd": "DIR",
    "--env": "NAME=VALUE",
    "--user": "UID[:GID]",
    "--additional-gids": "GID",
    "--cap": "CAP",
    "--no-new-privs": "",
    "--preserve-fds": "N",
    "--ignore-paused": "",
    "--process-label": "LABEL",
    "--apparmor": "PROFILE",
}
SHORT = {
    "-p": "--process", "-d": "--detach", "-t": "--tty", "-e": "--env", "-u": "--user", "-g": "--additional-gids",
    "-c": "--cap",
}  # fmt: skip
WORDS = ("ID", "[COMMAND...]")
TAIL = True
SUMMARY = "run another program in a container"


def execute(state: State, process: Json, extras: Extras, root: str, ignore_paused: bool = False) -> int:
    """Start a program in a running container and return its pid; it is a child of this process.

    `process` is as in config.json. Raises ContainerError, and then nothing runs.
    """
    status = state.status()
    if status == PAUSED and not ignore_paused:
        raise ContainerError(f"container {state.name}: cannot exec in a paused container; use --ignore-paused")
    if status not in (CREATED, RUNNING, PAUSED):
        raise ContainerError(f"container {state.name}: cannot exec in a {status} container: container not running")
    pidfd = state.open_process()
    fds = Descriptors(extras.preserved)
    try:
        plan = list(exec_plan(state, process, fds, root))
        with Launch(plan, fds) as launch:
            descriptors = extras.streams | {3 + n: 3 + n for n in range(extras.preserved)}
            descriptors[fds.container] = pidfd
            if extras.console >= 0:
                descriptors[fds.console] = extras.console
            launch.start(descriptors)
            if extras.pid_file:
                write_pid_file(extras.pid_file, launch.pid)
            launch.go_on()
            return launch.pid
    finally:
        posix.close(pidfd)


def exec_plan(state: State, process: Json, fds: Descriptors, root: str) -> Iterator[ops.Operation]:
    """Give the operations that lead into a container."""
    config = state.config()
    profile = config.get("linux", {}).get("seccomp")
    kinds = state.data["namespaces"]
    terminal = process.get("terminal", False)
    opened, join, into = cgroup_plan(state.cgroup(), fds, False)
    yield from opened
    yield from priority_plan(process)  # an ordinary user may not, once this process cannot be looked into
    yield ops.Dumpable(False)
    if "user" in kinds:
        yield from limits_plan(process)
    yield ops.JoinProcess(kinds, fds.container)
    yield ops.Fork([], into)
    yield from join
    yield ops.NewSession(f"_ses.{state.name}", True)
    if terminal:
        yield ops.OpenRoot()
        yield ops.Console(*console_size(process), False)
    if labels := label_plan(process):
        yield ops.OpenProc()
        yield from labels
    yield from process_plan(
        process,
        seccomp.load(root, profile, "linux.seccomp") if profile else None,
        limits="user" not in kinds,
        keep_groups="user" in kinds,
        terminal=terminal,
    )


def process_of(call: Call, config: Json) -> Json:
    """Return the process that the command line asks for: a file's, or the container's own with other arguments."""
    file = call.value("--process")
    if file:
        process: Json = configuration.check(configuration.decode(configuration.read(file), file), PROCESS, "process")
        return process
    process = dict(config["process"])
    if len(call.words) < 2:
        raise ContainerError("exec: there is no command; give one, or --process FILE")
    process["args"] = call.words[1:]
    process["env"] = process.get("env", []) + call.values("--env")
    process["terminal"] = call.has("--tty")
    process["cwd"] = call.value("--cwd") or process["cwd"]
    user = dict(process.get("user", {}))
    if call.value("--user"):
        uid, _, gid = call.value("--user").partition(":")
        if not uid.isdigit() or not (gid or "0").isdigit():
            raise ContainerError(f"--user: {call.value('--user')!r} is not UID or UID:GID")
        user |= {"uid": int(uid), "gid": int(gid or user.get("gid", 0))}
    groups = call.values("--additional-gids")
    if not all(group.isdigit() for group in groups):
        raise ContainerError(f"--additional-gids: {groups} are no numbers")
    user["additionalGids"] = user.get("additionalGids", []) + [int(group) for group in groups]
    process["user"] = user
    for option, field in (("--apparmor", "apparmorProfile"), ("--process-label", "selinuxLabel")):
        if call.value(option):
            process[field] = call.value(option)
    if call.has("--no-new-privs"):
        process["noNewPrivileges"] = True
    more = [name if name.startswith("CAP_") else f"CAP_{name}" for name in call.values("--cap")]
    if more:
        sets = process.get("capabilities", {})
        process["capabilities"] = {
            name: sets.get(name, []) + (more if name in ("bounding", "effective", "permitted") else []) for name in
            ("bounding", "effective", "permitted", "inheritable", "ambient")
        }  # fmt: skip
    return configuration.check(process, PROCESS, "process")  # type: ignore[no-any-return]


def main(call: Call) -> int:
    """Run the verb; the exit code is the program's."""
    state = call.find()
    process = process_of(call, state.config())
    socket = call.value("--console-socket")
    terminal = Terminal() if process.get("terminal") and not socket else None
    if terminal and call.has("--detach"):
        raise ContainerError("--tty with --detach needs --console-socket: nobody would hold the terminal")
    console = connect_console(socket) if socket else terminal.console if terminal else -1
    extras = Extras(console=console, pid_file=call.value("--pid-file"), preserved=call.number("--preserve-fds"))
    try:
        with SignalsWait():
            pid = execute(state, process, extras, call.store.root, call.has("--ignore-paused"))
            if terminal:
                terminal.receive()
            return 0 if call.has("--detach") else wait(pid, terminal).code
    finally:
        if terminal:
            terminal.__exit__()
