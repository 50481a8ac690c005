"""Play a tape in a new process, and answer what it asks until it is ready."""

from __future__ import annotations

import posix
from _signal import pidfd_send_signal
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)  # fmt: skip
from _struct import unpack, unpack_from
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

    Use as a context manager: leaving it by an exception kills the process.

    What comes from the stage is not believed twice: each message must be of the process whose turn it is, by what the
    kernel says of its sender (unix(7), SCM_CREDENTIALS), and a process that it names must be this one's child. Once the
    process is ready nothing is read any more.
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
        self._early: tuple[int, int, int] | None = None

    def start(self, descriptors: dict[int, int]) -> None:
        """Start the stage; return when it is ready, or raise what failed.

        `descriptors` are given to the tape by the numbers it knows.
        """
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        ours.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
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
        """Return the next message: what, and a value. Before FORK the stage speaks, after it the forked process.

        That one may be quicker than its parent, which tells who it is: then its message waits for that.
        """
        message, self._early = (self._early, None) if self._early and self.pid else (self._receive(), self._early)
        what, value, sender = message
        if sender == (self.pid or self._stage):
            return what, value
        if self.pid or self._early or self.tape.fork_at < 0:
            raise ContainerError(f"process {sender} spoke in the stage's place; what was begun is ended")
        self._early = message
        return self._next()

    def _receive(self) -> tuple[int, int, int]:
        assert self._socket
        data, ancillary, _, _ = self._socket.recvmsg(8, 128, MSG_CMSG_CLOEXEC)
        sender = 0
        for level, kind, content in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                self.received = int.from_bytes(content[:4], "little")
            elif (level, kind) == (SOL_SOCKET, SCM_CREDENTIALS):
                (sender,) = unpack_from("<i", content)
        if not data:
            raise ContainerError(f"the stage {self._how_it_ended()} before the container was ready")
        if len(data) < 8:
            raise ContainerError(f"process {sender} sent {len(data)} bytes, which mean nothing")
        what, value = unpack("<ii", data)
        return what, value, sender

    def _serve(self, what: int, value: int) -> bool:
        """Do what a message asks for; say whether more will come."""
        assert self._socket
        if what == FORKED:
            self._take_note(value)
        elif what == ASK:
            if value not in self.tape.questions:
                raise ContainerError(f"the stage asks a question, {value}, that is not on its tape")
            self._operation(value).answer(self)
            self._socket.send(b"\0")
        elif what != READY:
            raise self._operation(what).error(value)
        return what != READY

    def _take_note(self, pid: int) -> None:
        """Take note of the forked process: once, and only of a child of this process that nobody has waited for."""
        try:
            if self.pid or self.tape.fork_at < 0 or pid in (0, self._stage):
                raise ChildProcessError
            posix.waitid(posix.P_PID, pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        except OSError:
            raise ContainerError(f"the stage names {pid}, which it has not started") from None
        self.pid = pid
        self.pidfd = posix.pidfd_open(pid, 0)
        self.answers.forked(self)

    def _operation(self, index: int) -> Operation:
        operation = self.tape.calls[index].operation if 0 <= index < len(self.tape.calls) else None
        if operation is None:
            raise ContainerError(f"the stage failed at a call, {index}, that is not on its tape")
        return operation

    def _how_it_ended(self) -> str:
        pid = self.pid or self._stage
        self.pid = self._stage = 0
        status = posix.waitpid(pid, 0)[1] if pid else 0
        number = status & 0x7F
        why = ", as the kernel does where a memory limit is too small," if number == SIGKILL else ""
        return f"was killed by signal {number}{why}" if number else "ended"

    def go_on(self) -> None:
        """Let a process that is ready go on: the runtime has kept all that it must know, and listens no more."""
        assert self._socket
        self._socket.send(b"\0")
        self._socket.close()
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
        """End what was started. The stage is this process's child, not waited for yet: its pid cannot be another's."""
        if self._stage:
            posix.kill(self._stage, SIGKILL)
        if self.pid:
            pidfd_send_signal(self.pidfd, SIGKILL)
        for pid in filter(None, (self._stage, self.pid)):
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
