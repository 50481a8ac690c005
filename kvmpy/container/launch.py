"""Play a tape in a new process, and answer what it asks until it is ready."""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from _struct import unpack
from fcntl import F_DUPFD_CLOEXEC, fcntl

from kvmpy.container.host import read_file
from kvmpy.container.process import SIGKILL, SIGPIPE, SIGXFSZ, wait_for_end
from kvmpy.container.tape import ASK, FORKED, READY, Descriptors, Tape, join
from kvmpy.errors import NO_PROCESS, ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterable
    from typing import Self

    from kvmpy.container.operations.base import Operation

NATIVE = __file__.rpartition("/")[0] + "/native"
STAGE = f"{NATIVE}/stage"
F_ADD_SEALS = 1033
ALL_SEALS = 0xF  # seal, shrink, grow, write
MFD_EXEC = 0x10


class Answers:
    """What only the runtime knows how to do when a tape asks for it."""

    def forked(self, launch: Launch) -> None:
        """Take note of `launch.pid`, while that process is on its way: this one would only wait."""

    def run_hooks(self, launch: Launch, kinds: tuple[str, ...]) -> None:
        """Run the hooks of these kinds for the process on its way."""
        raise NotImplementedError

    def hand_on_listener(self, launch: Launch) -> None:
        """Give `launch.received`, a descriptor of seccomp's, to who decides on system calls."""
        raise NotImplementedError


class Launch:
    """A process on its way from a tape to the container's program.

    `descriptors` are given to the tape by the numbers it knows. Use as a context manager: leaving it by an exception
    kills the process.
    """

    def __init__(self, operations: Iterable[Operation], fds: Descriptors, answers: Answers | None = None) -> None:
        self.tape = Tape(fds)
        self.tape.write(operations)
        self.pid = 0
        self.pidfd = -1
        self.answers = answers or Answers()
        self.received = -1  # the descriptor that came with the last question
        self._stage = 0
        self._socket: socket | None = None
        self._early: tuple[int, int] | None = None

    def start(self, descriptors: dict[int, int]) -> None:
        """Start the stage; return when it is ready, or raise what failed."""
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        self._socket = ours
        program = sealed("stage", join(_read_stage(), self.tape.image()))
        try:
            self._stage = spawn(program, {self.tape.fds.report: theirs.fileno(), **descriptors})
        finally:
            posix.close(program)
            theirs.close()
        while self._serve(*self._next()):
            pass

    def _next(self) -> tuple[int, int]:
        """Return the next message of the stage: what, and a value.

        A forked process may be quicker than its parent, which tells who it is: then its message waits for that.
        """
        if self._early and self.pid:
            message, self._early = self._early, None
            return message
        what, value = message = self._receive()
        at = value if what == ASK else what
        if not self.pid and self.tape.fork_at >= 0 and what != FORKED and (what == READY or at > self.tape.fork_at):
            self._early = message
            return self._receive()
        return what, value

    def _receive(self) -> tuple[int, int]:
        assert self._socket
        data, ancillary, _, _ = self._socket.recvmsg(8, 64)
        for level, kind, content in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                self.received = int.from_bytes(content[:4], "little")
        if len(data) < 8:
            raise ContainerError(f"the stage {self._how_it_ended()} before the container was ready")
        what, value = unpack("<ii", data)
        return what, value

    def _serve(self, what: int, value: int) -> bool:
        """Do what a message asks for; say whether more will come."""
        assert self._socket
        if what == FORKED:
            self.pid = value
            self.pidfd = posix.pidfd_open(value, 0)
            self.answers.forked(self)
        elif what == ASK:
            self._operation(value).answer(self)
            self._socket.send(b"\0")
        elif what != READY:
            raise self._operation(what).error(value)
        return what != READY

    def _operation(self, index: int) -> Operation:
        operation = self.tape.calls[index].operation
        assert operation
        return operation

    def _how_it_ended(self) -> str:
        pid = self.pid or self._stage
        self.pid = self._stage = 0
        status = posix.waitpid(pid, 0)[1] if pid else 0
        return f"was killed by signal {status & 0x7F}" if status & 0x7F else "ended"

    def go_on(self) -> None:
        """Let a process that is ready go on: the runtime has kept all that it must know."""
        assert self._socket
        self._socket.send(b"\0")
        self._reap_stage()

    def _reap_stage(self) -> None:
        if self._stage:
            posix.waitpid(self._stage, 0)
            self._stage = 0

    def wait(self, milliseconds: int | None = None) -> int | None:
        """Wait for the end of the program and return its status; kill it when its time is over, and return None."""
        if not wait_for_end(self.pidfd, milliseconds):
            self.kill()
            return None
        pid, self.pid = self.pid, 0
        return posix.waitpid(pid, 0)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._socket:
            self._socket.close()
        if kind:
            self.kill()
        for fd in (self.pidfd, self.received):
            if fd >= 0:
                posix.close(fd)

    def kill(self) -> None:
        """End what was started; it is the runtime's own child, so its pid cannot be another's."""
        for pid in (self._stage, self.pid):
            if pid:
                posix.kill(pid, SIGKILL)
                posix.waitpid(pid, 0)
        self._stage = self.pid = 0


def _read_stage() -> bytes:
    try:
        return read_file(STAGE)
    except FileNotFoundError:
        raise ContainerError(f"{STAGE} is not there; build it with 'pip install -e .' in the checkout") from None


def sealed(name: str, data: bytes) -> int:
    """Return the descriptor of a memory file that nobody can change any more (memfd_create(2))."""
    flags = posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING
    try:
        fd = posix.memfd_create(name, flags | MFD_EXEC)
    except OSError:  # before Linux 6.3 every memory file could be executed
        fd = posix.memfd_create(name, flags)
    while data:
        data = data[posix.write(fd, data) :]
    fcntl(fd, F_ADD_SEALS, ALL_SEALS)
    return fd


def spawn(program: int, descriptors: dict[int, int]) -> int:
    """Execute an open program with descriptors of given numbers; return its pid.

    All come from above the highest wanted number, so that none is overwritten before it is used.
    """
    above = max(descriptors) + 1
    program = fcntl(program, F_DUPFD_CLOEXEC, above)
    high = {number: fcntl(fd, F_DUPFD_CLOEXEC, above) for number, fd in descriptors.items()}
    try:
        actions = [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()]
        return posix.posix_spawn(
            f"/proc/self/fd/{program}",
            ["stage"],
            {},
            file_actions=actions,
            setsigdef=(SIGPIPE, SIGXFSZ),
            setsigmask=(),
        )
    except BlockingIOError:
        raise ContainerError(NO_PROCESS) from None
    finally:
        for fd in (program, *high.values()):
            posix.close(fd)
