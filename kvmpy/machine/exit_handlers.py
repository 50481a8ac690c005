"""What a machine does at each exit of a vCPU."""

from __future__ import annotations

from functools import partial

from kvmpy.accel import packed
from kvmpy.machine.stop import Stop, StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.accel.base import Vcpu
    from kvmpy.machine.machine import Machine

    Handler = Callable[[int], object]

LEAVE = object()
CRASHES = {
    packed.SHUTDOWN: (StopKind.TRIPLE_FAULT, "a fault while delivering a double fault"),
    packed.FAIL_ENTRY: (StopKind.FAIL_ENTRY, "the processor refused the guest's state"),
    packed.INTERNAL_ERROR: (StopKind.INTERNAL_ERROR, "KVM cannot go on"),
    packed.DEBUG: (StopKind.DEBUG, "a breakpoint or single step"),
}


class ExitHandlers(dict[int, "Handler"]):
    """Maps the low half of a packed exit (`kvmpy.accel.packed`) to what serves it, given the high half.

    A handler returns LEAVE when the vCPU shall not enter the guest again. Accesses to devices are kept, so that the
    second one costs a single look-up. All are called with the VM's lock held.
    """

    def __init__(self, machine: Machine, vcpu: Vcpu) -> None:
        super().__init__()
        self.machine = machine
        self.vcpu = vcpu
        self.halted = False

    def __missing__(self, key: int) -> Handler:
        """Find the handler of an exit that has none yet."""
        if key & packed.WRITES_PENDING:
            return self._after_pending_writes(key & ~packed.WRITES_PENDING)
        reason = key & packed.REASON_MASK
        if reason == packed.IO and not key & packed.MANY:
            return self._port(key)
        rare = {packed.IO: self._string, packed.MMIO: self._mmio, packed.INTERRUPTED: self._interrupted}
        rare[packed.HLT] = lambda _key, _value: self._halt()
        return partial(rare.get(reason, self._crash), key)

    def _after_pending_writes(self, key: int) -> Handler:
        def handler(value: int) -> object:
            self.machine.take_writes()
            return self[key](value)

        return handler

    def _port(self, key: int) -> Handler:
        size, port, ports = packed.size_of(key), packed.port_of(key), self.machine.bus.ports
        found = ports.find(port, size)
        device, offset = found or (ports, port)
        if key & packed.OUT:
            handler: Handler = partial(device.write, offset, size)
        else:
            read, answer, mask = device.read, self.vcpu.answer, (1 << 8 * size) - 1
            handler = lambda _value: answer(read(offset, size) & mask)  # noqa: E731 - a closure, like the partial above
        if found:
            self[key] = handler
        return handler

    def _string(self, key: int, _value: int) -> None:
        ports, port, size = self.machine.bus.ports, packed.port_of(key), packed.size_of(key)
        data = self.vcpu.io_data()
        if key & packed.OUT:
            ports.write_many(port, size, bytes(data))
        else:
            data[:] = ports.read_many(port, size, len(data) // size)

    def _mmio(self, key: int, _value: int) -> None:
        gpa, value = self.vcpu.mmio
        if key & packed.OUT:
            self.machine.bus.mmio.write(gpa, packed.size_of(key), value)
        else:
            self.vcpu.answer(self.machine.bus.mmio.read(gpa, packed.size_of(key)))

    def _interrupted(self, _key: int, _value: int) -> object:
        """Someone kicked the vCPU: to stop the machine, or to see whether it sleeps for good."""
        if self.machine.stopping:
            return LEAVE
        self.halted = self.machine.vm.irqchip != "none" and self.vcpu.halted()
        return self._halt() if self.halted else None

    def _halt(self) -> object:
        """Without a chip that could interrupt it, or with interrupts off, a halted vCPU never wakes up."""
        self.halted = True
        self.machine.vcpu_halted()
        return LEAVE if self.machine.stopping or self.machine.vm.irqchip == "none" else None

    def _crash(self, key: int, value: int) -> object:
        reason, code = key & packed.REASON_MASK, key | value << packed.VALUE_SHIFT
        if reason == packed.ERROR:
            kind, detail = StopKind.HOST_ERROR, str(self.vcpu.error(code))
        else:
            kind, cause = CRASHES.get(reason, (StopKind.INTERNAL_ERROR, "an exit kvmpy does not serve"))
            detail = f"{cause}: {self.vcpu.exit(code)!r}"
        self.machine.stop(Stop(kind, detail, vcpu=self.vcpu.id))
        return LEAVE
