"""A plain process, with the limits that one has without control groups."""

from __future__ import annotations

import fcntl
import math
import os
import resource
import signal
import subprocess
import termios
from errno import EAGAIN

from kvmpy.errors import NO_PROCESS, ConfigError, ExecutableError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def start_process(
    command: list[str],
    *,
    memory: int = 0,
    cpus: float = 0.0,
    stdout: int = 1,
    terminal: int = -1,
    unblock: Iterable[int] = (),
) -> int:
    """Start a program and return its pid; the caller waits for it.

    `memory` limits its address space (setrlimit(2), RLIMIT_AS), in bytes; `cpus` how many processors it may run on
    (sched_setaffinity(2)), rounded up. `terminal` is the end of a terminal that becomes its own, with a session of its
    own. The signals of `unblock` are not blocked in it, though they may be here.

    Raises:
        ExecutableError: the program is not there, or cannot be executed.
        HostError: the host's limits allow no more processes.
        ConfigError: the limits are too small to start it with.
    """
    streams = (terminal,) * 3 if terminal >= 0 else (0, stdout, 2)
    try:
        process = subprocess.Popen(
            command,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            preexec_fn=_prepare(memory, cpus, terminal >= 0, unblock),
        )
    except OSError as error:
        number = error.errno or 0
        if number == EAGAIN:
            raise HostError(f"{command[0]}: {NO_PROCESS}") from None
        raise ExecutableError(f"{command[0]}: cannot be executed: {os.strerror(number).lower()}", number) from None
    except subprocess.SubprocessError:
        raise ConfigError(f"{command[0]}: cannot be limited to {memory} bytes and {cpus} processors") from None
    process.returncode = 0  # whoever has the pid waits for it; else Popen would, when it is collected
    return process.pid


def _prepare(memory: int, cpus: float, terminal: bool, unblock: Iterable[int]) -> Callable[[], None]:
    """Return what the child does before the program begins."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, unblock)
        if terminal:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if cpus:
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, allowed[: math.ceil(cpus)])
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    return prepare
