"""What an instruction probably raised, by the manual's rules, where executing it once more tells nothing.

That is so for what the host decides and not the processor: which MSRs there are, what may be written to them and to
the control registers, whether somebody answers hypercalls. Each rule looks at one instruction and the state before it
(Intel SDM vol. 2, RDMSR, WRMSR, MOV to Control Registers, LTR, VMCALL).
"""

from __future__ import annotations

import re

from kvmpy.asm import disassemble
from kvmpy.cpu.bits import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, MASK64, is_canonical
from kvmpy.cpu.flags import CR0, CR4, EFER, PageFault, describe_flags
from kvmpy.cpu.modes import mode_of
from kvmpy.cpu.msrs import Msr, msr_name
from kvmpy.cpu.paging import walk
from kvmpy.cpu.segments import decode_segment
from kvmpy.cpu.state import GENERAL_REGISTERS
from kvmpy.errors import MemoryAccessError
from kvmpy.lab.autopsy import Raised
from kvmpy.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.asm import Instruction as Disassembled
    from kvmpy.cpu.state import Registers, SystemRegisters
    from kvmpy.memory import GuestMemory

UD, NP, SS, GP, PF = 6, 11, 12, 13, 14
LONGEST = 15  # bytes of an instruction
IN_LDT = 4  # of a selector: the table indicator
AVAILABLE_TSS = (1, 9)  # types of a descriptor: 16 and 32 or 64 bits (Intel SDM vol. 3, table 3-2)
MOST_ADDRESS_BITS = 52  # of a physical address (Intel SDM vol. 3, 4.1.4)
# Of operands of 16 bytes, those that may lie anywhere (Intel SDM vol. 1, 10.4.1.1); with a VEX prefix most may.
UNALIGNED = {
    "movups", "movupd", "movdqu", "lddqu", "pcmpestri", "pcmpestrm", "pcmpistri", "pcmpistrm",
}  # fmt: skip
PLACE = re.compile(r"\[(?P<terms>[^\]]+)\]")
EFER_KNOWN = sum(EFER)
CR4_KNOWN = sum(CR4)
CANONICAL_ONLY = {
    Msr.FS_BASE,
    Msr.GS_BASE,
    Msr.KERNEL_GS_BASE,
    Msr.LSTAR,
    Msr.CSTAR,
    Msr.SYSENTER_ESP,
    Msr.SYSENTER_EIP,
}


@record
class Case:
    """An instruction and the state before it."""

    instruction: Disassembled
    memory: GuestMemory
    regs: Registers
    sregs: SystemRegisters
    wide: bool  # 64-bit code
    address_bits: int  # of a physical address

    def value(self, name: str) -> int:
        """Return what a register's part holds: rax, eax, ax, r8, r8d, r8w."""
        for full in GENERAL_REGISTERS:
            if name in (full, f"e{full[1:]}", full[1:], f"{full}d", f"{full}w"):
                bits = 64 if name == full else 32 if name[0] == "e" or name[-1] == "d" else 16
                return int(getattr(self.regs, full)) & (1 << bits) - 1
        return 0

    @property
    def address(self) -> int | None:
        """The linear address of the memory operand, where DS or SS is flat; None without one."""
        found = PLACE.search(self.instruction.operands)
        if not found or ":" in self.instruction.operands:
            return None
        total, sign = self.behind if "rip" in found["terms"] else 0, 1
        for term in found["terms"].split():
            name, _, scale = term.partition("*")
            if term in "+-":
                sign = 1 if term == "+" else -1
            else:
                number = int(name, 0) if name[0].isdigit() else 0 if name == "rip" else self.value(name)
                total += sign * number * int(scale or 1)
        return total & (MASK64 if self.wide else 0xFFFF_FFFF)

    @property
    def behind(self) -> int:
        """The linear address of the next instruction."""
        return self.instruction.address + len(self.instruction.raw)


def judge(
    memory: GuestMemory, regs: Registers, sregs: SystemRegisters, address_bits: int = MOST_ADDRESS_BITS
) -> Raised | None:
    """Return what the instruction at CS:RIP probably raised; None where no rule says anything."""
    bits = mode_of(sregs, regs.rflags).bits
    address = regs.rip if bits == 64 else sregs.cs.base + regs.rip & 0xFFFF_FFFF
    try:
        code = memory.read_virtual(sregs, address, min(LONGEST, 0x1000 - address % 0x1000))
    except MemoryAccessError:
        return None
    found = next(iter(disassemble(code, bits=bits, origin=address, count=1)), None)
    if found is None:
        return None
    rule = RULES.get(_kind(found), _memory_operand)
    judged = rule(Case(found, memory, regs, sregs, bits == 64, address_bits))
    return replace(judged, certain=False) if judged else None


def _kind(instruction: Disassembled) -> str:
    """Return the mnemonic; for MOV to a control or debug register, with the register."""
    target = re.match(r"(cr\d+|dr)", instruction.operands)
    return f"{instruction.mnemonic} {target[1]}" if target else instruction.mnemonic


def _source(case: Case) -> int:
    return case.value(case.instruction.operands.rpartition(", ")[2])


def _rdmsr(case: Case) -> Raised:
    index = case.regs.rcx & 0xFFFF_FFFF
    return Raised(GP, 0, why=f"there is no MSR {_called(index)} here, and no handler answered")


def _wrmsr(case: Case) -> Raised:
    index = case.regs.rcx & 0xFFFF_FFFF
    value = (case.regs.rdx & 0xFFFF_FFFF) << 32 | case.regs.rax & 0xFFFF_FFFF
    if index == Msr.EFER and value & ~EFER_KNOWN:
        return Raised(GP, 0, why=f"{value:#x} sets bits that EFER does not have: {value & ~EFER_KNOWN:#x}")
    if index == Msr.EFER and (value ^ case.sregs.efer) & EFER_LME and case.sregs.cr0 & CR0_PG:
        return Raised(GP, 0, why="EFER.LME cannot be changed while paging is on")
    if index in CANONICAL_ONLY and not is_canonical(value):
        return Raised(GP, 0, why=f"{value:#x} is no canonical address, which {msr_name(index)} must hold")
    return Raised(
        GP, 0, why=f"there is no MSR {_called(index)} here, or it does not take {value:#x}; no handler answered"
    )


def _called(index: int) -> str:
    name = msr_name(index)
    return f"{index:#x}" if name.startswith("0x") else f"{index:#x} ({name})"


def _mov_cr0(case: Case) -> Raised | None:
    value, sregs = _source(case), case.sregs
    why = ""
    if value >> 32:
        why = "the upper half of CR0 must be zero"
    elif value & CR0_PG and not value & CR0_PE:
        why = "paging (CR0.PG) needs protected mode (CR0.PE)"
    elif value & CR0.NW and not value & CR0.CD:
        why = "CR0.NW needs CR0.CD"
    elif value & CR0_PG and sregs.efer & EFER_LME and not sregs.cr4 & CR4_PAE:
        why = "paging in long mode (EFER.LME) needs CR4.PAE"
    elif not value & CR0_PG and case.wide:
        why = "64-bit code cannot turn paging off; go to compatibility mode first"
    if why:
        return Raised(GP, 0, why=why)
    active = EFER_LMA if value & CR0_PG and sregs.efer & EFER_LME else 0
    return _next_fetch(case, replace(sregs, cr0=value, efer=sregs.efer & ~EFER_LMA | active), f"cr0 becomes {value:#x}")


def _mov_cr3(case: Case) -> Raised | None:
    value = _source(case)
    reserved = MASK64 & -(1 << case.address_bits)
    if case.sregs.cr4 & CR4.PCIDE:
        reserved &= MASK64 >> 1  # bit 63 is no part of it then (SDM vol. 3, 4.10.4.1)
    if case.wide and value & reserved:
        return Raised(GP, 0, why=f"{value:#x} sets reserved bits of CR3")
    return _next_fetch(case, replace(case.sregs, cr3=value & MASK64 >> 1), f"cr3 becomes {value:#x}")


def _mov_cr4(case: Case) -> Raised | None:
    value, sregs = _source(case), case.sregs
    why = ""
    if value & ~CR4_KNOWN:
        why = f"{value:#x} sets bits that CR4 does not have: {value & ~CR4_KNOWN:#x}"
    elif not value & CR4_PAE and sregs.efer & EFER_LMA:
        why = "CR4.PAE cannot be cleared in long mode"
    elif value & CR4.PCIDE and not sregs.efer & EFER_LMA:
        why = "CR4.PCIDE needs long mode"
    else:
        why = f"CPUID does not announce all of {describe_flags(CR4, value & ~sregs.cr4)}"
    return Raised(GP, 0, why=why)


def _mov_cr8(case: Case) -> Raised | None:
    value = _source(case)
    return Raised(GP, 0, why=f"{value:#x} sets reserved bits of CR8") if value > 0xF else None


def _mov_dr(case: Case) -> Raised | None:
    number, value = case.instruction.operands.partition(",")[0][2:], _source(case)
    if number in ("6", "7") and value >> 32:
        return Raised(GP, 0, why=f"the upper half of DR{number} must be zero")
    return None


def _stack(case: Case) -> Raised | None:
    """What pushes or pops at an address that is not canonical (SDM vol. 3, 6.15, #SS)."""
    name = "rbp" if case.instruction.mnemonic == "leave" else "rsp"
    if case.wide and not is_canonical(case.value(name)):
        return Raised(SS, 0, why=f"{name.upper()}, {case.value(name):#x}, is no canonical address")
    return _memory_operand(case)


def _memory_operand(case: Case) -> Raised | None:
    mnemonic, operands, address = case.instruction.mnemonic, case.instruction.operands, case.address
    if address is None or mnemonic in ("lea", "nop"):
        return None
    if case.wide and not is_canonical(address) and re.search(r"\[(rsp|rbp)\b", operands):
        return Raised(SS, 0, why=f"{address:#x} is no canonical address")
    if "xmmword ptr" in operands and address % 16 and mnemonic[0] != "v" and mnemonic not in UNALIGNED:
        return Raised(GP, 0, why=f"the operand at {address:#x} is not aligned on 16 bytes")
    return None


def _next_fetch(case: Case, after: SystemRegisters, what: str) -> Raised | None:
    """With other tables the next instruction may lie nowhere: then the processor cannot go on."""
    if not after.cr0 & CR0_PG:
        return None
    found = walk(case.memory.read, after, case.behind, PageFault.FETCH)
    if found.gpa is not None:
        return None
    why = f"{what}, and by the tables at {after.cr3:#x} the next instruction is not mapped: {found.reason}"
    return Raised(PF, int(found.error_code or 0), case.behind, why)


def _no_such_register(case: Case) -> Raised:
    return Raised(UD, why=f"there is no {case.instruction.operands.partition(',')[0].upper()}")


def _ltr(case: Case) -> Raised | None:
    operand = case.instruction.operands
    if "[" in operand:
        return None
    selector = case.value(operand) & 0xFFFF
    table, at, width = case.sregs.gdt, selector & ~7, 16 if case.sregs.efer & EFER_LMA else 8
    if selector & ~3 == 0:
        return Raised(GP, 0, why="the task register takes no null selector")
    if selector & IN_LDT or at + width - 1 > table.limit:
        where = "in the local table" if selector & IN_LDT else f"beyond the GDT's limit {table.limit:#x}"
        return Raised(GP, selector & ~3, why=f"selector {selector:#x} is {where}")
    try:
        segment = decode_segment(case.memory.read_virtual(case.sregs, table.base + at, 8), selector)
    except MemoryAccessError:
        return None
    if segment.s or segment.type not in AVAILABLE_TSS:
        return Raised(GP, selector & ~3, why=f"selector {selector:#x} is no available task-state segment")
    if not segment.present:
        return Raised(NP, selector & ~3, why=f"the task-state segment of selector {selector:#x} is not present")
    return None


def _hypercall(case: Case) -> Raised:
    return Raised(UD, why=f"nobody answers {case.instruction.mnemonic} here")


RULES: dict[str, Callable[[Case], Raised | None]] = {
    "rdmsr": _rdmsr,
    "wrmsr": _wrmsr,
    "mov cr0": _mov_cr0,
    "mov cr3": _mov_cr3,
    "mov cr4": _mov_cr4,
    "mov cr8": _mov_cr8,
    "mov dr": _mov_dr,
    **dict.fromkeys(("push", "pop", "pushfq", "popfq", "call", "ret", "enter", "leave", "iretq"), _stack),
    **{f"mov cr{number}": _no_such_register for number in (1, 5, 6, 7, *range(9, 16))},
    "ltr": _ltr,
    "vmcall": _hypercall,
    "vmmcall": _hypercall,
}
