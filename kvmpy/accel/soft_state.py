"""Between the engine's state (src/cpu.h) and kvmpy's records."""

from __future__ import annotations

from kvmpy.cpu.bits import MASK64
from kvmpy.cpu.state import DescriptorTable, Registers, Segment, SystemRegisters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.softcpu.binding import CData

# The order of the engine's arrays.
GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")


def load_regs(cpu: CData, rflags: int) -> Registers:
    """Return the general registers."""
    values = dict(zip(GENERAL, cpu.regs, strict=True))
    return Registers(**values, rip=cpu.rip, rflags=rflags)


def store_regs(cpu: CData, regs: Registers) -> None:
    """Set the general registers and RIP, but not RFLAGS."""
    for i, name in enumerate(GENERAL):
        cpu.regs[i] = getattr(regs, name) & MASK64
    cpu.rip = regs.rip & MASK64


def load_sregs(soft: CData) -> SystemRegisters:
    """Return segments, tables and control registers."""
    cpu = soft.saved
    return SystemRegisters(
        **{name: _load_segment(cpu.segs[i]) for i, name in enumerate(SEGMENTS)},
        tr=_load_segment(cpu.tr),
        ldt=_load_segment(cpu.ldt),
        gdt=DescriptorTable(cpu.gdt.base, cpu.gdt.limit),
        idt=DescriptorTable(cpu.idt.base, cpu.idt.limit),
        cr0=cpu.cr[0],
        cr2=cpu.cr[2],
        cr3=cpu.cr[3],
        cr4=cpu.cr[4],
        cr8=soft.cr8,
        efer=cpu.efer,
        apic_base=soft.apic_base,
    )


def store_sregs(soft: CData, sregs: SystemRegisters) -> None:
    """Set segments, tables, control registers and EFER."""
    cpu = soft.saved
    for i, name in enumerate(SEGMENTS):
        _store_segment(cpu.segs[i], getattr(sregs, name))
    _store_segment(cpu.tr, sregs.tr)
    _store_segment(cpu.ldt, sregs.ldt)
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        getattr(cpu, name).base, getattr(cpu, name).limit = table.base, table.limit
    cpu.cr[0], cpu.cr[2], cpu.cr[3], cpu.cr[4] = sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4
    cpu.efer = sregs.efer
    soft.cr8 = sregs.cr8
    if sregs.apic_base is not None:
        soft.apic_base = sregs.apic_base


def _load_segment(s: CData) -> Segment:
    flags = s.flags
    return Segment(
        selector=s.selector,
        base=s.base,
        limit=s.limit,
        type=flags >> 8 & 0xF,
        s=flags >> 12 & 1,
        dpl=flags >> 13 & 3,
        present=flags >> 15 & 1,
        avl=flags >> 20 & 1,
        l=flags >> 21 & 1,
        db=flags >> 22 & 1,
        g=flags >> 23 & 1,
        unusable=int(not flags & 1 << 15),
    )


def _store_segment(s: CData, segment: Segment) -> None:
    s.selector, s.base, s.limit = segment.selector, segment.base, segment.limit
    present = segment.present and not segment.unusable
    s.flags = (
        segment.type << 8
        | segment.s << 12
        | segment.dpl << 13
        | present << 15
        | segment.avl << 20
        | segment.l << 21
        | segment.db << 22
        | segment.g << 23
    )
