"""The host's side of the serial console: standard input and output, the raw terminal, Ctrl-A."""

from __future__ import annotations

import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

CTRL_A = 0x01
END_OF_INPUT = b"\x04"  # Ctrl-D: what a terminal sends for "no more"
CHUNK = 4096  # a pipe that polls as writable takes this much without blocking (POSIX, PIPE_BUF)
FULL_BUFFER = 4096
RETRY_MS = 50

ESCAPE_HELP = b"""\r
Ctrl-A h  this help\r
Ctrl-A x  quit kvmpy\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
"""


class Output:
    """Bytes to a descriptor that may block or be closed.

    To a terminal they go at once; else they are collected until a line ends. `give_up` is asked while the reader is
    slow, so that a full pipe cannot hold up a machine that was told to stop; when the reader is gone, `closed` is
    called and `broken` is true.
    """

    def __init__(self, fd: int, give_up: Callable[[], bool], closed: Callable[[], None]) -> None:
        self._fd = fd
        self._give_up = give_up
        self._closed = closed
        self._buffer = bytearray()
        self.broken = False
        self._eager = os.isatty(fd)

    def write(self, data: bytes) -> None:
        """Take bytes of the guest."""
        self._buffer += data
        if self._eager or len(self._buffer) >= FULL_BUFFER or data.endswith(b"\n"):
            self.flush()

    def flush(self) -> None:
        """Write out what was collected."""
        while self._buffer and not self.broken:
            if not self._writable():
                return
            try:
                count = os.write(self._fd, self._buffer[:CHUNK])
            except OSError:
                self.broken = True
                self._closed()
                return
            del self._buffer[:count]
        self._buffer.clear()

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while not poll.poll(RETRY_MS):
            if self._give_up():
                return False
        return True


class Keyboard:
    """Standard input on its way to the guest. On a terminal Ctrl-A begins a command to kvmpy itself."""

    def __init__(self, fd: int, send: Callable[[bytes], None], quit: Callable[[], None]) -> None:
        self._fd = fd
        self._send = send
        self._quit = quit
        self._interactive = os.isatty(fd)
        self._escaped = False

    def ready(self) -> bool:
        """Read what is there; False at the end of input, which the guest gets as Ctrl-D."""
        try:
            data = os.read(self._fd, CHUNK)
        except OSError:
            data = b""
        if not data:
            self._send(END_OF_INPUT)
            return False
        self._send(self._without_commands(data) if self._interactive else data)
        return True

    def _without_commands(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                out += self._command(byte)
            elif byte == CTRL_A:
                self._escaped = True
            else:
                out.append(byte)
        return bytes(out)

    def _command(self, byte: int) -> bytes:
        if byte in b"xX":
            self._quit()
        elif byte in b"hH?":
            os.write(sys.stderr.fileno(), ESCAPE_HELP)
        elif byte == CTRL_A:
            return bytes([CTRL_A])
        return b""


class RawTerminal:
    """While it is entered, a terminal passes every key on at once and unechoed; leaving restores it whatever happened.

    Output keeps turning a newline into carriage return and newline. Nothing happens to what is no terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[object] | None = None

    def __enter__(self) -> Self:
        if os.isatty(self._fd):
            import termios

            self._saved = termios.tcgetattr(self._fd)
            mode = termios.tcgetattr(self._fd)
            mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
            mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
            self._saved = None
