"""The run loop: one thread per vCPU."""

from __future__ import annotations

import sys
import threading
from collections import deque

from kvmpy.accel import packed
from kvmpy.errors import BusError, KvmpyError
from kvmpy.machine.exit_handlers import LEAVE, ExitHandlers
from kvmpy.machine.stop import Stop, StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.base import Vcpu
    from kvmpy.machine.machine import Machine

RECENT_EXITS = 32


class VcpuThread(threading.Thread):
    """Runs one vCPU until the machine stops. `recent` holds its last packed exits, for the post-mortem."""

    def __init__(self, machine: Machine, vcpu: Vcpu, limit: int | None) -> None:
        super().__init__(name=f"vcpu{vcpu.id}", daemon=True)
        self.machine = machine
        self.vcpu = vcpu
        self.limit = sys.maxsize if limit is None else limit
        self.handlers = ExitHandlers(machine, vcpu)
        self.recent: deque[int] = deque(maxlen=RECENT_EXITS)
        self.error: BaseException | None = None

    def run(self) -> None:
        """Enter the guest again and again; what a device raises stops the machine, not just the thread."""
        try:
            with self.machine.vm.lock:
                self._loop()
        except BusError as error:
            self._report(StopKind.UNCLAIMED, str(error))
        except KvmpyError as error:
            self._report(StopKind.HOST_ERROR, str(error))
        except BaseException as error:
            self.error = error
            self._report(StopKind.HOST_ERROR, f"{type(error).__name__}: {error}")

    def _loop(self) -> None:
        # After an exit every branch is mispredicted: here each bytecode costs some 10 ns, each call some 100.
        note, handlers, key_mask, value_shift = self.recent.append, self.handlers, packed.KEY_MASK, packed.VALUE_SHIFT
        leave = LEAVE
        for code in self.vcpu.exits(self.limit):
            note(code)
            if handlers[code & key_mask](code >> value_shift) is leave:
                return
        self._report(StopKind.EXIT_LIMIT, f"{self.limit} exits were allowed; raise --max-exits to go on")

    @property
    def halted(self) -> bool:
        """True while the vCPU sleeps for good."""
        return self.handlers.halted

    def _report(self, kind: str, detail: str) -> None:
        self.machine.stop(Stop(kind, detail, vcpu=self.vcpu.id))
