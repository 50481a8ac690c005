"""What a processor refuses to enter a guest with: the checks of VM entry on guest state (Intel SDM vol. 3, 26.3.1).

KVM hands them on as FailEntry, without saying which. What `Registers` and `SystemRegisters` hold is checked, for an
unrestricted guest; a state may pass here and still be refused for its MSRs or pending events.
"""

from __future__ import annotations

from kvmpy.cpu.bits import MASK64, RFLAGS_FIXED, is_canonical
from kvmpy.cpu.flags import CR0, CR4, EFER, RFLAGS
from kvmpy.cpu.segments import SystemType
from kvmpy.cpu.state import SEGMENT_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.cpu.state import Registers, Segment, SystemRegisters

RFLAGS_ZERO = MASK64 >> 22 << 22 | 1 << 15 | 1 << 5 | 1 << 3
CODE_TYPES, STACK_TYPES, DATA_TYPES = (3, 9, 11, 13, 15), (3, 7), (1, 3, 5, 7, 11, 15)


def refused_state(regs: Registers, sregs: SystemRegisters) -> list[str]:
    """Return every rule that a state breaks, one line each; an empty list when it would be entered."""
    long_mode = bool(sregs.efer & EFER.LMA)
    return [
        *_control(sregs, long_mode),
        *_segments(regs, sregs, long_mode),
        *_tables(sregs),
        *_flow(regs, sregs, long_mode),
    ]


def _control(sregs: SystemRegisters, long_mode: bool) -> Iterator[str]:
    """26.3.1.1: control registers and EFER."""
    cr0, cr4, efer = sregs.cr0, sregs.cr4, sregs.efer
    if cr0 & CR0.PG and not cr0 & CR0.PE:
        yield "CR0.PG is set without CR0.PE"
    if cr0 & CR0.NW and not cr0 & CR0.CD:
        yield "CR0.NW is set without CR0.CD"
    if long_mode and not (cr0 & CR0.PG and cr4 & CR4.PAE):
        yield "EFER.LMA is set without CR0.PG and CR4.PAE"
    if cr0 & CR0.PG and bool(efer & EFER.LME) != long_mode:
        yield "EFER.LMA is not EFER.LME, with CR0.PG set"
    if cr4 & CR4.PCIDE and not long_mode:
        yield "CR4.PCIDE is set outside long mode"
    if sregs.cr3 >> 52:
        yield f"CR3 {sregs.cr3:#x} has bits above a physical address"


def _segments(regs: Registers, sregs: SystemRegisters, long_mode: bool) -> Iterator[str]:
    """26.3.1.2: segment registers. Those of virtual-8086 mode are as fixed as its name says."""
    if regs.rflags & RFLAGS.VM:
        yield from _virtual_8086(sregs)
        return
    for name in SEGMENT_NAMES:
        segment = getattr(sregs, name)
        if name in ("cs", "tr") or not segment.unusable:
            yield from (f"{name.upper()}: {fault}" for fault in _segment(name, segment, long_mode))
    if sregs.tr.unusable:
        yield "TR: is unusable"
    if sregs.cs.type != 3 and sregs.ss.selector & 3 != sregs.cs.selector & 3 and sregs.cr0 & CR0.PE:
        yield f"SS: RPL {sregs.ss.selector & 3} is not that of CS, {sregs.cs.selector & 3}"


def _segment(name: str, segment: Segment, long_mode: bool) -> Iterator[str]:
    system = name in ("tr", "ldt")
    if segment.type not in _types(name, long_mode):
        yield f"type {segment.type:#x} is none that it may have"
    if segment.s == system:
        yield f"S is {segment.s}"
    if not segment.present:
        yield "is not present"
    if segment.g and segment.limit & 0xFFF != 0xFFF:
        yield f"G is set, and limit {segment.limit:#x} does not end in 0xfff"
    if not segment.g and segment.limit >> 20:
        yield f"G is clear, and limit {segment.limit:#x} has more than 20 bits"
    if name == "cs" and long_mode and segment.l and segment.db:
        yield "L and D are both set"
    if system and segment.selector & 4:
        yield f"selector {segment.selector:#x} points into the LDT"
    if name in ("fs", "gs", "tr", "ldt") and not is_canonical(segment.base):
        yield f"base {segment.base:#x} is not canonical"
    if name in ("cs", "ds", "es", "ss") and segment.base >> 32:
        yield f"base {segment.base:#x} has more than 32 bits"


def _types(name: str, long_mode: bool) -> tuple[int, ...]:
    if name == "tr":
        return (SystemType.TSS_BUSY,) if long_mode else (SystemType.TSS16_BUSY, SystemType.TSS_BUSY)
    return {"cs": CODE_TYPES, "ss": STACK_TYPES, "ldt": (SystemType.LDT,)}.get(name, DATA_TYPES)


def _virtual_8086(sregs: SystemRegisters) -> Iterator[str]:
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        segment = getattr(sregs, name)
        if segment.base != segment.selector << 4 or segment.limit != 0xFFFF:
            yield f"{name.upper()}: base and limit are not those of virtual-8086 mode"


def _tables(sregs: SystemRegisters) -> Iterator[str]:
    """26.3.1.3: descriptor-table registers."""
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        if not is_canonical(table.base):
            yield f"{name.upper()}R: base {table.base:#x} is not canonical"
        if table.limit >> 16:
            yield f"{name.upper()}R: limit {table.limit:#x} has more than 16 bits"


def _flow(regs: Registers, sregs: SystemRegisters, long_mode: bool) -> Iterator[str]:
    """26.3.1.4: RIP and RFLAGS."""
    if long_mode and sregs.cs.l:
        if not is_canonical(regs.rip):
            yield f"RIP {regs.rip:#x} is not canonical"
    elif regs.rip >> 32:
        yield f"RIP {regs.rip:#x} has more than 32 bits outside 64-bit code"
    if not regs.rflags & RFLAGS_FIXED:
        yield "RFLAGS: bit 1 is clear"
    if regs.rflags & RFLAGS_ZERO:
        yield f"RFLAGS: reserved bits {regs.rflags & RFLAGS_ZERO:#x} are set"
    if regs.rflags & RFLAGS.VM and (long_mode or not sregs.cr0 & CR0.PE):
        yield "RFLAGS.VM is set outside protected mode"
