"""Does the machine code say what the source says? Keystone can fail without a word, so Capstone reads every result.

Compared are the length, the mnemonic and every operand: registers, numbers, each part of an address, its segment and
its width. Capstone's own freedom is allowed for: `jz` is `je`, `imul eax, 5` is `imul eax, eax, 5`, string
instructions show what is implied.
"""

from __future__ import annotations

from typing import Any

from kvmpy.asm.disassembler import capstone_engine
from kvmpy.asm.instruction import Instruction
from kvmpy.asm.operands import Far, Immediate, Memory, Operand, Register
from kvmpy.asm.prefixes import (
    NATIVE,
    OPERAND_SIZE,
    SEGMENT_PREFIX,
    default_segment,
    far_width,
    legacy_prefixes,
    width_of,
)
from kvmpy.asm.special import CONDITIONS, is_condition
from kvmpy.errors import AssemblyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SAME = {
    "movabs": "mov", "sal": "shl", "fwait": "wait", "loopz": "loope", "loopnz":
    "loopne", "sysretq": "sysret", "sysretl": "sysret", "sysexitq": "sysexit", "pushaw": "pusha", "pushal": "pusha",
    "pushad": "pusha", "popaw": "popa", "popal": "popa", "popad": "popa", "pushfw": "pushf", "pushfd": "pushf",
    "pushfq": "pushf", "popfw": "popf", "popfd": "popf", "popfq": "popf", "iretd": "iret", "iretw": "iret",
    "iretq": "iret", "retfq": "retf", "lret": "retf", "retn": "ret", "icebp": "int1", "ud2a": "ud2", "xlat": "xlatb",
    "repz": "repe", "repnz": "repne",
}  # fmt: skip
# Instructions of a fixed width, whose width must be the mode's own unless the mnemonic says another one.
WIDTH_MATTERS = ("iret", "ret", "retf", "lgdt", "lidt", "sgdt", "sidt")
WIDTH_SUFFIX = {"iretd": 32, "iretq": 64, "iretw": 16}
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
    "ljmp",
    "lcall",
)
LEFT_OUT = ("st", "st(0)", "xmm0")  # registers that Capstone does not show where they are implied
# The bytes that these read of memory, where Capstone says others.
TRUE_SIZE = {"comiss": 4, "ucomiss": 4, "comisd": 8, "ucomisd": 8}
INDIRECT = 0xFF
PREDICATES = ("eq", "lt", "le", "unord", "neq", "nlt", "nle", "ord")  # of CMPPS and its like, by number
COMPARISONS = ("cmpps", "cmppd", "cmpss", "cmpsd")
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
    made = _mnemonic(found)
    if made == "nop" and instruction.mnemonic == "xchg" and _changes_nothing(instruction):
        return found
    if instruction.mnemonic in COMPARISONS and len(instruction.operands) == 3:
        instruction = _by_predicate(instruction, constants)
    if _canonical(instruction.mnemonic) != _canonical(made):
        raise _differs(found, "another instruction")
    _check_prefixes(instruction, found)
    if _canonical(instruction.mnemonic) in WIDTH_MATTERS:
        _check_width(instruction.mnemonic, found, instruction.bits)
    if made not in STRINGS:
        _compare(instruction, found, constants, places)
    return found


def _mnemonic(found: Any) -> str:
    """Return the mnemonic alone; a far jump or call by memory is FF /5 or /3, which Capstone names in two ways."""
    made: str = found.mnemonic.split()[-1]
    if found.opcode[0] == INDIRECT and found.modrm >> 3 & 7 in (3, 5):
        return "lcall" if found.modrm >> 3 & 7 == 3 else "ljmp"
    return made


def _by_predicate(instruction: Instruction, constants: Mapping[str, int]) -> Instruction:
    """Return a comparison as Capstone shows it: with the name of its predicate instead of the number."""
    number = instruction.operands[2]
    value = number.value.evaluate(constants) if isinstance(number, Immediate) else -1
    if not 0 <= value < len(PREDICATES):
        raise Mismatch("the last operand is a number from 0 to 7, the kind of comparison")
    name = f"cmp{PREDICATES[value]}{instruction.mnemonic[3:]}"
    return Instruction([*instruction.prefixes, name], instruction.operands[:2], instruction.bits, instruction.column)


def _check_prefixes(instruction: Instruction, found: Any) -> None:
    """Compare the width on the stack and the segment with the bytes; Capstone's text shows neither."""
    prefixes = legacy_prefixes(bytes(found.bytes))
    width = width_of(instruction)
    if width and (OPERAND_SIZE in prefixes) != (width != NATIVE[instruction.bits]):
        raise _differs(found, "another width")
    offset = far_width(instruction)
    if offset and (OPERAND_SIZE in prefixes) != (offset != min(NATIVE[instruction.bits], 4)):
        raise _differs(found, "another width")
    segments = [name for name, prefix in SEGMENT_PREFIX.items() if prefix in prefixes]
    memory = next((operand for operand in instruction.operands if isinstance(operand, Memory)), None)
    if memory is None or _mnemonic(found) in STRINGS:
        return
    bases = [found.reg_name(operand.mem.base) or "" for operand in found.operands if operand.type == MEMORY]
    made = segments[-1] if segments else default_segment(bases[0] if bases else memory.base)
    if made != (memory.segment or default_segment(memory.base)):
        raise _differs(found, "another segment")


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
    _, base, index = ("" if name in ("eiz", "riz") else name for name in names)
    wanted = [(operand.base, 1)] if operand.base else []
    wanted += [(operand.index, operand.scale)] if operand.index else []
    seen = [(base, 1)] if base else []
    seen += [(index, memory.scale)] if index else []
    if sorted(wanted) != sorted(seen):
        return False
    mnemonic = _mnemonic(found)
    size = TRUE_SIZE.get(mnemonic, made.size)
    if operand.size and size != operand.size and not mnemonic.startswith(WITHOUT_WIDTH):
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
