"""The exit codes of the command line, in one place. Guests that choose their own do well to stay below 64."""

from __future__ import annotations

from errno import ENOENT

from kvmpy.errors import (
    AssemblyError,
    ConfigError,
    ContainerError,
    DeadlineError,
    ExecutableError,
    ImageError,
    KvmpyError,
    NoAcceleratorError,
    UnsupportedError,
)
from kvmpy.machine.stop import StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.stop import Stop


class ExitCode:
    """Exit codes, after sysexits(3), timeout(1) and the shell's 128 + signal."""

    OK = 0
    CLAIM_FAILED = 1
    USAGE = 2
    BAD_FILE = 66
    MISSING = 69
    CRASH = 70
    HOST_ERROR = 71
    OUTPUT_CLOSED = 74
    EXIT_LIMIT = 75
    TIMEOUT = 124
    CONTAINER = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130


EXPLAINED = """\
exit codes:
  0-255  what the guest wrote to the debug-exit port 0xF4 (its low byte)
  0      the guest switched off, halted or reset itself; or Ctrl-A x
  2      wrong usage: options that are none, or do not go together
  66     the image or source cannot be read or does not fit
  69     what was asked for is not there: KVM or the software CPU, a capability
         of this host's KVM
  70     the guest crashed: triple fault, refused entry, an instruction that KVM
         cannot run; --strict: an access to no device
  71     the host failed
  74     standard output was closed
  75     --max-exits was reached
  124    --timeout was reached
  129, 130, 143  SIGHUP, SIGINT, SIGTERM; on a terminal Ctrl-C is the guest's,
                 and Ctrl-A x ends it
"""

OF_STOP = {
    StopKind.POWER_OFF: ExitCode.OK,
    StopKind.HALT: ExitCode.OK,
    StopKind.RESET: ExitCode.OK,
    StopKind.TIMEOUT: ExitCode.TIMEOUT,
    StopKind.EXIT_LIMIT: ExitCode.EXIT_LIMIT,
    StopKind.HOST_ERROR: ExitCode.HOST_ERROR,
    StopKind.OUTPUT_CLOSED: ExitCode.OUTPUT_CLOSED,
}


def exit_code_of(cause: Stop | KvmpyError) -> int:
    """Return the process's exit code for the reason a machine stopped, or for an error."""
    if isinstance(cause, ConfigError):
        return ExitCode.USAGE
    if isinstance(cause, (NoAcceleratorError, UnsupportedError)):
        return ExitCode.MISSING
    if isinstance(cause, DeadlineError):
        return ExitCode.TIMEOUT
    if isinstance(cause, (ImageError, AssemblyError)):
        return ExitCode.BAD_FILE
    if isinstance(cause, ExecutableError):
        return ExitCode.NOT_FOUND if cause.errno == ENOENT else ExitCode.NOT_EXECUTABLE
    if isinstance(cause, ContainerError):
        return ExitCode.CONTAINER
    if isinstance(cause, KvmpyError):
        return ExitCode.HOST_ERROR
    if cause.kind in (StopKind.EXIT, StopKind.QUIT):
        return cause.code & 0xFF
    if cause.kind == StopKind.KILLED:
        return 128 + cause.code
    return OF_STOP.get(cause.kind, ExitCode.CRASH)
