"""A parsed instruction, and what it is encoded to: bytes, and the fields that wait for an address."""

from __future__ import annotations

from kvmpy.asm.operands import Far, Immediate, Memory
from kvmpy.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.asm.expressions import Expression
    from kvmpy.asm.operands import Operand


FAR_SIZES = {16: (4, 6), 32: (6,), 64: (6,)}  # of what is no address by itself, but one with its selector
PREFIXES = ("rep", "repe", "repz", "repne", "repnz", "lock")


@record
class Field:
    """Where a value goes: offset and width in bytes, the width it is extended to, and whether it counts from the end.

    `relative` is "": the value itself, "ip": its distance from the end of the instruction.
    """

    offset: int
    size: int
    value: Expression
    extended: int
    relative: str = ""

    def fits(self, value: int) -> bool:
        """Whether a value can be put in without a change."""
        bits = 8 * self.size
        if self.relative or self.extended > self.size:
            return -(1 << bits - 1) <= value < 1 << bits - 1
        return -(1 << bits - 1) <= value < 1 << bits


@record
class Encoded:
    """An instruction's bytes, and its fields."""

    code: bytes
    fields: list[Field]

    def behind(self, prefix: bytes) -> Encoded:
        """Return the same with prefixes before it."""
        fields = [replace(field, offset=field.offset + len(prefix)) for field in self.fields]
        return Encoded(prefix + self.code, fields)


class Instruction:
    """A parsed instruction: prefixes, mnemonic, operands; `column` is the mnemonic's."""

    def __init__(self, words: list[str], operands: list[Operand], bits: int, column: int) -> None:
        self.prefixes, self.mnemonic = words[:-1], words[-1]
        self.operands = operands
        first = operands[0] if operands else None
        if self.mnemonic in ("jmp", "call") and isinstance(first, Memory) and first.size in FAR_SIZES[bits]:
            self.mnemonic = f"l{self.mnemonic}"  # selector and offset: a far one
        self.bits = bits
        self.column = column

    def values(self) -> list[Expression]:
        """Return every expression in its operands."""
        found = []
        for operand in self.operands:
            if isinstance(operand, Immediate):
                found.append(operand.value)
            elif isinstance(operand, Memory) and operand.displacement is not None:
                found.append(operand.displacement)
            elif isinstance(operand, Far):
                found += [operand.selector, operand.offset]
        return found
