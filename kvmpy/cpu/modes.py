"""Ready-made initial states for the processor's modes, and the question which mode a state is in.

Every segment satisfies the checks of VM entry on guest segment registers (Intel SDM vol. 3, 26.3.1.2): types accessed,
limit and G consistent, TR a busy TSS, LDTR unusable. This is on the path of every boot: no flags with names here.
"""

from __future__ import annotations

from enum import StrEnum

from kvmpy.cpu.bits import (
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    RFLAGS_FIXED,
    RFLAGS_VM,
    is_canonical,
)
from kvmpy.cpu.state import CpuState, DescriptorTable, Registers, Segment, SystemRegisters
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from kvmpy.cpu.segments import Gdt

CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10
CODE64_SELECTOR = 0x18

_CODE, _DATA, _LDT, _BUSY_TSS = 0xB, 0x3, 0x2, 0xB
_DATA_SEGMENTS = ("ds", "es", "fs", "gs", "ss")


class Mode(StrEnum):
    """How the processor reads its instructions; `bits` is the default size of addresses and operands.

    >>> Mode.PROTECTED_32.bits, str(Mode.LONG)
    (32, 'long')
    """

    bits: int

    def __new__(cls, name: str, bits: int) -> Self:
        """Make a member of its name and size."""
        mode = str.__new__(cls, name)
        mode._value_ = name
        mode.bits = bits
        return mode

    REAL = "real", 16
    VIRTUAL_8086 = "virtual-8086", 16
    PROTECTED_16 = "protected-16", 16
    PROTECTED_32 = "protected-32", 32
    COMPATIBILITY_16 = "compatibility-16", 16
    COMPATIBILITY_32 = "compatibility-32", 32
    LONG = "long", 64


def mode_of(sregs: SystemRegisters, rflags: int = 0) -> Mode:
    """Return the mode of CR0.PE, EFER.LMA, RFLAGS.VM and CS's L and D bits (Intel SDM vol. 3, 2.2)."""
    if not sregs.cr0 & CR0_PE:
        return Mode.REAL
    if sregs.efer & EFER_LMA:
        if sregs.cs.l:
            return Mode.LONG
        return Mode.COMPATIBILITY_32 if sregs.cs.db else Mode.COMPATIBILITY_16
    if rflags & RFLAGS_VM:
        return Mode.VIRTUAL_8086
    return Mode.PROTECTED_32 if sregs.cs.db else Mode.PROTECTED_16


def cpl(sregs: SystemRegisters) -> int:
    """Return the current privilege level: 0 in real mode, else SS.DPL (Intel SDM vol. 3, 24.4.1).

    Not CS.RPL: between MOV CR0 and the far jump into protected mode CS still holds a paragraph number.
    """
    return sregs.ss.dpl if sregs.cr0 & CR0_PE else 0


def flat_gdt() -> bytes:
    """Return the GDT that `protected_mode` and `long_mode` load: null, 32-bit code, data and 64-bit code."""
    return _flat_table().encode()


def real_segment(selector: int, *, code: bool = False) -> Segment:
    """Return a segment register as a real-mode load leaves it: base 16 times the selector, limit 64 KiB."""
    return Segment(selector=selector, base=selector << 4, limit=0xFFFF, type=_CODE if code else _DATA)


def real_mode(entry: int, *, segment: int = 0, stack: int = 0x7C00) -> CpuState:
    """Return a CPU about to run 16-bit code at `segment`:`entry`, with SS:SP at `segment`:`stack`.

    All segment registers hold `segment`, interrupts are off, caches are on (as firmware leaves them, unlike RESET).
    Raises ConfigError where a value does not fit in 16 bits.
    """
    for name, value in (("entry", entry), ("segment", segment), ("stack", stack)):
        _check(value, 16, f"real-mode {name}")
    sregs = SystemRegisters(cs=real_segment(segment, code=True), cr0=CR0_ET)
    for name in _DATA_SEGMENTS:
        setattr(sregs, name, real_segment(segment))
    sregs.ldt = _no_ldt()
    return CpuState(Registers(rip=entry, rsp=stack, rflags=RFLAGS_FIXED), sregs)


def protected_mode(entry: int, stack: int, *, gdt: int = 0) -> CpuState:
    """Return a CPU about to run flat 32-bit code at `entry`, unpaged, interrupts off, with an empty IDT.

    CS is 0x08 and every data segment 0x10, 4 GiB from 0. `gdt` is where the caller puts `flat_gdt()`; the guest
    needs it once it loads a segment register. Raises ConfigError where an address does not fit in 32 bits.
    """
    for name, value in (("entry", entry), ("stack", stack), ("GDT address", gdt)):
        _check(value, 32, f"protected-mode {name}")
    sregs = _flat_sregs(gdt, CODE_SELECTOR)
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE
    return CpuState(Registers(rip=entry, rsp=stack, rflags=RFLAGS_FIXED), sregs)


def long_mode(entry: int, stack: int, cr3: int, *, gdt: int = 0) -> CpuState:
    """Return a CPU about to run 64-bit code at `entry`, interrupts off, SSE and no-execute on, with an empty IDT.

    `cr3` is the physical address of a PML4 that the caller builds (`kvmpy.cpu.paging`), `gdt` the linear address
    where it puts `flat_gdt()`. CS is 0x18, data segments are 0x10. Raises ConfigError where an address is not
    canonical or `cr3` is not 4 KiB-aligned.
    """
    for name, value in (("entry", entry), ("stack", stack), ("GDT address", gdt)):
        if not is_canonical(value):
            raise ConfigError(f"long-mode {name} {value:#x} is not canonical; bits 63:47 must all be equal")
    _check(cr3, 52, "long-mode CR3")
    if cr3 & 0xFFF:
        raise ConfigError(f"long-mode CR3 {cr3:#x} is not 4 KiB-aligned; give the address of a PML4 table")
    sregs = _flat_sregs(gdt, CODE64_SELECTOR)
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
    sregs.cr3 = cr3
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT
    sregs.efer = EFER_LME | EFER_LMA | EFER_NXE
    return CpuState(Registers(rip=entry, rsp=stack, rflags=RFLAGS_FIXED), sregs)


def _flat_table() -> Gdt:
    from kvmpy.cpu.segments import Gdt, code_segment, data_segment  # a boot into real mode needs none of it

    table = Gdt()
    for segment in (code_segment(), data_segment(), code_segment(bits=64)):
        table.add(segment)
    return table


def _flat_sregs(gdt: int, code: int) -> SystemRegisters:
    table = _flat_table()
    sregs = SystemRegisters(
        cs=table.segment(code), tr=Segment(limit=0x67, type=_BUSY_TSS, s=0), ldt=_no_ldt(), gdt=table.register(gdt)
    )
    for name in _DATA_SEGMENTS:
        setattr(sregs, name, table.segment(DATA_SELECTOR))
    # With limit 0 no vector fits: the first exception stops the guest instead of running whatever lies at address 0.
    sregs.idt = DescriptorTable(0, 0)
    return sregs


def _no_ldt() -> Segment:
    return Segment(limit=0, type=_LDT, s=0, present=0, unusable=1)


def _check(value: int, bits: int, what: str) -> None:
    if not 0 <= value < 1 << bits:
        raise ConfigError(f"{what} {value:#x} does not fit in {bits} bits; choose an address below {1 << bits:#x}")
