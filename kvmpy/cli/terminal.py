"""The host's side of the serial console: standard input, the raw terminal, Ctrl-A."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from kvmpy.machine.machine import Machine

CTRL_A = 0x01
END_OF_INPUT = b"\x04"  # Ctrl-D: what a terminal sends for "no more"
CHUNK = 4096
INPUT_LIMIT = 64 << 10  # bytes that may wait for the guest before no more are read
PAUSE_SECONDS = 0.02

ESCAPE_HELP = b"""\r
Ctrl-A h  this help\r
Ctrl-A x  quit kvmpy\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
"""


class Keyboard:
    """Standard input on its way to the guest. On a terminal Ctrl-A begins a command to kvmpy itself.

    A guest that does not read holds the one who types up, not kvmpy: what is not read yet stays in the pipe.
    """

    def __init__(self, fd: int, machine: Machine, quit: Callable[[], None]) -> None:
        self._fd = fd
        self._machine = machine
        self._quit = quit
        self._interactive = os.isatty(fd)
        self._escaped = False

    def watch(self) -> None:
        """Take part in the machine's events."""
        self._machine.events.add_fd(self._fd, self._ready)

    def _ready(self) -> bool:
        """Read what is there; False at the end of input, which the guest gets as Ctrl-D."""
        if self._machine.board.waiting >= INPUT_LIMIT:
            self._machine.events.call_at(time.monotonic() + PAUSE_SECONDS, self.watch)
            return False
        try:
            data = os.read(self._fd, CHUNK)
        except OSError:
            data = b""
        if not data:
            self._machine.send(END_OF_INPUT)
            return False
        self._machine.send(self._without_commands(data) if self._interactive else data)
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
            self._show(ESCAPE_HELP)
        elif byte == CTRL_A:
            return bytes([CTRL_A])
        return b""

    def _show(self, text: bytes) -> None:
        """Write to standard error, if that is possible without waiting."""
        fd = sys.stderr.fileno()
        if select.select([], [fd], [], 0)[1]:
            os.write(fd, text)


class RawTerminal:
    """While it is entered, a terminal passes every key on at once and unechoed; leaving restores it whatever happened.

    Output keeps turning a newline into carriage return and newline. Nothing happens to what is no terminal, or none any
    longer: one that hung up answers EIO.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        if os.isatty(self._fd):
            import termios

            with contextlib.suppress(termios.error):
                mode = termios.tcgetattr(self._fd)
                self._saved = list(mode)
                mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
                mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
                termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            import termios

            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = None
