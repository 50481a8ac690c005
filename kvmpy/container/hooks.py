"""Hooks: programs of the user's that run at points of a container's life (config, POSIX-platform Hooks)."""

from __future__ import annotations

import _signal
import posix

from kvmpy.container import operations as ops
from kvmpy.container.host import to_json
from kvmpy.container.launch import Launch
from kvmpy.container.plan_process import process_plan
from kvmpy.container.tape import Descriptors
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.host import Json
    from kvmpy.container.state import State

# Where a hook runs: those of the runtime's namespaces, and those of the container's.
COMPLAINT = 4096  # bytes of a hook's standard error that a message has room for
OUTSIDE = ("prestart", "createRuntime", "poststart", "poststop")


def run_hooks(state: State, kind: str, status: str, pid: int) -> None:
    """Run the hooks of a kind one after the other, each with the container's state on standard input.

    Raises:
        ContainerError: one failed or took longer than its timeout; those after it did not run.
    """
    text = to_json(state.report(status, pid)).encode()
    for number, hook in enumerate(state.hooks(kind)):
        try:
            if kind in OUTSIDE:
                _run_outside(hook, text)
            else:
                process = state.config()["process"] if kind == "startContainer" else None
                _run_inside(hook, text, pid, state.data["namespaces"], process)
        except (OSError, ContainerError, ValueError) as error:
            what = posix.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
            raise ContainerError(f"hooks.{kind}[{number}]: {hook['path']}: {what}") from None


def _run_outside(hook: Json, text: bytes) -> None:
    import subprocess

    arguments = hook.get("args") or [hook["path"]]
    environment = dict(entry.partition("=")[::2] for entry in hook.get("env", ()))
    try:
        done = subprocess.run(
            arguments, executable=hook["path"], env=environment, input=text, timeout=hook.get("timeout"), check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_hear_signals,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ContainerError(f"took longer than {hook['timeout']} s") from None
    _demand_success(done.returncode, done.stderr[:COMPLAINT])


def _hear_signals() -> None:
    """In the child: the runtime may hold signals back just now (foreground.SignalsWait), its hook does not."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _run_inside(hook: Json, text: bytes, pid: int, namespaces: list[str], process: Json | None) -> None:
    """Join the container's namespaces, as exec does. Before pivot_root their root is the host's still."""
    fds = Descriptors()
    arguments = hook.get("args") or [hook["path"]]
    plan: list[ops.Operation] = [ops.Dumpable(False), ops.JoinProcess(namespaces, fds.container), ops.Fork([], 0)]
    if process:
        its = {**process, "args": [hook["path"], *arguments[1:]], "env": hook.get("env", [])}
        plan += process_plan({**its, "terminal": False}, None, limits=False, keep_groups="user" in namespaces)
    else:
        plan += [ops.CloseDirectories(), ops.TellReady(), ops.Execute([hook["path"]], arguments, hook.get("env", []))]
    state, said = posix.memfd_create("state", posix.MFD_CLOEXEC), posix.memfd_create("said", posix.MFD_CLOEXEC)
    null = posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC)
    pidfd = posix.pidfd_open(pid, 0)
    try:
        posix.pwrite(state, text, 0)
        with Launch(plan, fds) as launch:
            launch.start({fds.container: pidfd, 0: state, 1: null, 2: said})
            launch.go_on()
            timeout = hook.get("timeout")
            status = launch.wait(None if timeout is None else timeout * 1000)
        complaint = posix.pread(said, COMPLAINT, 0)
    finally:
        for fd in (state, said, null, pidfd):
            posix.close(fd)
    if status is None:
        raise ContainerError(f"took longer than {timeout} s")
    _demand_success(posix.waitstatus_to_exitcode(status), complaint)


def _demand_success(code: int, complaint: bytes) -> None:
    if code:
        said = complaint.decode(errors="replace").strip().replace("\n", "; ")
        raise ContainerError(f"exit status {code}" + (f": {said}" if said else ""))
