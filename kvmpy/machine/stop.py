"""Why a machine stopped."""

from __future__ import annotations

from enum import StrEnum

from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.exits import Exit


class StopKind(StrEnum):
    """The kinds of stop. `EXIT`, `POWER_OFF`, `HALT` and `RESET` are the guest's own will; the rest are not.

    >>> StopKind.HALT == "halt", Stop(StopKind.HALT).clean, Stop(StopKind.TRIPLE_FAULT).crashed
    (True, True, True)
    """

    EXIT = "exit"
    POWER_OFF = "power-off"
    HALT = "halt"
    RESET = "reset"
    TRIPLE_FAULT = "triple-fault"
    FAIL_ENTRY = "refused-entry"
    INTERNAL_ERROR = "internal-error"
    UNCLAIMED = "unclaimed-access"
    DEBUG = "debug"
    TIMEOUT = "timeout"
    EXIT_LIMIT = "exit-limit"
    QUIT = "quit"
    OUTPUT_CLOSED = "output-closed"
    HOST_ERROR = "host-error"
    KILLED = "killed"  # of a process or container only: a signal


CLEAN = frozenset({StopKind.EXIT, StopKind.POWER_OFF, StopKind.HALT, StopKind.RESET})
CRASHES = frozenset({StopKind.TRIPLE_FAULT, StopKind.FAIL_ENTRY, StopKind.INTERNAL_ERROR, StopKind.UNCLAIMED})


@record
class Stop:
    """Why the machine stopped: a StopKind, a line of detail, the vCPU concerned.

    `code` is the guest's own for EXIT, the exit code that is wanted for QUIT, the signal for KILLED.

    `exit` is the exit that stopped it, if one did. When the machine runs again, what was filled into it is the answer.
    """

    kind: StopKind
    detail: str = ""
    code: int = 0
    vcpu: int = 0
    exit: Exit | None = None

    @property
    def clean(self) -> bool:
        """True when the guest ended by its own will."""
        return self.kind in CLEAN

    @property
    def crashed(self) -> bool:
        """True when the guest, or what executes it, could not go on."""
        return self.kind in CRASHES
