"""Serving: what a machine does at each exit of a vCPU, by a table from the kind of exit to its handler."""

from __future__ import annotations

import sys
from functools import partial

from kvmpy.accel import exits, packed
from kvmpy.errors import BusError, ConfigError
from kvmpy.machine.bus import no_number
from kvmpy.machine.stop import Stop, StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from kvmpy.accel.base import Vcpu
    from kvmpy.accel.exits import Exit
    from kvmpy.devices.base import Device
    from kvmpy.machine.bus import AddressSpace
    from kvmpy.machine.machine import Machine

    Handler = Callable[[Vcpu, Any], Stop | None]
    PackedHandler = Callable[[int], object]

LEAVE = object()
KEPT = 4096  # calls kept by what they serve, until all are forgotten: 1 MiB
KVM_ENOSYS = 1000  # <linux/kvm_para.h>: what an unknown hypercall returns, negated
SYSTEM_EVENTS = {1: (StopKind.POWER_OFF, "switched itself off"), 2: (StopKind.RESET, "reset itself")}
READS: dict[int, type[Exit]] = {
    packed.IO: exits.IoIn,
    packed.MMIO: exits.MmioRead,
    packed.HYPERCALL: exits.Hypercall,
    packed.DEBUG: exits.Debug,
    packed.HLT: exits.Hlt,
    packed.IRQ_WINDOW_OPEN: exits.IrqWindowOpen,
    packed.SET_TPR: exits.SetTpr,
    packed.SHUTDOWN: exits.Shutdown,
    packed.FAIL_ENTRY: exits.FailEntry,
    packed.INTERNAL_ERROR: exits.InternalError,
    packed.SYSTEM_EVENT: exits.SystemEvent,
    packed.RDMSR: exits.Rdmsr,
    packed.WRMSR: exits.Wrmsr,
    packed.DIRTY_RING_FULL: exits.DirtyRingFull,
}
WRITES: dict[int, type[Exit]] = {packed.IO: exits.IoOut, packed.MMIO: exits.MmioWrite}


def kind_of(code: int) -> type[Exit]:
    """Return the type that a packed exit has as an Exit."""
    reason = code & packed.REASON_MASK
    if code & packed.OUT and reason in WRITES:
        return WRITES[reason]
    return READS.get(reason, exits.UnknownExit)


class Handlers:
    """Who answers which kind of exit: `machine.handlers[Rdmsr] = handler`.

    `handler(vcpu, exit)` is called in the vCPU's thread with the VM's lock held. It fills the answer into the exit and
    returns None, and the guest goes on; or it returns a Stop, and the machine stops. `handlers[kind]` is the handler in
    force, so that a new one may call it; `del handlers[kind]` brings the machine's own one back.
    """

    def __init__(self, own: Mapping[type[Exit], Handler], changed: Callable[[], None]) -> None:
        self._own = dict(own)
        self._given: dict[type[Exit], Handler] = {}
        self._changed = changed

    def __getitem__(self, kind: type[Exit]) -> Handler:
        return self._given.get(kind) or self._own[self._checked(kind)]

    def __setitem__(self, kind: type[Exit], handler: Handler) -> None:
        if not callable(handler):
            raise ConfigError(f"handler of {kind.__name__}: {handler!r} cannot be called; give a function")
        self._given[self._checked(kind)] = handler
        self._changed()

    def __delitem__(self, kind: type[Exit]) -> None:
        self._given.pop(self._checked(kind), None)
        self._changed()

    def __iter__(self) -> Iterator[type[Exit]]:
        return iter(self._own)

    def is_own(self, kind: type[Exit]) -> bool:
        """Tell whether the machine's own handler is in force."""
        return kind not in self._given

    def _checked(self, kind: type[Exit]) -> type[Exit]:
        if kind not in self._own:
            names = ", ".join(known.__name__ for known in self._own)
            raise ConfigError(f"handler of {kind!r}: not a kind of exit that can be handled; there are {names}")
        return kind


class OwnHandlers:
    """The machine's own handlers. Accesses go to the bus; what nobody answers gets what hardware would give."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.unclaimed_msrs: dict[tuple[str, int], int] = {}

    def table(self) -> dict[type[Exit], Handler]:
        """Return the handlers by kind."""
        crash = self._crash
        return {
            exits.IoIn: self._io_in,
            exits.IoOut: self._io_out,
            exits.MmioRead: self._mmio_read,
            exits.MmioWrite: self._mmio_write,
            exits.Hlt: self._hlt,
            exits.Rdmsr: partial(self._msr, "read"),
            exits.Wrmsr: partial(self._msr, "write"),
            exits.Hypercall: self._hypercall,
            exits.IrqWindowOpen: self._window,
            exits.SetTpr: self._set_tpr,
            exits.SystemEvent: self._system_event,
            exits.Shutdown: partial(crash, StopKind.TRIPLE_FAULT, "a fault while delivering a double fault"),
            exits.FailEntry: partial(crash, StopKind.FAIL_ENTRY, "the processor refused the guest's state"),
            exits.InternalError: partial(crash, StopKind.INTERNAL_ERROR, "the guest cannot go on"),
            exits.Debug: partial(crash, StopKind.DEBUG, "a breakpoint or single step"),
            exits.DirtyRingFull: partial(crash, StopKind.INTERNAL_ERROR, "nobody harvests the dirty ring"),
            exits.UnknownExit: partial(crash, StopKind.INTERNAL_ERROR, "an exit kvmpy does not serve"),
        }

    def _io_in(self, _vcpu: Vcpu, exit: exits.IoIn) -> None:
        exit.data = self._machine.bus.ports.read_many(exit.port, exit.size, exit.count)

    def _io_out(self, _vcpu: Vcpu, exit: exits.IoOut) -> None:
        self._machine.bus.ports.write_many(exit.port, exit.size, exit.data)

    def _mmio_read(self, _vcpu: Vcpu, exit: exits.MmioRead) -> None:
        exit.value = self._machine.bus.mmio.read(exit.gpa, exit.size)

    def _mmio_write(self, _vcpu: Vcpu, exit: exits.MmioWrite) -> None:
        self._machine.bus.mmio.write(exit.gpa, exit.size, exit.value)

    def _hlt(self, vcpu: Vcpu, exit: exits.Hlt) -> Stop | None:
        """Without a chip that could interrupt it a halted vCPU never wakes up."""
        return None if self._machine.chips.halt(vcpu, self._machine) else halt(vcpu, exit)

    def _msr(self, access: str, _vcpu: Vcpu, exit: exits.Rdmsr | exits.Wrmsr) -> None:
        """An MSR that nobody implements is #GP (Intel SDM vol. 2, RDMSR and WRMSR)."""
        key = (access, exit.index)
        self.unclaimed_msrs[key] = self.unclaimed_msrs.get(key, 0) + 1
        exit.fault = True

    def _hypercall(self, _vcpu: Vcpu, exit: exits.Hypercall) -> None:
        exit.result = -KVM_ENOSYS & 0xFFFF_FFFF_FFFF_FFFF

    def _window(self, vcpu: Vcpu, _exit: exits.IrqWindowOpen) -> None:
        """The guest takes interrupts now; if nobody waits for that any longer, it does not exit for it again."""
        vcpu.interrupt_window = False
        self._machine.chips.deliver(vcpu, self._machine)

    def _set_tpr(self, vcpu: Vcpu, _exit: exits.SetTpr) -> None:
        self._machine.chips.deliver(vcpu, self._machine)

    def _system_event(self, vcpu: Vcpu, exit: exits.SystemEvent) -> Stop:
        kind, what = SYSTEM_EVENTS.get(exit.kind, (StopKind.INTERNAL_ERROR, f"reported event {exit.kind}"))
        return Stop(kind, f"the guest {what}", vcpu=vcpu.id)

    def _crash(self, kind: StopKind, cause: str, vcpu: Vcpu, exit: Exit) -> Stop:
        return Stop(kind, f"{cause}: {exit!r}", vcpu=vcpu.id)


def halt(vcpu: Vcpu, exit: Exit | None = None) -> Stop:
    """Return the Stop of a machine whose vCPUs all sleep for good."""
    return Stop(StopKind.HALT, "HLT with nothing that could wake the guest", vcpu=vcpu.id, exit=exit)


class Dispatch(dict[int, "Callable[[], object]"]):
    """Serves one vCPU: maps a packed exit, with the value written in it, to a call that serves it.

    The call returns LEAVE when the vCPU shall not enter the guest again. What was found once is kept, so that the
    second access to a port costs a single look-up; `clear()` it when handlers or devices change.
    """

    def __init__(self, machine: Machine, vcpu: Vcpu) -> None:
        super().__init__()
        self.machine = machine
        self.vcpu = vcpu
        self.error: BaseException | None = None
        self._by_key: dict[int, PackedHandler] = {}  # the low half of an exit: all but the value
        self._uncounted = 0  # entries that ended by a kick: they are no exits

    def clear(self) -> None:
        """Forget what was found."""
        super().clear()
        self._by_key.clear()

    def serve(self, limit: int | None) -> None:
        """Enter the guest again and again, until the machine stops or this vCPU has had `limit` exits.

        What a device or handler raises stops the machine and is kept in `error`.
        """
        lock = self.machine.vm.lock
        self.error = None
        try:
            with lock:
                self.vcpu.share(lock)
                try:
                    self.machine.chips.start(self.vcpu, self.machine)
                    self._loop(sys.maxsize if limit is None else limit)
                finally:
                    self.vcpu.share(None)
        except BusError as error:
            exit = self.vcpu.typed_exit(self.vcpu.recent()[-1].code)
            self._stop(Stop(StopKind.UNCLAIMED, str(error), vcpu=self.vcpu.id, exit=exit))
        except BaseException as error:
            self.error = error
            self._stop(Stop(StopKind.HOST_ERROR, f"{type(error).__name__}: {error}", vcpu=self.vcpu.id))

    def _loop(self, limit: int) -> None:
        # After an exit every branch is mispredicted: here each bytecode costs some 10 ns, each call some 100.
        handlers, leave = self, LEAVE
        left = 0 if self._go_on() is LEAVE else limit
        while left:
            self._uncounted = 0
            for code in self.vcpu.exits(left):
                if handlers[code]() is leave:
                    return
            left = self._uncounted
        if self.machine.stop_reason:
            return
        detail = f"{limit} exits were allowed; allow more"
        self._stop(Stop(StopKind.EXIT_LIMIT, detail, vcpu=self.vcpu.id))

    def _stop(self, stop: Stop) -> object:
        self.machine.stop(stop)
        return LEAVE

    def __missing__(self, code: int) -> Callable[[], object]:
        """Find what serves an exit that was not met before."""
        if code & packed.WRITES_PENDING:
            return partial(self._after_pending_writes, code & ~packed.WRITES_PENDING)
        if len(self) >= KEPT or len(self._by_key) >= KEPT:  # a guest can write every value to every port
            self.clear()
        key = code & packed.KEY_MASK
        handler = self._by_key.get(key) or self._find(key)
        call = partial(handler, code >> packed.VALUE_SHIFT)
        if key in self._by_key and (not key & packed.OUT or packed.size_of(key) == 1):
            self[code] = call  # wider values are too many to keep
        return call

    def _after_pending_writes(self, code: int) -> object:
        self.machine.take_writes()
        return self[code]()

    def _find(self, key: int) -> PackedHandler:
        reason = key & packed.REASON_MASK
        special = SPECIAL.get(reason)
        if special:
            return self._keep(key, partial(special, self, key))
        kind = kind_of(key)
        if not self.machine.handlers.is_own(kind) or reason not in FAST:
            return self._keep(key, partial(self._typed, kind, key))
        return FAST[reason](self, key)

    def _keep(self, key: int, handler: PackedHandler) -> PackedHandler:
        self._by_key[key] = handler
        return handler

    def _typed(self, kind: type[Exit], key: int, value: int) -> object:
        """Let a handler see the exit as an object."""
        exit = self.vcpu.typed_exit(key | value << packed.VALUE_SHIFT)
        self.machine.served = self.vcpu.id
        outcome = self.machine.handlers[kind](self.vcpu, exit)
        if outcome is None:
            # A handler that stepped the vCPU may have met the kick that was meant for this thread.
            return self._go_on()
        if not isinstance(outcome, Stop):
            raise ConfigError(f"handler of {kind.__name__} returned {outcome!r}; return None to go on, or a Stop")
        if outcome.exit is None:
            outcome.exit = exit
        return self._stop(outcome)

    def _go_on(self) -> object:
        machine = self.machine
        machine.gate.wait(machine.vm.lock, machine.is_stopping)
        return LEAVE if machine.stop_reason else None

    # Kicks, errands, errors

    def _interrupted(self, _key: int, _value: int) -> object:
        """Someone kicked the vCPU: to stop the machine, to hold it, or to see whether it sleeps for good."""
        self._uncounted += 1
        machine = self.machine
        if machine.stop_reason:
            return LEAVE
        if machine.chips.sleeps_inside:
            asleep = not machine.chips.can_wake(self.vcpu)
            if machine.sleepers.report(self.vcpu.id, asleep=asleep):
                return self._stop(halt(self.vcpu))
        machine.chips.deliver(self.vcpu, machine)
        return self._go_on()

    def _attend(self, _key: int, _value: int) -> object:
        """The vCPU has something to do before it enters: let it, and serve the exit that comes of it."""
        return self[self.vcpu.enter()]()

    def _failed(self, key: int, value: int) -> object:
        error = self.vcpu.run_error(key | value << packed.VALUE_SHIFT)
        return self._stop(Stop(StopKind.HOST_ERROR, str(error), vcpu=self.vcpu.id))

    # Accesses, without an object per exit

    def _io(self, key: int) -> PackedHandler:
        if key & packed.MANY:
            return self._keep(key, partial(self._string, key))
        size, port, ports = packed.size_of(key), packed.port_of(key), self.machine.bus.ports
        found = ports.find(port, size)
        device, offset = found or (ports, port)
        if key & packed.OUT:
            handler: PackedHandler = partial(device.write, offset, size)
        else:
            handler = self._reader(device, offset, size)
        return self._keep(key, handler) if found else handler

    def _reader(self, device: Device | AddressSpace, offset: int, size: int) -> PackedHandler:
        read, answer, mask = device.read, self.vcpu.answer, (1 << 8 * size) - 1

        def handler(_value: int) -> None:
            value = read(offset, size)
            try:
                answer(value & mask)
            except TypeError:
                raise no_number(device.name, value) from None

        return handler

    def _string(self, key: int, _value: int) -> None:
        ports, port, size = self.machine.bus.ports, packed.port_of(key), packed.size_of(key)
        with self.vcpu.io_data() as data:
            if key & packed.OUT:
                ports.write_many(port, size, bytes(data))
            else:
                data[:] = ports.read_many(port, size, len(data) // size)

    def _mmio(self, key: int) -> PackedHandler:
        machine, mmio, vcpu, size = self.machine, self.machine.bus.mmio, self.vcpu, packed.size_of(key)

        def write(_value: int) -> None:
            machine.served = vcpu.id
            gpa, value = vcpu.mmio
            mmio.write(gpa, size, value)

        def read(_value: int) -> None:
            machine.served = vcpu.id
            vcpu.answer(mmio.read(vcpu.mmio[0], size))

        return self._keep(key, write if key & packed.OUT else read)


SPECIAL: dict[int, Callable[[Dispatch, int, int], object]] = {
    packed.INTERRUPTED: Dispatch._interrupted,
    packed.ATTENTION: Dispatch._attend,
    packed.ERROR: Dispatch._failed,
}
FAST: dict[int, Callable[[Dispatch, int], PackedHandler]] = {packed.IO: Dispatch._io, packed.MMIO: Dispatch._mmio}
