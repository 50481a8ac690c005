"""A container in the foreground: its terminal, the signals for it, and how it ended."""

from __future__ import annotations

import _signal
import posix
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socketpair
from select import POLLIN, poll

from kvmpy.container.process import SIGKILL, exit_code, send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

PASSED_ON = tuple(
    number
    for number in sorted(_signal.valid_signals())
    if number not in (_signal.SIGCHLD, _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGWINCH, _signal.SIGPIPE)
    and number
    not in (_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGABRT, _signal.SIGTRAP)
)
PIECE = 1 << 16
ENDS = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)


class Terminal:
    """The container's terminal, shown on this process's own. Use as a context manager: the terminal is as it was then.

    `console` is the descriptor for `Extras.console`.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socketpair(AF_UNIX, SOCK_STREAM)
        self._saved: list[object] | None = None
        self.master = -1

    @property
    def console(self) -> int:
        """The end that the container sends its terminal to."""
        return self._theirs.fileno()

    def receive(self) -> None:
        """Take the terminal that the container made, and make our own one raw."""
        _, ancillary, _, _ = self._ours.recvmsg(4096, 64)
        for level, kind, data in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                self.master = int.from_bytes(data[:4], "little")
        if posix.isatty(0):
            import termios
            import tty

            self._saved = termios.tcgetattr(0)
            self.resize()
            tty.setraw(0)

    def resize(self) -> None:
        """Give the container's terminal the size of our own."""
        if self.master >= 0 and posix.isatty(0):
            import termios
            from fcntl import ioctl

            ioctl(self.master, termios.TIOCSWINSZ, ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
        if self.master >= 0:
            posix.close(self.master)
        self._ours.close()
        self._theirs.close()


class Signals:
    """While it is entered, signals to this process go to the container's.

    The first process of a pid namespace does not die of a signal that it has no handler for (pid_namespaces(7)): Ctrl-C
    would do nothing. With `fatal`, one that asks for the end kills such a process, and `number` tells.
    """

    def __init__(self, pid: int, pidfd: int, fatal: bool, resize: Callable[[], None] | None) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._fatal = fatal
        self._resize = resize
        self._before: list[tuple[int, object]] = []
        self.number = 0

    def __enter__(self) -> Self:
        for number in PASSED_ON:
            if _signal.getsignal(number) != _signal.SIG_IGN:
                self._before.append((number, _signal.signal(number, self._caught)))
        if self._resize:
            self._before.append((_signal.SIGWINCH, _signal.signal(_signal.SIGWINCH, self._resized)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            _signal.signal(number, handler if handler is not None else _signal.SIG_DFL)

    def _caught(self, number: int, _frame: object) -> None:
        if self._fatal and number in ENDS and not _has_handler(self._pid, number):
            self.number = number
            number = SIGKILL
        send_signal(self._pidfd, number)

    def _resized(self, _number: int, _frame: object) -> None:
        if self._resize:
            self._resize()


def _has_handler(pid: int, number: int) -> bool:
    """Whether a process catches a signal (proc(5), status, SigCgt)."""
    from kvmpy.container.host import read_file

    try:
        for line in read_file(f"/proc/{pid}/status").splitlines():
            if line.startswith(b"SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except FileNotFoundError:
        pass
    return True


def wait(
    pid: int, terminal: Terminal | None = None, fatal: bool = False, started: Callable[[], None] | None = None
) -> int:
    """Pass signals and the terminal on until a child has ended; return its exit code, 128 + the signal it died of.

    `started` is called when signals are passed on already: what it starts cannot miss one.
    """
    pidfd = posix.pidfd_open(pid, 0)
    try:
        with Signals(pid, pidfd, fatal, terminal.resize if terminal else None) as signals:
            if started:
                started()
            if terminal:
                _relay(pidfd, terminal.master)
            status = posix.waitpid(pid, 0)[1]
    finally:
        posix.close(pidfd)
    code = exit_code(status)
    return 128 + signals.number if signals.number and code == 128 + SIGKILL else code


def _relay(pidfd: int, master: int) -> None:
    """Copy between our terminal and the container's until it has ended and all it said is copied."""
    poller = poll()
    poller.register(pidfd, POLLIN)
    poller.register(master, POLLIN)
    poller.register(0, POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if master in ready:
            try:
                data = posix.read(master, PIECE)
            except OSError:  # EIO: the last who had it open is gone
                data = b""
            if data:
                _write_all(1, data)
            else:
                poller.unregister(master)
        elif pidfd in ready:
            return
        if 0 in ready:
            data = posix.read(0, PIECE)
            if data:
                _write_all(master, data)
            else:
                poller.unregister(0)
                _write_all(master, b"\x04")  # Ctrl-D: how a terminal says that there is no more


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[posix.write(fd, data) :]
