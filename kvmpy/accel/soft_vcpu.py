"""A vCPU of the software CPU."""

from __future__ import annotations

import itertools

from kvmpy.accel import packed
from kvmpy.accel.base import Watchpoint, check_debug_registers, check_features
from kvmpy.accel.run_path import RunPath
from kvmpy.accel.soft_state import load_regs, load_sregs, store_regs, store_sregs
from kvmpy.cpu.bits import LAST_VECTOR, RFLAGS_IF
from kvmpy.cpu.msrs import reset_apic_base
from kvmpy.cpu.state import CpuState, DebugRegisters, MpState, PendingEvents, Registers, Segment, SystemRegisters
from kvmpy.errors import ClosedError, ConfigError
from kvmpy.softcpu.binding import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvmpy.accel.exits import Exit
    from kvmpy.accel.packed import PastExit
    from kvmpy.cpu.cpuid import CpuidTable
    from kvmpy.errors import KvmpyError
    from kvmpy.kvm.lock import Lock
    from kvmpy.softcpu.binding import CData

HF_INHIBIT_IRQ = 1 << 3
NONE = -1


class SoftVcpu(RunPath):
    """A vCPU that takes its turns on the engine of its VM."""

    def __init__(self, vcpu_id: int, engine: CData, cpus: int, *, local_apic: bool = False) -> None:
        super().__init__()
        self._id = vcpu_id
        self._lock: Lock | None = None
        self._breakpoints: list[int] = []
        self._watchpoints: list[Watchpoint] = []
        error = ffi.new("int *")
        soft = lib.soft_open(engine, error)
        check("opening the engine", error[0])
        self._open: CData | None = ffi.gc(soft, lib.soft_free)
        self._set_default_cpuid(cpus, local_apic)
        self._store_sregs(SystemRegisters(tr=Segment(type=0xB, s=0), apic_base=reset_apic_base(vcpu_id, local_apic)))
        self._store_regs(Registers())

    @property
    def id(self) -> int:
        """The vCPU's number."""
        return self._id

    @property
    def _soft(self) -> CData:
        if self._open is None:
            raise ClosedError(f"using vCPU {self._id}: it is closed; make a new one")
        return self._open

    # Running

    @property
    def _attention(self) -> bool:
        return bool(self._soft.attention)

    @_attention.setter
    def _attention(self, on: bool) -> None:
        self._soft.attention = on

    @property
    def _pending(self) -> bool:
        return bool(self._soft.pending)

    def _enter(self) -> int:
        code: int = lib.soft_enter(self._soft)
        return code

    def _single_step(self) -> int:
        code: int = lib.soft_step(self._soft)
        return code

    def _complete(self) -> int:
        return lib.soft_complete(self._soft) or packed.INTERRUPTED

    def _typed(self, code: int) -> tuple[Exit, Callable[[], None] | None]:
        from kvmpy.accel.soft_exits import typed_exit

        return typed_exit(self._soft, code)

    def exits(self, limit: int) -> Iterator[int]:
        """Enter the guest up to `limit` times; see Vcpu."""
        return map(lib.soft_enter, itertools.repeat(self._soft, limit))

    def share(self, lock: Lock | None) -> None:
        """Free this lock while the guest runs."""
        self._lock = lock
        self._soft.lock = ffi.cast("pthread_mutex_t *", lock.address) if lock else ffi.NULL

    def answer(self, value: int) -> None:
        """Answer the read that has just exited."""
        lib.soft_answer(self._soft, value)

    def run_error(self, code: int) -> KvmpyError:
        """Return the error behind a packed exit; there is none but that the vCPU is closed."""
        return ClosedError(f"running vCPU {self._id}: it is closed (exit {code:#x})")

    def kick(self) -> None:
        """Make the vCPU leave the guest at the next block of code."""
        soft = self._open
        if soft is not None:
            lib.soft_kick(soft)

    def forget_kick(self) -> None:
        """Take back a kick."""
        lib.soft_forget_kick(self._soft)

    def recent(self) -> list[PastExit]:
        """Return the last packed exits."""
        soft, size = self._soft, lib.KVMPY_RECENT
        lib.soft_keep_answer(soft)
        exits = (soft.recent[i % size] for i in range(max(0, soft.exits - size), soft.exits))
        return [packed.past_exit(exit.code, exit.gpa, exit.value) for exit in exits]

    @property
    def raised(self) -> tuple[int, int | None] | None:
        """The exception that was raised last, before those that its delivery raised: vector and error code."""
        soft = self._soft
        raised = soft.raised
        if raised.vector == NONE:
            return None
        return raised.vector, raised.error if raised.has_error else None

    @property
    def entries(self) -> int:
        """How often the guest was entered."""
        if self._open is not None:
            self._entries: int = self._open.entries
        return self._entries

    @property
    def mmio(self) -> tuple[int, int]:
        """Address and written value of the current MMIO exit."""
        access = self._soft.access
        return access.address, access.value

    def io_data(self) -> memoryview:
        """Return the item of the current port access; string instructions exit for each."""
        access = self._soft.access
        return memoryview(ffi.buffer(ffi.addressof(access, "value"), access.size)).cast("B")

    def exit_on_msrs(self, indices: list[int]) -> None:
        """Stop at accesses to these MSRs, and to those that there are not."""
        soft = self._soft
        soft.msr_filter[0 : len(indices)] = indices
        soft.msr_filter_count = len(indices)
        soft.msr_exits = 1

    # State

    def _load_regs(self) -> Registers:
        soft = self._soft
        return load_regs(soft.saved, lib.soft_rflags(soft))

    def _store_regs(self, regs: Registers) -> None:
        soft = self._soft
        store_regs(soft.saved, regs)
        lib.soft_set_rflags(soft, regs.rflags)
        lib.soft_state_set(soft)

    def _load_sregs(self) -> SystemRegisters:
        return load_sregs(self._soft)

    def _store_sregs(self, sregs: SystemRegisters) -> None:
        soft = self._soft
        store_sregs(soft, sregs)
        soft.shut_down = 0
        lib.soft_state_set(soft)

    @property
    def cr8(self) -> int:
        """The task priority class."""
        value: int = self._soft.cr8
        return value

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._soft.cr8 = value

    @property
    def state(self) -> CpuState:
        """The whole state."""
        from kvmpy.accel.soft_msrs import load_msrs, load_xsave

        self.complete()
        soft = self._soft
        return CpuState(
            regs=self.regs,
            sregs=self.sregs,
            debug=DebugRegisters(list(soft.guest_dr[0:4]), soft.guest_dr[6], soft.guest_dr[7]),
            msrs=load_msrs(soft.saved),
            xcrs={},
            xsave=load_xsave(soft.saved),
            events=self._load_events(),
            lapic=None,
            mp_state=MpState.RUNNABLE,
        )

    @state.setter
    def state(self, state: CpuState) -> None:
        from kvmpy.accel.soft_msrs import store_msrs, store_xsave

        self.sregs = state.sregs
        self.regs = state.regs
        soft = self._soft
        if state.xsave:
            store_xsave(soft, state.xsave)
        store_msrs(soft.saved, state.msrs)
        soft.guest_dr[0:4] = state.debug.db
        soft.guest_dr[6], soft.guest_dr[7] = state.debug.dr6, state.debug.dr7
        lib.soft_state_set(soft)
        self._store_events(state.events)

    def _load_events(self) -> PendingEvents:
        soft = self._soft
        injected = soft.injected
        vector = injected.vector if injected.vector != NONE else None
        fault, waits = bool(injected.is_fault), soft.irq_waiting != NONE
        return PendingEvents(
            exception=vector if fault else None,
            exception_error_code=injected.error if vector is not None and injected.has_error else None,
            exception_injected=fault and vector is not None,
            interrupt=soft.irq_waiting if waits else None if fault else vector,
            interrupt_pending=waits,
            shadow=2 if soft.saved.hflags & HF_INHIBIT_IRQ else 0,
            nmi_pending=bool(soft.nmi_waiting),
            nmi_masked=bool(soft.nmi_blocked),
            triple_fault=bool(soft.shut_down),
        )

    def _store_events(self, events: PendingEvents) -> None:
        soft = self._soft
        soft.nmi_waiting = events.nmi_pending or events.nmi_injected
        soft.nmi_blocked = events.nmi_masked
        soft.saved.hflags = soft.saved.hflags & ~HF_INHIBIT_IRQ | (HF_INHIBIT_IRQ if events.shadow else 0)
        soft.injected.vector = NONE
        soft.irq_waiting = events.interrupt if events.interrupt_pending else NONE
        if events.exception is not None:
            self._inject(events.exception, events.exception_error_code, fault=True)
        elif events.interrupt is not None and not events.interrupt_pending:
            self._inject(events.interrupt, None, fault=False)

    # Debugging

    @property
    def breakpoints(self) -> list[int]:
        """The linear addresses that give a Debug exit."""
        return list(self._breakpoints)

    @breakpoints.setter
    def breakpoints(self, addresses: Iterable[int]) -> None:
        wanted = list(dict.fromkeys(addresses))
        check_debug_registers(wanted, self._watchpoints)
        lib.soft_set_breakpoints(self._soft, wanted, len(wanted))
        self._breakpoints = wanted

    @property
    def watchpoints(self) -> list[Watchpoint]:
        """The data whose access gives a Debug exit. While there are any, the guest is executed step by step."""
        return list(self._watchpoints)

    @watchpoints.setter
    def watchpoints(self, points: Iterable[Watchpoint]) -> None:
        wanted = list(points)
        check_debug_registers(self._breakpoints, wanted)
        watches = [(self.translate(p.address) or p.address, p.size, p.reads) for p in wanted]
        lib.soft_set_watches(self._soft, watches, len(watches))
        self._watchpoints = wanted

    # Identification and events

    def _set_default_cpuid(self, cpus: int, local_apic: bool) -> None:
        from kvmpy.accel.soft_cpuid import default_cpuid, store_cpuid

        store_cpuid(self._soft, default_cpuid(self._id, cpus, local_apic=local_apic))

    @property
    def cpuid(self) -> CpuidTable:
        """The CPUID table the guest sees."""
        from kvmpy.accel.soft_cpuid import load_cpuid

        return load_cpuid(self._soft)

    @cpuid.setter
    def cpuid(self, table: CpuidTable) -> None:
        from kvmpy.accel.soft_cpuid import THERE, store_cpuid

        check_features(table, THERE, "the software CPU")
        store_cpuid(self._soft, table)

    @property
    def interruptible(self) -> bool:
        """True when IF is set, no interrupt shadow holds interrupts back, and none is queued."""
        soft = self._soft
        queued = soft.irq_waiting != NONE or soft.injected.vector != NONE
        shadow = soft.saved.hflags & HF_INHIBIT_IRQ
        return bool(lib.soft_rflags(soft) & RFLAGS_IF) and not shadow and not queued

    @property
    def interrupt_window(self) -> bool:
        """Whether the vCPU exits when it becomes interruptible."""
        return bool(self._soft.want_window)

    @interrupt_window.setter
    def interrupt_window(self, on: bool) -> None:
        self._soft.want_window = on

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt."""
        self._check_vector(vector)
        soft = self._soft
        if soft.irq_waiting != NONE:
            raise ConfigError(f"interrupt {vector:#x}: vector {soft.irq_waiting:#x} waits; see `interruptible`")
        soft.irq_waiting = vector

    def software_interrupt(self, vector: int) -> None:
        """Queue an interrupt whose delivery has begun."""
        self._check_vector(vector)
        self.complete()
        self._inject(vector, None, fault=False)

    def raise_exception(self, vector: int, error_code: int | None = None, *, cr2: int | None = None) -> None:
        """Queue an exception."""
        self._check_vector(vector)
        self.complete()
        if cr2 is not None:
            sregs = self.sregs
            sregs.cr2 = cr2
            self.sregs = sregs
        self._inject(vector, error_code, fault=True)

    def _inject(self, vector: int, error_code: int | None, *, fault: bool) -> None:
        self._soft.injected = (vector, fault, error_code is not None, error_code or 0)

    @staticmethod
    def _check_vector(vector: int) -> None:
        if not 0 <= vector <= LAST_VECTOR:
            raise ConfigError(f"vector {vector}: vectors go from 0 to 255")

    def nmi(self) -> None:
        """Queue an NMI."""
        self._soft.nmi_waiting = 1

    def translate(self, gva: int) -> int | None:
        """Walk the guest's page tables."""
        gpa = ffi.new("uint64_t *")
        address: int | None = gpa[0] if lib.soft_translate(self._soft, gva, gpa) else None
        return address

    def halted(self) -> bool:
        """It never waits inside: HLT exits."""
        self._soft  # noqa: B018 - ClosedError, when it is closed
        return False

    def close(self) -> None:
        """Let go of the engine."""
        soft, self._open = self._open, None
        if soft is not None:
            self._entries = soft.entries
