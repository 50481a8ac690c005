"""One instruction to machine code: Keystone, one at a time, in text that our own parser wrote.

What is not known yet, the value of a label, is a field: it is encoded with a placeholder, and put in when all addresses
are known. Capstone reads every result, and tells where the fields are.
"""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

from kvmpy.asm.check import STRINGS, Mismatch, check, read_back
from kvmpy.asm.instruction import Encoded, Field, Instruction
from kvmpy.asm.operands import HIGH_BYTES, NEED_REX, NEW, Far, Immediate, Memory, Operand, Register
from kvmpy.asm.prefixes import sized, with_prefixes
from kvmpy.asm.special import special
from kvmpy.asm.tokens import Misplaced
from kvmpy.packages import package

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmpy.asm.expressions import Expression

# Placeholders by the width of their field; none has a sign bit, and none fits a narrower field.
PLACEHOLDERS = {1: 0x5A, 2: 0x1122, 4: 0x11223344, 8: 0x1122334455667788}
SIZE_NAMES = {
    1: "byte", 2: "word", 4: "dword", 6: "fword", 8: "qword", 10: "tbyte", 16: "xmmword", 32: "ymmword",
}  # fmt: skip
# What may be locked, with memory for its destination (Intel SDM vol. 2, LOCK).
LOCKABLE = (
    "adc", "add", "and", "btc", "btr", "bts", "cmpxchg", "cmpxchg8b", "cmpxchg16b", "dec", "inc", "neg", "not", "or",
    "sbb", "sub", "xadd", "xchg", "xor",
)  # fmt: skip
TABLES = ("lgdt", "lidt", "sgdt", "sidt")


def width_of(place: int) -> int:
    """Return the width of the field that a placeholder is for."""
    return next(width for width, least in sorted(PLACEHOLDERS.items(), reverse=True) if place >= least)


PREFIX_BYTES = {
    "rep": b"\xf3", "repe": b"\xf3", "repz": b"\xf3", "repne": b"\xf2", "repnz": b"\xf2", "lock": b"\xf0",
}  # fmt: skip
_WIDE = frozenset({"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"})


def encode(instruction: Instruction, constants: Mapping[str, int], least: int = 1) -> Encoded:
    """Return its code, with fields at least `least` bytes wide if they can be; Misplaced when there is none."""
    _check_prefixes(instruction)
    _check_high_bytes(instruction)
    made = special(instruction, constants) or _by_keystone(instruction, constants, least)
    prefix = b"".join(PREFIX_BYTES[prefix] for prefix in instruction.prefixes)
    return made.behind(prefix) if prefix else made


def _by_keystone(instruction: Instruction, constants: Mapping[str, int], least: int) -> Encoded:
    """Try the widths that the unknown values may have; the first failure is the one to tell."""
    unknown = [
        value for value in instruction.values() if not value.is_constant(constants) or _is_absolute(instruction, value)
    ]
    failure: Misplaced | None = None
    for widths in product(*(_widths(instruction, value, least) for value in unknown)):
        places = {
            id(value): PLACEHOLDERS[width] + n for n, (value, width) in enumerate(zip(unknown, widths, strict=True))
        }
        try:
            return _encoded(instruction, _text(instruction, constants, places), constants, places)
        except Misplaced as error:
            failure = failure or error
    raise failure or Misplaced(instruction.column, "this cannot be encoded with an address in it")


def _check_prefixes(instruction: Instruction) -> None:
    """Refuse prefixes where they mean nothing or #UD (Intel SDM vol. 2, LOCK, REP), and operands that are ignored."""
    name = instruction.mnemonic
    is_string = name in STRINGS and not any(isinstance(o, Register) and o.size >= 16 for o in instruction.operands)
    if is_string and instruction.operands:
        raise Misplaced(instruction.column, f"'{name}' takes no operands here: its addresses are (E/R)SI and (E/R)DI")
    for prefix in instruction.prefixes:
        if prefix == "lock" and (name not in LOCKABLE or not _writes_memory(instruction)):
            raise Misplaced(instruction.column, f"'{name}' cannot be locked; only what reads and writes memory can")
        if prefix != "lock" and not is_string and name != "ret":
            raise Misplaced(instruction.column, f"'{name}' cannot be repeated; only string instructions can")


def _writes_memory(instruction: Instruction) -> bool:
    """Whether the destination is memory; XCHG has two, in either order."""
    operands = instruction.operands if instruction.mnemonic == "xchg" else instruction.operands[:1]
    return any(isinstance(operand, Memory) for operand in operands)


def _check_high_bytes(instruction: Instruction) -> None:
    """Refuse AH, BH, CH or DH beside what needs a REX prefix, which makes them other registers (SDM vol. 2, 3.7.2.1).

    Keystone ends the process over it.
    """
    names = [o.name for o in instruction.operands if isinstance(o, Register)]
    high = [name for name in names if name in HIGH_BYTES]
    needs = [name for name in names if name in NEED_REX or name in _WIDE]
    needs += [name for name in (*names, *_addresses(instruction.operands)) if name.rstrip("dwb") in NEW]
    if high and needs:
        raise Misplaced(instruction.column, f"{high[0]} cannot be used beside {needs[0]}, which needs a REX prefix")


def _text(instruction: Instruction, constants: Mapping[str, int], places: Mapping[int, int]) -> str:
    """Return the instruction as Keystone gets it."""

    def number(value: Expression) -> str:
        known = places.get(id(value))
        result = value.evaluate(constants) if known is None else known
        if not -(1 << 63) <= result < 1 << 64:
            raise Misplaced(value.column or instruction.column, "a value takes more than 64 bits")
        return f"-{-result:#x}" if result < 0 else f"{result:#x}"

    shown = [_shown(sized(instruction, operand), number) for operand in instruction.operands]
    return f"{instruction.mnemonic} {', '.join(shown)}".rstrip()


def _encoded(instruction: Instruction, text: str, constants: Mapping[str, int], places: Mapping[int, int]) -> Encoded:
    code = keystone(instruction.bits, text)
    if isinstance(code, str):
        raise Misplaced(instruction.column, code)
    try:
        code = _mended(instruction, code, places)
        found = check(instruction, code, constants, places)
    except Mismatch as error:
        raise Misplaced(instruction.column, f"{error}; write its bytes with .byte") from None
    return Encoded(
        code, [_field(instruction, value, found, places) for value in instruction.values() if id(value) in places]
    )


def _field(instruction: Instruction, value: Expression, found: Any, places: Mapping[int, int]) -> Field:
    """Find where Capstone saw a placeholder."""
    encoding, place = found.encoding, places[id(value)]
    for operand in instruction.operands:
        if isinstance(operand, Immediate) and operand.value is value:
            size = max((o.size for o in found.operands if o.type == 2 and o.imm == place), default=0)
            return Field(encoding.imm_offset, encoding.imm_size, value, size)
        if isinstance(operand, Memory) and operand.displacement is value:
            relative = "ip" if operand.base in ("rip", "eip") else ""
            size = max(encoding.disp_size, width_of(place))  # behind an operand-size prefix Capstone says 2 for 4
            return Field(encoding.disp_offset, size, value, found.addr_size, relative)
    raise AssertionError("a value without a place")


def _addresses(operands: list[Operand]) -> set[str]:
    return {name for operand in operands if isinstance(operand, Memory) for name in operand.registers}


def _shown(operand: Operand, number: Any) -> str:
    if isinstance(operand, Register):
        return operand.name
    if isinstance(operand, Immediate):
        return f"{SIZE_NAMES[operand.size]} ptr {number(operand.value)}" if operand.size else str(number(operand.value))
    if isinstance(operand, Far):
        raise AssertionError("a far address has an encoding of its own")
    parts = [operand.base] if operand.base else []
    if operand.index:
        parts.append(f"{operand.index}*{operand.scale}" if operand.scale > 1 or not operand.base else operand.index)
    if operand.displacement is not None:
        parts.append(number(operand.displacement))
    inside = " + ".join(parts).replace("+ -", "- ")
    if not parts:
        raise Misplaced(operand.column, "expected an address in the brackets")
    size = f"{SIZE_NAMES[operand.size]} ptr " if operand.size and operand.size != 6 else ""
    return f"{size}{operand.segment}{':' if operand.segment else ''}[{inside}]"


def _widths(instruction: Instruction, value: Expression, least: int) -> list[int]:
    """Return the widths to try for the field of a value, the likely first: the operands allow some, and take one."""
    usual = 2 if instruction.bits == 16 else 4
    for operand in instruction.operands:
        if isinstance(operand, Memory) and operand.displacement is value:
            usual = 4 if any(name[0] in "er" for name in operand.registers) else usual
            break
    else:
        sizes = [o.size for o in instruction.operands if isinstance(o, (Register, Memory)) and o.size]
        usual = min(sizes[0], 4) if sizes and sizes[0] in (1, 2, 4, 8) else usual
    order = [usual, *[width for width in (4, 2, 1, 8) if width != usual]]
    return [width for width in order if width >= least]


def _is_absolute(instruction: Instruction, value: Expression) -> bool:
    """Whether a value is an address without registers in 64-bit code, which has a form of its own."""
    return instruction.bits == 64 and any(
        isinstance(operand, Memory) and operand.displacement is value and not operand.registers
        for operand in instruction.operands
    )


def _mended(instruction: Instruction, code: bytes, places: Mapping[int, int]) -> bytes:
    """Undo Keystone's liberties, those with prefixes besides (prefixes.py).

    In 32-bit code it spoils LGDT and its like with an operand-size prefix. In 64-bit code it counts an address without
    registers from RIP, where nobody knows yet what that will be; ModRM 100 with SIB 0x25 is the address itself (Intel
    SDM vol. 2, 2.2.1.6).
    """
    if instruction.bits == 32 and instruction.mnemonic in TABLES and code[:1] == b"\x66":
        code = code[1:]
    absolute = [value for value in instruction.values() if _is_absolute(instruction, value)]
    if absolute:
        encoding = read_back(code, instruction.bits).encoding
        modrm, at = encoding.modrm_offset, encoding.disp_offset
        if modrm and code[modrm] & 0xC7 == 0x05:
            form = bytes((code[modrm] & 0xF8 | 0x04, 0x25))
            code = code[:modrm] + form + places[id(absolute[0])].to_bytes(4, "little") + code[at + 4 :]
    return with_prefixes(instruction, code)


@functools.lru_cache(maxsize=4096)
def keystone(bits: int, text: str) -> bytes | str:
    """Return the code of one canonical instruction that lies at 0, or Keystone's complaint in plain words."""
    ks = package("keystone")
    try:
        encoded, _ = _engine(bits).asm(text, 0, as_bytes=True)
    except ks.KsError as error:
        return _plain(str(error.message))
    return bytes(encoded) if encoded else "this cannot be encoded; say the operand's width, as in 'byte ptr [x]'"


@functools.cache
def _engine(bits: int) -> Any:
    ks = package("keystone")
    return ks.Ks(ks.KS_ARCH_X86, {16: ks.KS_MODE_16, 32: ks.KS_MODE_32, 64: ks.KS_MODE_64}[bits])


def _plain(complaint: str) -> str:
    words = complaint.split(" (KS_ERR")[0].lower()
    return {
        "missing cpu feature": "there is no such instruction in this mode",
        "invalid mnemonic": "there is no such instruction here; write its bytes with .byte if the processor has it "
        "(directives begin with a dot: .org, .byte, .code32)",
        "invalid operand": "these operands do not go with this instruction",
    }.get(words, words)
