"""The run loop: one thread per vCPU."""

from __future__ import annotations

import sys
import threading
from collections import deque

from kvmpy.accel import packed
from kvmpy.errors import BusError, KvmpyError
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
        self.recent: deque[int] = deque(maxlen=RECENT_EXITS)
        self.halted = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """Enter the guest again and again; what a device raises stops the machine, not just the thread."""
        try:
            self._loop()
        except BusError as error:
            self._report(StopKind.UNCLAIMED, str(error))
        except KvmpyError as error:
            self._report(StopKind.HOST_ERROR, str(error))
        except BaseException as error:
            self.error = error
            self._report(StopKind.HOST_ERROR, f"{type(error).__name__}: {error}")

    def _loop(self) -> None:
        machine, enter, note = self.machine, self.vcpu.enter, self.recent.append
        lock, handlers = machine.lock, machine.bus.handlers
        answer: int | None = 0
        for _ in range(self.limit):
            code = enter(answer or 0)
            note(code)
            handler = handlers.get(code & packed.KEY_MASK)
            if handler:
                with lock:
                    answer = handler(code >> packed.VALUE_SHIFT)
            else:
                answer = self._serve(code)
                if answer is None:
                    return
        self._report(StopKind.EXIT_LIMIT, f"{self.limit} exits were allowed; raise --max-exits to go on")

    def _serve(self, code: int) -> int | None:
        """Serve an exit that has no handler of its own yet; None ends the thread."""
        machine = self.machine
        if code & packed.WRITES_PENDING:
            with machine.lock:
                machine.take_writes()
            code &= ~packed.WRITES_PENDING
        reason = code & packed.REASON_MASK
        if reason == packed.INTERRUPTED:
            return self._interrupted()
        if reason == packed.HLT:
            return self._halt()
        if reason in (packed.IO, packed.MMIO):
            with machine.lock:
                return self._access(code, reason)
        self._report(*self._crash(code, reason))
        return None

    def _access(self, code: int, reason: int) -> int:
        bus, vcpu = self.machine.bus, self.vcpu
        size = packed.size_of(code)
        if reason == packed.MMIO:
            gpa, value = vcpu.mmio
            if not code & packed.OUT:
                return bus.mmio.read(gpa, size)
            bus.mmio.write(gpa, size, value)
            return 0
        if not code & packed.MANY:
            return bus.serve_port(code)
        data, port = vcpu.io_data(), packed.port_of(code)
        if code & packed.OUT:
            bus.ports.write_many(port, size, bytes(data))
        else:
            data[:] = bus.ports.read_many(port, size, len(data) // size)
        return 0

    def _interrupted(self) -> int | None:
        """Someone kicked the vCPU: to stop the machine, or to see whether it sleeps for good."""
        if self.machine.stopping:
            return None
        self.halted = self.machine.vm.irqchip != "none" and self.vcpu.halted()
        return 0 if not self.halted else self._halt()

    def _halt(self) -> int | None:
        """Without a chip that could interrupt it, or with interrupts off, a halted vCPU never wakes up."""
        self.halted = True
        self.machine.vcpu_halted(self)
        return None if self.machine.stopping or self.machine.vm.irqchip == "none" else 0

    def _crash(self, code: int, reason: int) -> tuple[str, str]:
        if reason == packed.ERROR:
            return StopKind.HOST_ERROR, str(self.vcpu.error(code))
        exit = self.vcpu.exit(code)
        kind, detail = CRASH_DETAILS.get(reason, (StopKind.INTERNAL_ERROR, "an exit kvmpy does not serve"))
        return kind, f"{detail}: {exit!r}"

    def _report(self, kind: str, detail: str) -> None:
        self.machine.stop(Stop(kind, detail, vcpu=self.vcpu.id))


CRASH_DETAILS = {
    packed.SHUTDOWN: (StopKind.TRIPLE_FAULT, "a fault while delivering a double fault"),
    packed.FAIL_ENTRY: (StopKind.FAIL_ENTRY, "the processor refused the guest's state"),
    packed.INTERNAL_ERROR: (StopKind.INTERNAL_ERROR, "KVM cannot go on"),
    packed.DEBUG: (StopKind.DEBUG, "a breakpoint or single step"),
}
