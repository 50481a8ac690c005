"""A vCPU on KVM."""

from __future__ import annotations

from kvmpy.accel import packed
from kvmpy.accel.base import DEBUG_REGISTERS, Watchpoint, check_debug_registers
from kvmpy.accel.kvm_state import (
    load_debug,
    load_events,
    load_regs,
    load_sregs,
    store_debug,
    store_events,
    store_regs,
    store_sregs,
)
from kvmpy.accel.run_path import RunPath
from kvmpy.cpu.bits import LAST_VECTOR, RFLAGS_IF
from kvmpy.cpu.msrs import reset_apic_base
from kvmpy.cpu.state import CpuState, MpState, Registers, SystemRegisters
from kvmpy.errors import ConfigError
from kvmpy.kvm.binding import CData, constant, ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvmpy.accel.exits import Exit
    from kvmpy.accel.kvm import KvmVm
    from kvmpy.accel.packed import PastExit
    from kvmpy.cpu.cpuid import CpuidTable
    from kvmpy.errors import KvmpyError
    from kvmpy.kvm.lock import Lock
    from kvmpy.kvm.vcpu import VcpuFd

DR7_WRITE, DR7_READ_WRITE = 1, 3
DR7_LENGTH = {1: 0, 2: 1, 4: 3, 8: 2}
DR7_FIXED = 0x400  # bit 10 reads as one (Intel SDM vol. 3, 17.2.4)
XSTATE_BV_AT = 512  # the first word of the XSAVE header (Intel SDM vol. 1, 13.4.2)
XSTATE_X87_SSE = 3
LEAF_FEATURES, LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2 = 1, 0xB, 0x1F
X2APIC, TSC_DEADLINE, APIC = 1 << 21, 1 << 24, 1 << 9  # of leaf 1: ECX, ECX, EDX
PARKED_STATES = (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)


class KvmVcpu(RunPath):
    """A vCPU on KVM. General and system registers travel in the run page (KVM_CAP_SYNC_REGS), not by ioctl.

    That costs 0.2 us an exit: `exits()` does without, until somebody looks at them.
    """

    def __init__(self, vm: KvmVm, fd: VcpuFd) -> None:
        super().__init__()
        self.vm = vm
        self.fd = fd
        self._page_at = -1  # the number of entries after which the run page's registers were filled
        self._reported: int | None = None
        self._interrupted_at = -1  # the number of entries at which an interrupt was queued
        self._breakpoints: list[int] = []
        self._watchpoints: list[Watchpoint] = []
        self._fill_page = constant("KVM_SYNC_X86_REGS") | constant("KVM_SYNC_X86_SREGS")
        fd.run.kvm_valid_regs = self._fill_page

    @property
    def id(self) -> int:
        """The vCPU's number."""
        return self.fd.id

    # Running

    @property
    def _attention(self) -> bool:
        return self.fd.attention

    @_attention.setter
    def _attention(self, on: bool) -> None:
        self.fd.attention = on

    @property
    def _pending(self) -> bool:
        return self.fd.pending

    def _enter(self) -> int:
        code = self.fd.enter()
        self._note_debug(code)
        return code

    def _note_debug(self, code: int) -> None:
        """Remember where a Debug exit was told; what stands there is not told again."""
        self._reported = self._linear_rip() if code & packed.REASON_MASK == packed.DEBUG else None

    def _complete(self) -> int:
        return self.fd.complete()

    def _typed(self, code: int) -> tuple[Exit, Callable[[], None] | None]:
        from kvmpy.accel.kvm_exits import typed_exit

        return typed_exit(self.fd, code)

    def exits(self, limit: int) -> Iterator[int]:
        """Enter the guest up to `limit` times; see Vcpu."""
        self.fd.run.kvm_valid_regs = 0
        return self.fd.exits(limit)

    def share(self, lock: Lock | None) -> None:
        """Free this lock while the guest runs."""
        self.fd.share(lock)

    def answer(self, value: int) -> None:
        """Answer the read that has just exited."""
        self.fd.answer(value)

    def run_error(self, code: int) -> KvmpyError:
        """Return the error behind a packed exit."""
        return self.fd.run_error(code)

    def kick(self) -> None:
        """Make the vCPU leave the guest."""
        self.fd.kick()

    def forget_kick(self) -> None:
        """Take back a kick."""
        self.fd.forget_kick()

    def recent(self) -> list[PastExit]:
        """Return the last packed exits."""
        return [packed.past_exit(*exit) for exit in self.fd.recent()]

    @property
    def entries(self) -> int:
        """How often KVM_RUN was called."""
        count: int = self.fd.handle.entries
        return count

    @property
    def mmio(self) -> tuple[int, int]:
        """Address and written value of the current MMIO exit."""
        access = self.fd.run.mmio
        return access.phys_addr, int.from_bytes(bytes(access.data)[: access.len], "little")

    def io_data(self) -> memoryview:
        """Return the items of the current string I/O exit."""
        return self.fd.io_data()

    # State

    def _page(self) -> CData:
        """Return the register groups of the run page, filled by ioctl when KVM has not done it at the last exit."""
        run, entries = self.fd.run, self.entries
        if self._page_at != entries:
            if not entries or not run.kvm_valid_regs:
                run.s.regs.regs = self.fd.get_regs()[0]
                run.s.regs.sregs = self.fd.get_sregs()[0]
                run.kvm_valid_regs = self._fill_page  # who looks once will look again
            self._page_at = entries
        return run.s.regs

    def _flush(self) -> None:
        """Give KVM what was changed in the run page: ioctls other than KVM_RUN do not look there."""
        run = self.fd.run
        if run.kvm_dirty_regs & constant("KVM_SYNC_X86_SREGS"):
            self.fd.set_sregs(ffi.addressof(run.s.regs.sregs))
        if run.kvm_dirty_regs & constant("KVM_SYNC_X86_REGS"):
            self.fd.set_regs(ffi.addressof(run.s.regs.regs))
        run.kvm_dirty_regs = 0

    def _load_regs(self) -> Registers:
        return load_regs(self._page().regs)

    def _store_regs(self, regs: Registers) -> None:
        self._reported = None
        store_regs(self._page().regs, regs)
        self.fd.run.kvm_dirty_regs |= constant("KVM_SYNC_X86_REGS")

    def _load_sregs(self) -> SystemRegisters:
        return load_sregs(self._page().sregs)

    def _store_sregs(self, sregs: SystemRegisters) -> None:
        store_sregs(self._page().sregs, sregs)
        self.fd.run.cr8 = sregs.cr8  # without chips of its own KVM takes it from there at each entry
        self.fd.run.kvm_dirty_regs |= constant("KVM_SYNC_X86_SREGS")

    @property
    def cr8(self) -> int:
        """The task priority class."""
        value: int = self.fd.run.cr8
        return value

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.fd.run.cr8 = value

    @property
    def state(self) -> CpuState:
        """The whole state, gathered by ioctl."""
        self.complete()
        self._flush()
        fd = self.fd
        return CpuState(
            regs=self.regs,
            sregs=self.sregs,
            debug=load_debug(fd.get_debugregs()),
            msrs=fd.get_msrs(self.vm.accelerator.state_msrs),
            xcrs=fd.get_xcrs(),
            xsave=fd.get_xsave2(self.vm.accelerator.xsave_size),
            events=load_events(fd.get_events()),
            lapic=fd.get_lapic() if self.vm.has_chips else None,
            mp_state=fd.get_mp_state() if self.vm.has_chips else MpState.RUNNABLE,
        )

    @state.setter
    def state(self, state: CpuState) -> None:
        if state.events.interrupt_pending and not state.regs.rflags & RFLAGS_IF:
            raise ConfigError(
                f"interrupt {state.events.interrupt:#x} waits for IF: KVM has no place for it; drop it first"
            )
        self.regs = state.regs
        self.sregs = state.sregs
        self._flush()
        fd = self.fd
        if state.xcrs:
            fd.set_xcrs(state.xcrs)
        if state.xsave:
            fd.set_xsave(_with_x87_sse(state.xsave))
        if state.msrs:
            fd.set_msrs(state.msrs)
        fd.set_debugregs(store_debug(state.debug))
        if state.lapic is not None and self.vm.has_chips:
            fd.set_lapic(state.lapic)
        if self.vm.has_chips:
            fd.set_mp_state(state.mp_state)
        fd.set_events(store_events(state.events, sipi=state.mp_state == MpState.SIPI_RECEIVED))

    # Debugging

    @property
    def breakpoints(self) -> list[int]:
        """The linear addresses that give a Debug exit."""
        return list(self._breakpoints)

    @breakpoints.setter
    def breakpoints(self, addresses: Iterable[int]) -> None:
        wanted = list(dict.fromkeys(addresses))
        check_debug_registers(wanted, self._watchpoints)
        self._breakpoints = wanted
        self._arm_breakpoints()
        self._note_attention()

    @property
    def watchpoints(self) -> list[Watchpoint]:
        """The data whose access gives a Debug exit."""
        return list(self._watchpoints)

    @watchpoints.setter
    def watchpoints(self, points: Iterable[Watchpoint]) -> None:
        wanted = list(points)
        check_debug_registers(self._breakpoints, wanted)
        self._watchpoints = wanted
        self._arm_breakpoints()

    def _arm_breakpoints(self) -> None:
        addresses = [*self._breakpoints, *(point.address for point in self._watchpoints)]
        if not addresses:
            self._debug(0)
            return
        # DR7 (Intel SDM vol. 3, 17.2.4): for each register an enable bit, and kind and length of the access.
        dr7 = DR7_FIXED | sum(1 << 2 * i for i in range(len(addresses)))
        for i, point in enumerate(self._watchpoints, start=len(self._breakpoints)):
            kind = DR7_READ_WRITE if point.reads else DR7_WRITE
            dr7 |= (kind | DR7_LENGTH[point.size] << 2) << 16 + 4 * i
        registers = [*addresses, *[0] * (DEBUG_REGISTERS - len(addresses)), 0, 0, 0, dr7]
        self._debug(constant("KVM_GUESTDBG_ENABLE") | constant("KVM_GUESTDBG_USE_HW_BP"), registers)

    def _debug(self, control: int, registers: Iterable[int] = ()) -> None:
        # KVM compares against, or steps from, the registers it holds itself.
        self._flush()
        self.fd.set_guest_debug(control, registers)

    def _step_off_breakpoint(self) -> int | None:
        """Leave the breakpoint the vCPU stands on: not every host honours RF (Intel SDM vol. 3, 17.3.1.1).

        Return an exit that comes of it, or that the next instruction has a breakpoint too.
        """
        here = self._linear_rip() if self._breakpoints else None
        if here is None or here != self._reported or here not in self._breakpoints:
            return None
        code = self._single_step()
        stepped = code & packed.REASON_MASK == packed.DEBUG and self._linear_rip() not in self._breakpoints
        return None if stepped else code

    def _always_attend(self) -> bool:
        return bool(self._breakpoints)

    def _linear_rip(self) -> int:
        page = self._page()
        address: int = page.sregs.cs.base + page.regs.rip
        return address

    def _single_step(self) -> int:
        self._debug(constant("KVM_GUESTDBG_ENABLE") | constant("KVM_GUESTDBG_SINGLESTEP"))
        try:
            code = self.fd.enter()
        finally:
            self._arm_breakpoints()
        self._note_debug(code)
        return code

    # Identification and events

    def set_host_cpuid(self, table: CData, cpus: int, *, local_apic: bool) -> None:
        """Take the host's CPUID table with this vCPU's own APIC id and the machine's number of CPUs.

        KVM says what its own local APIC can: where another gives one, or none does, less is true.
        """
        copy = ffi.new("struct kvm_cpuid2 *", {"nent": table.nent, "entries": table.nent})
        ffi.memmove(copy.entries, table.entries, table.nent * ffi.sizeof("struct kvm_cpuid_entry2"))
        for i in range(copy.nent):
            entry = copy.entries[i]
            if entry.function == LEAF_FEATURES:
                entry.ebx = entry.ebx & 0xFF00 | self.id << 24 | (cpus & 0xFF) << 16
                if not self.vm.has_chips:
                    entry.ecx &= ~(X2APIC | TSC_DEADLINE)
                    entry.edx = entry.edx & ~APIC | (APIC if local_apic else 0)
            elif entry.function in (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2):
                entry.edx = self.id
        self.fd.set_cpuid(copy)
        if not self.vm.has_chips:  # KVM takes the bit in CPUID from there
            sregs = self.sregs
            sregs.apic_base = reset_apic_base(self.id, local_apic)
            self.sregs = sregs

    @property
    def cpuid(self) -> CpuidTable:
        """The CPUID table as KVM answers it."""
        return _table(self.fd.get_cpuid())

    @cpuid.setter
    def cpuid(self, table: CpuidTable) -> None:
        from kvmpy.accel.base import check_features

        supported = _table(self.vm.accelerator.cpuid_table)
        check_features(table, {*supported.features(), *self.cpuid.features()}, "KVM on this host")
        entries = [(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in table.entries]
        self.fd.set_cpuid(ffi.new("struct kvm_cpuid2 *", {"nent": len(entries), "entries": entries}))

    @property
    def interruptible(self) -> bool:
        """True when KVM would deliver an interrupt at the next entry; none was queued since the last exit."""
        return bool(self.fd.run.ready_for_interrupt_injection) and self._interrupted_at != self.entries

    @property
    def interrupt_window(self) -> bool:
        """Whether KVM exits when the guest becomes interruptible."""
        return bool(self.fd.run.request_interrupt_window)

    @interrupt_window.setter
    def interrupt_window(self, on: bool) -> None:
        self.fd.run.request_interrupt_window = on

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt (KVM_INTERRUPT)."""
        if self._interrupted_at == self.entries:  # KVM would forget the first one
            raise ConfigError(f"interrupt {vector:#x}: another one waits; see `interruptible`")
        self._flush()
        self.fd.interrupt(vector)
        self._interrupted_at = self.entries

    def software_interrupt(self, vector: int) -> None:
        """Queue an interrupt whose delivery has begun, so that IF does not matter. See Vcpu.

        Not marked `soft`: KVM would then add the length of an instruction that it has not seen to RIP.
        """
        if not 0 <= vector <= LAST_VECTOR:
            raise ConfigError(f"software interrupt {vector}: vectors go from 0 to 255")
        self.complete()
        self._flush()
        events = self.fd.get_events()
        events.interrupt.injected, events.interrupt.nr, events.interrupt.soft = 1, vector, 0
        self.fd.set_events(events)

    def nmi(self) -> None:
        """Queue an NMI."""
        self.fd.nmi()

    def raise_exception(self, vector: int, error_code: int | None = None, *, cr2: int | None = None) -> None:
        """Queue an exception through the vCPU's events."""
        self.complete()
        if cr2 is not None:
            sregs = self.sregs
            sregs.cr2 = cr2
            self.sregs = sregs
        self._flush()
        events = self.fd.get_events()
        events.exception.injected = 1
        events.exception.nr = vector
        events.exception.has_error_code = error_code is not None
        events.exception.error_code = error_code or 0
        events.flags &= ~constant("KVM_VCPUEVENT_VALID_PAYLOAD")
        self.fd.set_events(events)

    def translate(self, gva: int) -> int | None:
        """Let KVM walk the guest's page tables (KVM_TRANSLATE)."""
        self._flush()
        found = self.fd.translate(gva)
        address: int = found.physical_address
        return address if found.valid else None

    def halted(self) -> bool:
        """True in HLT with interrupts off, and before an application processor's SIPI."""
        state = self.fd.get_mp_state()
        if state == MpState.HALTED:
            return not self._page().regs.rflags & RFLAGS_IF
        return state in PARKED_STATES

    def close(self) -> None:
        """Close the vCPU."""
        self.fd.close()


def _with_x87_sse(area: bytes) -> bytes:
    """Mark x87 and SSE as present: KVM would take them for initial, whatever the area holds, when their bits are 0."""
    header = int.from_bytes(area[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little") | XSTATE_X87_SSE
    return area[:XSTATE_BV_AT] + header.to_bytes(8, "little") + area[XSTATE_BV_AT + 8 :]


def _table(raw: CData) -> CpuidTable:
    from kvmpy.cpu.cpuid import CpuidEntry, CpuidTable

    entries = (raw.entries[i] for i in range(raw.nent))
    return CpuidTable([CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries])
