"""Processes by descriptors, which never mean another process: signals, and waiting for the end."""

from __future__ import annotations

import _signal
import posix

from kvmpy.container.host import process_fields, start_time
from kvmpy.errors import ContainerError

SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25
POLLIN = 1
HIGHEST_SIGNAL = 64


def send_signal(pidfd: int, number: int) -> None:
    """Send a signal; a process that has ended does not mind."""
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def wait_for_end(pidfd: int, milliseconds: float | None) -> bool:
    """Wait until a process has ended; say whether it has within that time."""
    from select import poll

    poller = poll()
    poller.register(pidfd, POLLIN)
    return bool(poller.poll(milliseconds))


def exit_code(status: int) -> int:
    """Return the exit code for a wait status: the program's own, or 128 + the signal it died of, as shells have it."""
    code = posix.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def bury(pid: int, started: int) -> None:
    """Take note of the end of a process, if it is this one's child: else nobody would."""
    if pid and start_time(pid, ended=True) == started:
        try:
            posix.waitpid(pid, posix.WNOHANG)
        except ChildProcessError:
            pass


def pid_namespace(pid: int) -> str:
    """Return what names the pid namespace of a process (namespaces(7)), or "" if that cannot be seen."""
    try:
        return posix.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def bury_inside(namespace: str) -> None:
    """Take note of the end of this process's children in a pid namespace whose first process was killed.

    That one ends last, when all others are gone for good (pid_namespaces(7)); and what `exec` started is our child. In
    the namespace that this process is in nobody waits for that, and its children are not the container's.
    """
    if namespace in ("", pid_namespace(posix.getpid())):
        return
    for child in children():
        if pid_namespace(child) == namespace:
            try:
                posix.waitpid(child, posix.WNOHANG)
            except ChildProcessError:
                pass  # another thread was quicker


def children() -> list[int]:
    """Return this process's children, ended ones too."""
    found = []
    for name in filter(str.isdigit, posix.listdir("/proc")):
        try:
            parent = int(process_fields(name)[1])
        except OSError:
            continue  # it has just gone
        if parent == posix.getpid():
            found.append(int(name))
    return found


def signal_number(text: str) -> int:
    """Return the number of a signal: 9, KILL or SIGKILL."""
    if text.isdigit() and 0 < int(text) <= HIGHEST_SIGNAL:
        return int(text)
    name = text.upper()
    number = getattr(_signal, name if name.startswith("SIG") else f"SIG{name}", None)
    if not isinstance(number, int) or not name.removeprefix("SIG").isalnum() or "_" in name:
        raise ContainerError(f"unknown signal {text!r}; write a number or a name such as TERM")
    return int(number)
