"""Does the machine code say what the source says? Keystone can fail without a word, so Capstone reads every result.

Compared are the length, the mnemonic and every operand: registers, numbers, each part of an address, its segment and
its width. Capstone's own freedom is allowed for: `jz` is `je`, `imul eax, 5` is `imul eax, eax, 5`, string
instructions show what is implied.
"""

from __future__ import annotations

from typing import Any

from kvmpy.asm.disassembler import capstone_engine
from kvmpy.asm.operands import Far, Immediate, Memory, Operand, Register
from kvmpy.asm.special import CONDITIONS, is_condition
from kvmpy.errors import AssemblyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmpy.asm.instruction import Instruction

SAME = {
    "movabs": "mov", "sal": "shl", "fwait": "wait", "ljmp": "jmp", "lcall": "call", "loopz": "loope", "loopnz":
    "loopne", "sysretq": "sysret", "sysretl": "sysret", "sysexitq": "sysexit", "pushaw": "pusha", "pushal": "pusha",
    "pushad": "pusha", "popaw": "popa", "popal": "popa", "popad": "popa", "pushfw": "pushf", "pushfd": "pushf",
    "pushfq": "pushf", "popfw": "popf", "popfd": "popf", "popfq": "popf", "iretd": "iret", "iretw": "iret",
    "iretq": "iret", "retfq": "retf", "lret": "retf", "retn": "ret", "icebp": "int1", "ud2a": "ud2", "xlat": "xlatb",
    "repz": "repe", "repnz": "repne",
}  # fmt: skip
# Instructions of a fixed width, whose width must be the mode's own unless the mnemonic says another one.
WIDTH_MATTERS = ("iret", "ret", "retf", "call", "pushf", "popf", "lgdt", "lidt", "sgdt", "sidt")
WIDTH_SUFFIX = {"iretd": 32, "iretq": 64, "iretw": 16, "pushfd": 32, "popfd": 32, "pushfw": 16, "popfw": 16}
EITHER_ORDER = ("xchg", "test")
STRINGS = frozenset(
    f"{kind}{size}" for kind in ("ins", "outs", "movs", "stos", "lods", "scas", "cmps") for size in "bwdq"
)
# What has a width of its own, whatever is written before its operand.
WITHOUT_WIDTH = (
    "lea",
    "lgdt",
    "lidt",
    "sgdt",
    "sidt",
    "invlpg",
    "clflush",
    "prefetch",
    "fxsave",
    "fxrstor",
    "xsave",
    "xrstor",
)
LEFT_OUT = ("st", "st(0)", "xmm0")  # registers that Capstone does not show where they are implied
OPERAND_SIZE = 0x66
REGISTER, IMMEDIATE, MEMORY = 1, 2, 3  # X86_OP_*


class Mismatch(AssemblyError):
    """The code is not what the source says."""


def read_back(code: bytes, bits: int, address: int = 0) -> Any:
    """Return what Capstone reads in code that must be one instruction."""
    found = next(capstone_engine(bits, detail=True).disasm(code, address, 1), None)
    if found is None or found.size != len(code):
        raise Mismatch(f"the assembler made {code.hex(' ')} of it, which is no single instruction")
    return found


def check(instruction: Instruction, code: bytes, constants: Mapping[str, int], places: Mapping[int, int]) -> Any:
    """Compare an instruction with its code, and return what Capstone read; Mismatch tells how they differ."""
    found = read_back(code, instruction.bits)
    made = found.mnemonic.split()[-1]
    if made == "nop" and instruction.mnemonic == "xchg" and _changes_nothing(instruction):
        return found
    if _canonical(instruction.mnemonic) != _canonical(made):
        raise _differs(found, "another instruction")
    if _canonical(instruction.mnemonic) in WIDTH_MATTERS:
        _check_width(instruction.mnemonic, found, instruction.bits)
    if made not in STRINGS:
        _compare(instruction, found, constants, places)
    return found


def _changes_nothing(instruction: Instruction) -> bool:
    """Whether an exchange is one of a register with itself; of EAX in 64-bit code it clears the upper half."""
    names = {str(operand) for operand in instruction.operands}
    return len(names) == 1 and not (instruction.bits == 64 and names == {"eax"})


def _canonical(mnemonic: str) -> str:
    match = is_condition(mnemonic)
    if match and match[2] in CONDITIONS:
        return f"{match[1]}{CONDITIONS[match[2]]}"
    return SAME.get(mnemonic, mnemonic)


def _check_width(mnemonic: str, found: Any, bits: int) -> None:
    has_prefix = OPERAND_SIZE in found.prefix
    wanted = WIDTH_SUFFIX.get(mnemonic, bits)
    made = {16: 32, 32: 16, 64: 16}[bits] if has_prefix else bits
    if bits == 64 and mnemonic == "iret":
        raise Mismatch("in 64-bit code say iretq or iretd")
    if made != wanted and not (bits == 64 and wanted in (32, 64) and not has_prefix):
        raise Mismatch(f"the assembler made it {made} bits wide ({bytes(found.bytes).hex(' ')}); write it as .byte")


def _compare(instruction: Instruction, found: Any, constants: Mapping[str, int], places: Mapping[int, int]) -> None:
    """Compare the operands in order; what Capstone shows besides is implied: a register, or a shift by 1."""
    left = list(found.operands)
    wanted = list(instruction.operands)
    if (
        instruction.mnemonic in EITHER_ORDER
        and len(wanted) == len(left) == 2
        and not _same(wanted[0], left[0], found, constants, places)
    ):
        left.reverse()
    for operand in wanted:
        at = next((n for n, made in enumerate(left) if _same(operand, made, found, constants, places)), None)
        if at is None:
            if isinstance(operand, Register) and operand.name in LEFT_OUT:
                continue
            raise _differs(found, f"{_told(operand)} is not in it")
        _check_implied(left[:at], found)
        del left[: at + 1]
    _check_implied(left, found)


def _check_implied(operands: list[Any], found: Any) -> None:
    """Refuse operands that the source does not have, unless they are what an instruction implies."""
    for operand in operands:
        if operand.type == MEMORY or (operand.type == IMMEDIATE and operand.imm != 1):
            raise _differs(found, "more operands")


def _same(operand: Operand, made: Any, found: Any, constants: Mapping[str, int], places: Mapping[int, int]) -> bool:
    if isinstance(operand, Register):
        name = {"st": "st(0)"}.get(operand.name, operand.name)
        return bool(made.type == REGISTER and found.reg_name(made.reg) == name)
    if isinstance(operand, Immediate):
        value = places.get(id(operand.value))
        value = operand.value.evaluate(constants) if value is None else value
        size = made.size or 8  # Capstone does not tell it of every number
        return bool(made.type == IMMEDIATE and _fits(value, size) and _equal(made.imm, value, size))
    if isinstance(operand, Memory):
        return made.type == MEMORY and _same_address(operand, made, found, constants, places)
    return isinstance(operand, Far)


def _same_address(
    operand: Memory, made: Any, found: Any, constants: Mapping[str, int], places: Mapping[int, int]
) -> bool:
    memory = made.mem
    names = [found.reg_name(reg) or "" if reg else "" for reg in (memory.segment, memory.base, memory.index)]
    segment, base, index = ("" if name in ("eiz", "riz") else name for name in names)
    if segment != operand.segment and not (segment == "" and operand.segment in ("ds", "ss", "es", "cs")):
        return False
    wanted = [(operand.base, 1)] if operand.base else []
    wanted += [(operand.index, operand.scale)] if operand.index else []
    seen = [(base, 1)] if base else []
    seen += [(index, memory.scale)] if index else []
    if sorted(wanted) != sorted(seen):
        return False
    if operand.size and made.size != operand.size and not found.mnemonic.startswith(WITHOUT_WIDTH):
        return False
    value = 0
    if operand.displacement is not None:
        known = places.get(id(operand.displacement))
        value = operand.displacement.evaluate(constants) if known is None else known
    return _equal(memory.disp, value, found.addr_size)


def _equal(made: int, wanted: int, size: int) -> bool:
    return (made - wanted) % (1 << 8 * size) == 0


def _fits(value: int, size: int) -> bool:
    return -(1 << 8 * size - 1) <= value < 1 << 8 * size


def _told(operand: Operand) -> str:
    if isinstance(operand, Register):
        return operand.name
    return "the address" if isinstance(operand, Memory) else "the number"


def _differs(found: Any, what: str) -> Mismatch:
    made = f"{found.mnemonic} {found.op_str}".rstrip()
    return Mismatch(f"the assembler made '{made}' ({bytes(found.bytes).hex(' ')}) of it: {what}")
