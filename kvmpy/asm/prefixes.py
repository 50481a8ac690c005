"""Prefixes that say how wide an instruction is and which segment it means (Intel SDM vol. 2, 2.1.1).

Keystone leaves out a segment that it takes for the default everywhere, and gives some instructions a width that nobody
asked for; Capstone's text shows neither. So what was written is compared with the bytes themselves, and put right.
"""

from __future__ import annotations

from kvmpy.asm.operands import LONG_ONLY, Immediate, Memory, Register
from kvmpy.asm.tokens import Misplaced
from kvmpy.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.asm.instruction import Instruction
    from kvmpy.asm.operands import Operand

SEGMENT_PREFIX = {"es": 0x26, "cs": 0x2E, "ss": 0x36, "ds": 0x3E, "fs": 0x64, "gs": 0x65}
OPERAND_SIZE = 0x66
LEGACY = frozenset((*SEGMENT_PREFIX.values(), OPERAND_SIZE, 0x67, 0xF0, 0xF2, 0xF3))
FRAME_REGISTERS = ("bp", "ebp", "rbp", "esp", "rsp")  # as a base they mean the stack segment (SDM vol. 1, 3.7.4)
NATIVE = {16: 2, 32: 4, 64: 8}  # bytes that a push moves, by the mode
OTHER = {16: 4, 32: 2, 64: 2}  # and with an operand-size prefix
# What moves something on the stack, or jumps there, and the bytes when its name says them.
STACK = {
    "jmp": 0, "call": 0, "push": 0, "pop": 0, "pushf": 0, "popf": 0, "pusha": 0, "popa": 0, "enter": 0, "leave": 0,
    "pushfw": 2, "popfw": 2, "pushfd": 4, "popfd": 4, "pushfq": 8, "popfq": 8, "pushaw": 2, "popaw": 2, "pushad": 4,
    "popad": 4, "pushal": 4, "popal": 4,
}  # fmt: skip
FAR = ("ljmp", "lcall")


def legacy_prefixes(code: bytes) -> bytes:
    """Return the prefixes that an instruction begins with, REX not among them."""
    length = next((at for at, byte in enumerate(code) if byte not in LEGACY), len(code))
    return code[:length]


def width_of(instruction: Instruction) -> int:
    """Return the bytes that an instruction moves on the stack or jumps by, as it is written; 0 when it does neither."""
    if instruction.mnemonic not in STACK:
        return 0
    width = STACK[instruction.mnemonic]
    if len(instruction.operands) == 1:
        operand = instruction.operands[0]
        width = operand.size if isinstance(operand, (Register, Memory, Immediate)) else 0
    width = width or NATIVE[instruction.bits]
    if width not in (NATIVE[instruction.bits], OTHER[instruction.bits]):
        one, other = sorted((NATIVE[instruction.bits], OTHER[instruction.bits]))
        text = f"{instruction.bits}-bit code moves {one} or {other} bytes here, not {width}"
        raise Misplaced(instruction.column, text)
    return width


def far_width(instruction: Instruction) -> int:
    """Return the bytes of the offset that a far jump or call takes from memory; 0 when it is none."""
    if instruction.mnemonic not in FAR or not isinstance(instruction.operands[0], Memory):
        return 0
    size = instruction.operands[0].size
    if size not in (0, 4, 6):
        raise Misplaced(instruction.column, "a far address is a dword (selector and word) or an fword (and dword)")
    return size - 2 if size else min(NATIVE[instruction.bits], 4)


def with_prefixes(instruction: Instruction, code: bytes) -> bytes:
    """Return the code with the operand-size and segment prefixes that the instruction is written with."""
    native = NATIVE[instruction.bits]
    if width := width_of(instruction):
        code = _with(code, OPERAND_SIZE, width != native)
    if offset := far_width(instruction):
        code = _with(code, OPERAND_SIZE, offset != min(native, 4))
    for operand in instruction.operands:
        if isinstance(operand, Memory) and operand.segment:
            code = _with(code, SEGMENT_PREFIX[operand.segment], operand.segment != default_segment(operand.base))
    return code


def _with(code: bytes, prefix: int, wanted: bool) -> bytes:
    prefixes = legacy_prefixes(code)
    if wanted == (prefix in prefixes):
        return code
    return bytes([prefix]) + code if wanted else prefixes.replace(bytes([prefix]), b"") + code[len(prefixes) :]


SIZE_OF_A_NUMBER = (
    "a size before a number says nothing here; leave it out, or give it to what lies in memory, as in 'word ptr [x]'"
)


def sized(instruction: Instruction, operand: Operand) -> Operand:
    """Return the operand of a push or pop with its size, which is the mode's own where none is said."""
    if instruction.mnemonic in ("push", "pop") and isinstance(operand, Memory) and not operand.size:
        return replace(operand, size=NATIVE[instruction.bits])
    return operand


def check_registers(instruction: Instruction) -> None:
    """Refuse a register that code of these bits does not have."""
    for operand in instruction.operands:
        if instruction.bits == 64 or not isinstance(operand, (Register, Memory)):
            continue
        for name in LONG_ONLY.intersection(operand.registers):
            column = operand.column if isinstance(operand, Memory) else 1
            raise Misplaced(column, f"{name} is a register of 64-bit code; write .code64 before it")


def check_sizes(instruction: Instruction) -> None:
    """Refuse a size before a number where it would say nothing: only a push has numbers of several sizes."""
    for operand in instruction.operands:
        if isinstance(operand, Immediate) and operand.size and instruction.mnemonic != "push":
            raise Misplaced(operand.column, SIZE_OF_A_NUMBER)


def default_segment(base: str) -> str:
    """Return the segment of an address that says none."""
    return "ss" if base in FRAME_REGISTERS else "ds"
