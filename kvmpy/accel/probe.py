"""What an accelerator does as the manuals say, found out by trying.

A feature is probed once, when it is first asked for, in a throwaway VM. Code and tests ask `features.int3`, never for
the host's name: what one host's KVM emulates wrongly or not at all, another's processor does in hardware.
"""

from __future__ import annotations

import time

from kvmpy.accel import exits
from kvmpy.accel.base import Watchpoint
from kvmpy.accel.testbed import CODE, DATA, IDT, KICK_LIMIT_SECONDS, PML4, USER_CODE64, Testbed
from kvmpy.cpu.bits import CR0_PG, CR0_TS, CR4_TSD, EFER_SCE, RFLAGS_IF, RFLAGS_IOPL
from kvmpy.errors import HostError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.accel.base import Accelerator
    from kvmpy.accel.exits import Exit
    from kvmpy.cpu.state import CpuState

UD, NM, NP, SS, GP, DB, BP = 6, 7, 11, 12, 13, 1, 3
RDRAND = 1 << 30
HANG_SECONDS = 0.2  # of a processor's time, without an exit: it hangs
HANG_TRIES = 50
OUT_AND_HALT = bytes.fromhex("e6ee f4")  # out 0xee, al; hlt
REACHED = 0xEE


class Features:
    """The probed truth about one accelerator; every attribute is a bool. `explain(name)` says what it means.

    A probe answers no only for a wrong exit. That it could not run is an error, and nothing is remembered.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._known: dict[str, bool] = {}

    def __getattr__(self, name: str) -> bool:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in PROBES:
            raise UnsupportedError(f"feature {name!r}: no such probe; there are {', '.join(PROBES)}")
        if name not in self._known:
            self._known[name] = PROBES[name][1](self._accelerator)
        return self._known[name]

    @staticmethod
    def names() -> list[str]:
        """Return the names of all features."""
        return list(PROBES)

    @staticmethod
    def explain(name: str) -> str:
        """Return what it means when the feature is there."""
        return PROBES[name][0]


def _runs(bits: int, code: str, *, ring: int = 0) -> Callable[[Accelerator], bool]:
    """Probe: the code runs through to the OUT and HLT appended to it, without an exception."""
    return lambda accelerator: _first_exit(accelerator, bits, code, ring=ring) == REACHED


def _raises(
    vector: int, bits: int, code: str, *, ring: int = 0, prepare: Callable[[CpuState], None] = lambda _state: None
) -> Callable[[Accelerator], bool]:
    """Probe: the code raises this exception, delivered through the interrupt table."""
    return lambda accelerator: _first_exit(accelerator, bits, code, ring=ring, prepare=prepare) == vector


def _first_exit(
    accelerator: Accelerator,
    bits: int,
    code: str,
    *,
    ring: int = 0,
    prepare: Callable[[CpuState], None] = lambda _state: None,
) -> int | None:
    with Testbed(accelerator, bits) as bed:
        bed.load(bytes.fromhex(code) + OUT_AND_HALT, ring=ring)
        state = bed.initial_state(ring)
        prepare(state)
        bed.vcpu.regs, bed.vcpu.sregs = state.regs, state.sregs
        return bed.vector(_go(bed))


def _go(bed: Testbed) -> Exit:
    """Run to the next exit. That there is none in time says nothing about the processor: HostError."""
    exit = bed.go()
    if isinstance(exit, exits.Interrupted):
        raise HostError(
            f"probing a feature: no exit of the guest in {KICK_LIMIT_SECONDS:g} s; try again on a less busy machine"
        )
    return exit


def _run(bed: Testbed, code: bytes, *, ring: int = 0) -> Exit:
    bed.load(code, ring=ring)
    return _go(bed)


def _go_or_hang(bed: Testbed) -> Exit | None:
    """Run what hangs on some hosts; None when it burns time without an exit. Waiting for a processor is no hang."""
    start = time.thread_time()
    for _ in range(HANG_TRIES):
        exit = bed.go(HANG_SECONDS)
        if not isinstance(exit, exits.Interrupted):
            return exit
        if time.thread_time() - start > HANG_SECONDS / 2:
            return None
    raise HostError(f"probing a feature: no time to run in {HANG_SECONDS * HANG_TRIES:g} s; try on a less busy machine")


def _offered(probe: Callable[[Accelerator], bool]) -> Callable[[Accelerator], bool]:
    """Probe what an accelerator may lack altogether, and says so."""

    def ask(accelerator: Accelerator) -> bool:
        try:
            return probe(accelerator)
        except UnsupportedError:
            return False

    return ask


def _set(**changes: int) -> Callable[[CpuState], None]:
    """Return a change to the initial state: bits to set in control registers or RFLAGS."""

    def prepare(state: CpuState) -> None:
        for name, value in changes.items():
            owner = state.regs if hasattr(state.regs, name) else state.sregs
            setattr(owner, name, getattr(owner, name) | value)

    return prepare


def _single_step(accelerator: Accelerator) -> bool:
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex("90 90 f4"))
        return _stopped_at(bed.vcpu.step(), CODE + 1)


def _breakpoint(accelerator: Accelerator) -> bool:
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex("90 90 90 f4"))
        bed.vcpu.breakpoints = [CODE + 1]
        return _stopped_at(_go(bed), CODE + 1) and isinstance(_go(bed), exits.Hlt)


def _watchpoint(accelerator: Accelerator) -> bool:
    """A host's watchpoint on DATA: mov byte ptr [DATA], 1; nop; hlt."""
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex(f"c604 25 {_le32(DATA)} 01 90 f4"))
        bed.vcpu.watchpoints = [Watchpoint(DATA)]
        return _stopped_at(_go(bed), CODE + 8) and isinstance(_go(bed), exits.Hlt)


def _stopped_at(exit: Exit, address: int) -> bool:
    return isinstance(exit, exits.Debug) and exit.exception == DB and exit.pc == address


def _guest_watchpoint(accelerator: Accelerator) -> bool:
    """The guest sets DR0 to DATA and DR7 to break on its write, then writes: #DB."""
    code = f"b8 {_le32(DATA)} 0f23c0 b8 01000d00 0f23f8 c604 25 {_le32(DATA)} 01 90"
    return _first_exit(accelerator, 64, code) == DB


def _le16(value: int) -> str:
    return value.to_bytes(2, "little").hex()


def _le32(value: int) -> str:
    return value.to_bytes(4, "little").hex()


def _paging32(accelerator: Accelerator) -> bool:
    """Turn CR0.PG on over one 4 MiB page with CR4.PSE, without long mode."""
    with Testbed(accelerator, 32) as bed:
        bed.memory.write_int(PML4, 4, 0x83)
        # mov eax, PML4; mov cr3, eax; mov eax, 0x10; mov cr4, eax; mov eax, cr0; or eax, PG; mov cr0, eax
        code = f"b8 {_le32(PML4)} 0f22d8 b810000000 0f22e0 0f20c0 0d {_le32(CR0_PG)} 0f22c0"
        return bed.vector(_run(bed, bytes.fromhex(code) + OUT_AND_HALT)) == REACHED


def _syscall(accelerator: Accelerator) -> bool:
    """SYSCALL in ring 3 arrives at LSTAR in ring 0."""
    star, lstar, sfmask, target = 0xC0000081, 0xC0000082, 0xC0000084, CODE + 0x100
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex("0f05"), ring=3)
        bed.memory.write(target, OUT_AND_HALT)
        state = bed.initial_state(ring=3)
        state.sregs.efer |= EFER_SCE
        state.msrs = {star: 0x18 << 32 | (USER_CODE64 - 16) << 48, lstar: target, sfmask: 0}
        bed.vcpu.state = state
        return bed.vector(_go(bed)) == REACHED and not bed.vcpu.sregs.cs.selector & 3


def _iopl(accelerator: Accelerator) -> bool:
    """OUT to a port that the TSS's bitmap closes, with IOPL 3: mov edx, 0x500; out dx, al."""
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex("ba00050000 ee"), ring=3)
        state = bed.initial_state(ring=3)
        state.regs.rflags |= RFLAGS_IOPL
        bed.vcpu.regs = state.regs
        exit = _go(bed)
        return isinstance(exit, exits.IoOut) and exit.port == 0x500


def _cpuid_in_ring3(accelerator: Accelerator) -> bool:
    """The guest's ring 3 sees the vCPU's CPUID table, not the host's."""
    with Testbed(accelerator, 64) as bed:
        table = bed.vcpu.cpuid
        leaf = table.find(0)
        if leaf is None:
            return False
        leaf.ebx ^= 0x5A5A5A5A
        wanted = leaf.ebx
        bed.vcpu.cpuid = table
        _run(bed, bytes.fromhex("31c0 31c9 0fa2") + OUT_AND_HALT, ring=3)
        return bed.vcpu.regs.rbx == wanted


def _hypercall(accelerator: Accelerator) -> bool:
    """VMCALL ends in an exception, an exit or a result; it does not hang."""
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex("0f01c1") + OUT_AND_HALT)
        return _go_or_hang(bed) is not None


def _msr_exit(accelerator: Accelerator) -> bool:
    with Testbed(accelerator, 64) as bed:
        bed.vm.exit_on_msrs([0x1A0])
        exit = _run(bed, bytes.fromhex("b9a0010000 0f32") + OUT_AND_HALT)
        return isinstance(exit, exits.Rdmsr) and exit.index == 0x1A0


def _cpuid_features(accelerator: Accelerator) -> bool:
    """A feature bit that the table lacks is clear for the guest: RDRAND, leaf 1, ECX bit 30."""
    with Testbed(accelerator, 64) as bed:
        table = bed.vcpu.cpuid
        table.disable("rdrand")
        bed.vcpu.cpuid = table
        _run(bed, bytes.fromhex("b801000000 0fa2") + OUT_AND_HALT)
        return not bed.vcpu.regs.rcx & RDRAND


def _high_vector(accelerator: Accelerator) -> bool:
    with Testbed(accelerator, 16) as bed:
        bed.load(bytes.fromhex("cd90") + OUT_AND_HALT)
        exit = _go_or_hang(bed)
        return exit is not None and bed.vector(exit) == 0x90


def _serial_faults(accelerator: Accelerator) -> bool:
    """#UD is benign: when its gate is not present, #NP follows, not #DF (Intel SDM vol. 3, table 6-5)."""
    with Testbed(accelerator, 64) as bed:
        bed.memory.write_int(IDT + 16 * UD + 5, 1, 0x0E)  # an interrupt gate, not present
        return bed.vector(_run(bed, bytes.fromhex("0f0b"))) == NP


def _ivt_limit(accelerator: Accelerator) -> bool:
    with Testbed(accelerator, 16) as bed:
        bed.load(bytes.fromhex("0f0b"))
        sregs = bed.vcpu.sregs
        sregs.idt.limit = 0
        bed.vcpu.sregs = sregs
        return isinstance(_go(bed), exits.Shutdown)


def _interrupt(accelerator: Accelerator) -> bool:
    """An interrupt queued from outside arrives after STI."""
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex("fb 90 90") + OUT_AND_HALT)
        state = bed.initial_state()
        state.regs.rflags |= RFLAGS_IF
        bed.vcpu.regs = state.regs
        bed.vcpu.interrupt(0x40)
        return bed.vector(_go(bed)) == 0x40


def _nmi(accelerator: Accelerator) -> bool:
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex("90 90") + OUT_AND_HALT)
        bed.vcpu.nmi()
        return bed.vector(_go(bed)) == 2


def _chips(accelerator: Accelerator) -> bool:
    with accelerator.create_vm() as vm:
        vm.create_chips()
        return vm.has_chips


def _dirty_log(accelerator: Accelerator) -> bool:
    """The guest writes to DATA: mov byte ptr [DATA], al."""
    with Testbed(accelerator, 64) as bed:
        bed.load(bytes.fromhex(f"8804 25 {_le32(DATA)}") + OUT_AND_HALT)
        bed.vm.dirty_pages()
        _go(bed)
        return DATA in bed.vm.dirty_pages()


def _reserved_cr4_bit(accelerator: Accelerator) -> bool:
    """Set bit 15 of CR4: mov rax, cr4; bts eax, 15; mov cr4, rax."""
    return _first_exit(accelerator, 64, "0f20e0 0fbae80f 0f22e0") == GP


PROBES: dict[str, tuple[str, Callable[[Accelerator], bool]]] = {
    "int3": ("INT3 in ring 0 raises #BP", _raises(BP, 64, "cc")),
    "int_n": ("INT n in 64-bit ring 0 goes through the IDT", _raises(0x42, 64, "cd42")),
    "int_n_16": ("INT n in real mode goes through the vector table", _raises(0x42, 16, "cd42")),
    "int_n_16_high": ("INT n in real mode takes vectors above 127", _high_vector),
    "int_n_32": ("INT n in 32-bit ring 0 goes through the IDT", _raises(0x42, 32, "cd42")),
    "int_n_ring3": ("INT n in ring 3 goes through a gate of DPL 3", _raises(0x42, 64, "cd42", ring=3)),
    "exceptions_16": ("exceptions in real mode go through the vector table", _raises(UD, 16, "0f0b")),
    "exceptions_32": ("exceptions in 32-bit mode go through the IDT", _raises(UD, 32, "0f0b")),
    "exceptions_64": ("exceptions in 64-bit mode go through the IDT", _raises(UD, 64, "0f0b")),
    "serial_faults": ("a fault on the way to a benign exception's handler is delivered by itself", _serial_faults),
    "ivt_limit": ("the limit of the real-mode vector table counts", _ivt_limit),
    "iret_16": ("IRET in real mode", _runs(16, f"9c 0e 68 {_le16(CODE + 6)} cf")),
    "iret_32": ("IRET in 32-bit mode", _runs(32, f"9c 0e 68 {_le32(CODE + 8)} cf")),
    "iret_64": ("IRETQ in 64-bit mode", _runs(64, f"6a10 68 f0ff0000 9c 6a18 68 {_le32(CODE + 17)} 48cf 90 90")),
    "x87": ("x87 instructions in ring 0", _runs(64, "dbe3 d9e8")),
    "sse": ("SSE instructions in ring 0", _runs(64, "0f57c0 660fefc9 f20f58c1")),
    "popcnt": ("POPCNT in ring 0", _runs(64, "f30fb8c1")),
    "cmpxchg16b": ("CMPXCHG16B in ring 0", _runs(64, f"480fc70c25{_le32(DATA)}")),
    "xgetbv": ("XGETBV in ring 0 after CR4.OSXSAVE", _runs(64, "0f20e0 0d00000400 0f22e0 31c9 0f01d0")),
    "chips": ("interrupt chips inside the accelerator", _offered(_chips)),
    "dirty_log": ("a log of the pages the guest wrote", _offered(_dirty_log)),
    "control_checks": ("reserved and forbidden bits of control registers are refused", _reserved_cr4_bit),
    "segment_limits": ("real-mode accesses beyond the segment's limit fault", _raises(GP, 16, "bbffff 8b07")),
    "stack_faults": (
        "a stack address that is not canonical is #SS",
        _raises(SS, 64, "48bd0000000000800000 488b4500"),
    ),
    "paging_32": ("32-bit paging without long mode", _paging32),
    "single_step": ("single step by the host", _single_step),
    "breakpoint": ("hardware breakpoints by the host", _breakpoint),
    "watchpoint": ("data watchpoints by the host", _watchpoint),
    "guest_watchpoint": ("a data watchpoint that the guest sets", _guest_watchpoint),
    "interrupt": ("interrupts from user space (KVM_INTERRUPT)", _interrupt),
    "nmi": ("NMIs from user space", _nmi),
    "msr_exit": ("accesses to chosen MSRs exit to user space", _offered(_msr_exit)),
    "hypercall": ("VMCALL does not hang", _hypercall),
    "syscall": ("SYSCALL in ring 3 arrives in ring 0", _syscall),
    "cpuid_features": ("features taken from the CPUID table are gone for the guest", _cpuid_features),
    "cpuid_ring3": ("ring 3 sees the vCPU's CPUID table", _cpuid_in_ring3),
    "iopl_ring3": ("IOPL 3 opens all ports to ring 3", _iopl),
    "ts_ring3": ("CR0.TS raises #NM on SSE in ring 3", _raises(NM, 64, "0f57c0", ring=3, prepare=_set(cr0=CR0_TS))),
    "tsd_ring3": ("CR4.TSD makes RDTSC #GP in ring 3", _raises(GP, 64, "0f31", ring=3, prepare=_set(cr4=CR4_TSD))),
}
