"""A container in the foreground: its terminal, the signals for it, and how it ended."""

from __future__ import annotations

import _signal
import posix
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socketpair
from select import POLLIN, poll
from time import monotonic

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
END_OF_INPUT, SAID_AGAIN = b"\x04", 20  # Ctrl-D: how a terminal says that there is no more
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
        """Take the terminal that the container made."""
        _, ancillary, _, _ = self._ours.recvmsg(4096, 64)
        for level, kind, data in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                self.show(int.from_bytes(data[:4], "little"))

    def show(self, master: int) -> None:
        """Show the terminal whose other end this is, and make our own one raw."""
        self.master = master
        if posix.isatty(0):
            import termios
            import tty

            self._saved = termios.tcgetattr(0)
            self.resize()
            tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead stays

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


class SignalsWait:
    """While it is entered, signals to this process wait: until `wait()` passes them on, or until the end.

    So none comes while it has made half of a container, or removed half of one.
    """

    def __enter__(self) -> None:
        self._before = _signal.pthread_sigmask(_signal.SIG_BLOCK, PASSED_ON)

    def __exit__(self, *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)


class Signals:
    """While it is entered, signals to this process go to the container's; those that wait (SignalsWait) by `listen()`.

    The first process of a pid namespace does not die of a signal that it has no handler for (pid_namespaces(7)): Ctrl-C
    would do nothing. With `fatal`, one that asks for the end kills such a process, and `number` tells.

    `woken` can be read when one has come: the handler itself is not called before a poll(2) that was just beginning.
    """

    def __init__(self, pid: int, pidfd: int, fatal: bool, resize: Callable[[], None] | None) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._fatal = fatal
        self._resize = resize
        self._before: list[tuple[int, object]] = []
        self._mask: set[int] | None = None
        self.number = 0

    def __enter__(self) -> Self:
        self.woken, self._wake = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        self._other_wake = _signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in PASSED_ON:
            if _signal.getsignal(number) != _signal.SIG_IGN:
                self._before.append((number, _signal.signal(number, self._caught)))
        if self._resize:
            self._before.append((_signal.SIGWINCH, _signal.signal(_signal.SIGWINCH, self._resized)))
        return self

    def listen(self) -> None:
        """Take what has come meanwhile, and what will."""
        self._mask = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, PASSED_ON)

    def __exit__(self, *_: object) -> None:
        if self._mask is not None:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)
        for number, handler in self._before:
            _signal.signal(number, handler if handler is not None else _signal.SIG_DFL)
        _signal.set_wakeup_fd(self._other_wake)
        posix.close(self.woken)
        posix.close(self._wake)

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


class Ending:
    """How a program ended: its wait status, the signal to us that ended it (0: none did), and whether time was over."""

    def __init__(self, status: int, asked: int, late: bool) -> None:
        self.status = status
        self.asked = asked
        self.late = late

    @property
    def code(self) -> int:
        """The program's exit code, or 128 + the signal that it died of: the one that we got, if that was why."""
        code = exit_code(self.status)
        return 128 + self.asked if self.asked and code == 128 + SIGKILL else code


def wait(
    pid: int,
    terminal: Terminal | None = None,
    *,
    fatal: bool = False,
    started: Callable[[], None] | None = None,
    output: tuple[int, Callable[[bytes], None]] | None = None,
    seconds: float | None = None,
) -> Ending:
    """Pass signals, the terminal and its output on until a child has ended.

    `output` is where to read it, if it does not come from the terminal, and who gets it instead of standard output.
    `started` is called when no signal is lost any more: who hears of what it starts may send one. After `seconds` the
    child is killed.
    """
    deadline = None if seconds is None else monotonic() + seconds
    pidfd = posix.pidfd_open(pid, 0)
    try:
        with Signals(pid, pidfd, fatal, terminal.resize if terminal else None) as signals:
            if started:
                started()
            signals.listen()
            relay = Relay(pidfd, signals.woken, terminal, output)
            late = not relay.run(deadline)
            if late:
                send_signal(pidfd, SIGKILL)
                relay.run(None)
            return Ending(posix.waitpid(pid, 0)[1], signals.number, late)
    finally:
        posix.close(pidfd)


class Relay:
    """Hands on what comes from a program, and what is typed for it, until it has ended and all it said is handed on."""

    def __init__(
        self, pidfd: int, woken: int, terminal: Terminal | None, output: tuple[int, Callable[[bytes], None]] | None
    ) -> None:
        self._poller = poll()
        self._pidfd = pidfd
        self._woken = woken
        self._master = terminal.master if terminal else -1
        self._sinks: dict[int, Callable[[bytes], None]] = {}
        self._ends_left = 0  # how often the end of input is still said
        if terminal:
            self._sinks[self._master] = output[1] if output else _show
            self._poller.register(0, POLLIN)
        elif output:
            self._sinks[output[0]] = output[1]
        for fd in (pidfd, woken, *self._sinks):
            self._poller.register(fd, POLLIN)

    def run(self, deadline: float | None) -> bool:
        """Work until the program has ended; return False when the deadline came first."""
        while True:
            left = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
            ready = {fd for fd, _ in self._poller.poll(left)}
            if not ready:
                return False
            if self._woken in ready:
                posix.read(self._woken, PIECE)
            said = ready & self._sinks.keys()
            for fd in said:
                self._hand_on(fd)
            if self._pidfd in ready and not said:
                return True
            if 0 in ready:
                self._type()

    def _hand_on(self, fd: int) -> None:
        try:
            data = posix.read(fd, PIECE)
        except OSError:  # EIO: the last who had the terminal open is gone
            data = b""
        if not data:
            self._poller.unregister(fd)
            return
        self._sinks[fd](data)
        if fd == self._master and self._ends_left:
            self._ends_left -= 1
            _write_all(self._master, END_OF_INPUT)

    def _type(self) -> None:
        """Pass input on. Its end is said again as the program writes: a shell that sets up its terminal forgets it."""
        data = posix.read(0, PIECE)
        if not data:
            self._poller.unregister(0)
            self._ends_left = SAID_AGAIN
        _write_all(self._master, data or END_OF_INPUT)


def _show(data: bytes) -> None:
    _write_all(1, data)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[posix.write(fd, data) :]
