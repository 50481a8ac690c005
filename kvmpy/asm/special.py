"""Instructions that we encode ourselves: branches, whose length depends on the distance, and what Keystone gets wrong.

Some come out of it in another size than they say (a 16-bit CALL as a 32-bit one), some it does not know in this form
(far jumps to `selector:offset`). The encodings are those of the Intel SDM vol. 2.
"""

from __future__ import annotations

import re

from kvmpy.asm.instruction import Encoded, Field
from kvmpy.asm.operands import Far, Immediate
from kvmpy.asm.prefixes import width_of, with_prefixes
from kvmpy.asm.tokens import Misplaced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmpy.asm.expressions import Expression
    from kvmpy.asm.instruction import Instruction

CONDITIONS = {
    name: number
    for number, names in enumerate(
        ("o", "no", "b c nae", "ae nb nc", "e z", "ne nz", "be na", "a nbe",
         "s", "ns", "p pe", "np po", "l nge", "ge nl", "le ng", "g nle")
    )
    for name in names.split()
}  # fmt: skip
LOOPS = {"loopne": 0xE0, "loopnz": 0xE0, "loope": 0xE1, "loopz": 0xE1, "loop": 0xE2}
COUNTERS = {"jcxz": 16, "jecxz": 32, "jrcxz": 64}
FAR_OPCODE = {"jmp": 0xEA, "ljmp": 0xEA, "call": 0x9A, "lcall": 0x9A}
# Without operands, by mode: what is meant, where Keystone makes another size of it or does not know it.
FIXED = {
    16: {"ret": "c3", "retn": "c3", "retf": "cb", "iretw": "cf", "movsd": "66a5", "cbw": "98", "cwde": "6698",
        "cwd": "99", "cdq": "6699", "endbr32": "f30f1efb"},
    32: {"iret": "cf", "iretw": "66cf", "movsd": "a5", "endbr32": "f30f1efb"},
    64: {"sysretq": "480f07", "sysretl": "0f07", "sysexitq": "480f35", "iretw": "66cf", "movsd": "a5",
        "endbr64": "f30f1efa"},
}  # fmt: skip
# In every mode: other names, and what has a number that may be left out.
EVERYWHERE = {
    "pushf": "9c", "popf": "9d", "pushfw": "9c", "popfw": "9d", "pushfd": "9c", "popfd": "9d", "pushfq": "9c",
    "popfq": "9d", "xlat": "d7", "lret": "cb",
}  # fmt: skip
ADJUST = {"aam": b"\xd4", "aad": b"\xd5"}  # by ten, if nothing else is said; not in 64-bit code
RETURNS = {"ret": b"\xc2", "retn": b"\xc2", "retf": b"\xca"}


class Branch:
    """A jump or call to an address nearby: its short form, if it has one, and its near form, if it has one."""

    def __init__(self, short: bytes, near: bytes, size: int, target: Expression, column: int) -> None:
        self.short, self.near = short, near
        self.size = size
        self.target = target
        self.column = column


def branch(instruction: Instruction) -> Branch | None:
    """Return the forms of a branch to an address, None if it is none: its operand is no plain value."""
    mnemonic, bits = instruction.mnemonic, instruction.bits
    if len(instruction.operands) != 1 or instruction.prefixes:
        return None
    operand = instruction.operands[0]
    if not isinstance(operand, Immediate):
        return None
    size, column = 2 if bits == 16 else 4, instruction.column
    if mnemonic == "jmp":
        return Branch(b"\xeb", b"\xe9", size, operand.value, column)
    if mnemonic == "call":
        return Branch(b"", b"\xe8", size, operand.value, column)
    if mnemonic in LOOPS:
        return Branch(bytes([LOOPS[mnemonic]]), b"", size, operand.value, column)
    if mnemonic in COUNTERS:
        return Branch(_counter(mnemonic, bits, column) + b"\xe3", b"", size, operand.value, column)
    condition = CONDITIONS.get(mnemonic[1:]) if mnemonic[0] == "j" else None
    if condition is None:
        return None
    return Branch(bytes([0x70 | condition]), bytes([0x0F, 0x80 | condition]), size, operand.value, column)


def _counter(mnemonic: str, bits: int, column: int) -> bytes:
    """Return the prefix with which the mode has this counter (Intel SDM vol. 2, Jcc)."""
    wanted = COUNTERS[mnemonic]
    if wanted == bits:
        return b""
    if (bits, wanted) in ((16, 32), (32, 16), (64, 32)):
        return b"\x67"
    raise Misplaced(column, f"{bits}-bit code has no {mnemonic}")


def special(instruction: Instruction, constants: Mapping[str, int]) -> Encoded | None:
    """Return the encoding of an instruction that Keystone must not see, None for all others."""
    mnemonic, bits, operands = instruction.mnemonic, instruction.bits, instruction.operands
    for operand in operands:
        if isinstance(operand, Far):
            return _far(instruction, operand)
    if not operands:
        return _fixed(instruction)
    first = operands[0]
    if mnemonic == "enter" and len(operands) == 2 and isinstance(first, Immediate):
        level = operands[1]
        if isinstance(level, Immediate):
            return Encoded(b"\xc8" + bytes(3), [Field(1, 2, first.value, 2), Field(3, 1, level.value, 1)])
    if len(operands) != 1:
        return None
    if isinstance(first, Immediate) and mnemonic in RETURNS:  # Keystone never returns from a number that is too large
        return _with_value(RETURNS[mnemonic], 2, first.value)
    if isinstance(first, Immediate) and mnemonic == "push":
        return _push(instruction, first, constants)
    if isinstance(first, Immediate) and mnemonic in ADJUST and bits != 64:
        return _with_value(ADJUST[mnemonic], 1, first.value)
    return None


def _fixed(instruction: Instruction) -> Encoded | None:
    mnemonic, bits = instruction.mnemonic, instruction.bits
    if mnemonic in ADJUST and bits != 64:
        return Encoded(ADJUST[mnemonic] + b"\x0a", [])
    fixed = FIXED[bits].get(mnemonic, EVERYWHERE.get(mnemonic))
    return Encoded(with_prefixes(instruction, bytes.fromhex(fixed)), []) if fixed else None


def _push(instruction: Instruction, operand: Immediate, constants: Mapping[str, int]) -> Encoded:
    """Return a push of a number: one byte is enough where its sign, extended, gives the number (SDM vol. 2, PUSH)."""
    width = width_of(instruction)
    prefix = with_prefixes(instruction, b"")
    if operand.value.is_constant(constants):
        value = operand.value.evaluate(constants)
        if not -(1 << 8 * width - 1) <= value < 1 << 8 * width:
            raise Misplaced(operand.column, f"{value:#x} does not fit in {width} byte{'s' * (width > 1)}")
        signed = (value + (1 << 8 * width - 1)) % (1 << 8 * width) - (1 << 8 * width - 1)
        if -0x80 <= signed < 0x80:
            return Encoded(prefix + b"\x6a" + (signed & 0xFF).to_bytes(1, "little"), [])
        if width == 8 and not -(1 << 31) <= signed < 1 << 31:
            text = f"a push takes 4 bytes and extends their sign, which is not {value:#x}; push a register with it"
            raise Misplaced(operand.column, text)
        size = min(width, 4)
        return Encoded(prefix + b"\x68" + (signed % (1 << 8 * size)).to_bytes(size, "little"), [])
    size = min(width, 4)
    return Encoded(prefix + b"\x68" + bytes(size), [Field(len(prefix) + 1, size, operand.value, width)])


def _with_value(opcode: bytes, size: int, value: Expression) -> Encoded:
    return Encoded(opcode + bytes(size), [Field(len(opcode), size, value, size)])


def _far(instruction: Instruction, operand: Far) -> Encoded:
    mnemonic, bits = instruction.mnemonic, instruction.bits
    if mnemonic not in FAR_OPCODE or len(instruction.operands) != 1:
        raise Misplaced(instruction.column, "only jmp and call take 'selector:offset'")
    if bits == 64:
        raise Misplaced(instruction.column, "64-bit code has no far jump or call to an immediate address; use retfq")
    size = operand.size or (4 if bits == 32 else 2)
    if size not in (2, 4):
        raise Misplaced(instruction.column, "the offset is a word or a dword")
    prefix = b"\x66" if (size == 4) != (bits == 32) else b""
    code = prefix + bytes([FAR_OPCODE[mnemonic]])
    fields = [Field(len(code), size, operand.offset, size), Field(len(code) + size, 2, operand.selector, 2)]
    return Encoded(code + bytes(size + 2), fields)


def is_condition(mnemonic: str) -> re.Match[str] | None:
    """Return the match of a mnemonic that ends in a condition: its kind, and the condition."""
    return re.fullmatch(r"(j|set|cmov)(\w+)", mnemonic)
