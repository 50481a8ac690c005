"""The operands of an instruction: registers, numbers, places in memory, far addresses."""

from __future__ import annotations

from kvmpy.asm.expressions import PRODUCT, Expression, Reader
from kvmpy.asm.tokens import Misplaced, Token, expected
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

GENERAL = ("ax", "bx", "cx", "dx", "si", "di", "sp", "bp")
HIGH_BYTES = ("ah", "bh", "ch", "dh")
NEED_REX = ("spl", "bpl", "sil", "dil")
NEW = tuple(f"r{n}" for n in range(8, 16))
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
SIZES = {
    "byte": 1, "word": 2, "dword": 4, "fword": 6, "qword": 8, "tbyte": 10, "xword": 10, "oword": 16, "xmmword": 16,
    "ymmword": 32,
}  # fmt: skip
# Every register by name, with its bytes; 0 where the width does not matter.
REGISTERS: dict[str, int] = {
    **dict.fromkeys(("al", "bl", "cl", "dl", *HIGH_BYTES, *NEED_REX), 1),
    **dict.fromkeys(GENERAL, 2),
    **{f"e{name}": 4 for name in GENERAL},
    **{f"r{name}": 8 for name in GENERAL},
    **{f"{name}{suffix}": size for name in NEW for suffix, size in (("", 8), ("d", 4), ("w", 2), ("b", 1))},
    **dict.fromkeys((*SEGMENTS, "rip", "eip", "ip", "st"), 0),
    **{f"{kind}{n}": 0 for kind in ("cr", "dr") for n in range(16)},
    **{f"mm{n}": 8 for n in range(8)},
    **{f"xmm{n}": 16 for n in range(16)},
    **{f"ymm{n}": 32 for n in range(16)},
}


# Those that only 64-bit code has (Intel SDM vol. 1, 3.4.1.1 and 10.2.2).
LONG_ONLY = {
    *(f"r{name}" for name in GENERAL), *(f"{name}{suffix}" for name in NEW for suffix in ("", "d", "w", "b")),
    *NEED_REX, "rip", *(f"{kind}{n}" for kind in ("cr", "dr", "xmm", "ymm") for n in range(8, 16)),
}  # fmt: skip
# Words of other assemblers, and what to write instead.
HINTS = {
    "short": "leave it out, a jump is as short as it can be",
    "near": "leave it out, a jump is as short as it can be",
    "far": "write 'selector:offset', or 'fword ptr [x]'",
    "offset": "leave it out, a name is its address",
    "rel": "write [rip + name]",
}


@record
class Register:
    """A register by name; st(1) and its like keep their number."""

    name: str

    @property
    def size(self) -> int:
        """Its bytes, 0 where the width does not matter."""
        return REGISTERS.get(self.name, 0)

    @property
    def registers(self) -> list[str]:
        """Itself, as memory has those of its address."""
        return [self.name]

    def __str__(self) -> str:
        return self.name


@record
class Immediate:
    """A number; `size` is what was written before it (push dword 5), or 0."""

    value: Expression
    size: int = 0
    column: int = 0


@record
class Far:
    """A selector and an offset, of a jump or call to another segment; `size` is the offset's, 0 for the mode's own."""

    selector: Expression
    offset: Expression
    size: int = 0


@record
class Memory:
    """A place in memory: [base + index*scale + displacement], with the size and the segment that were said."""

    size: int = 0
    segment: str = ""
    base: str = ""
    index: str = ""
    scale: int = 1
    displacement: Expression | None = None
    column: int = 0

    @property
    def registers(self) -> list[str]:
        """The registers that its address is made of."""
        return [name for name in (self.base, self.index) if name]


Operand = Register | Immediate | Far | Memory


def is_register(token: Token) -> bool:
    """Whether a token names a register."""
    return token.kind == "name" and token.text.lower() in REGISTERS


def read_operands(reader: Reader, constants: Mapping[str, int]) -> list[Operand]:
    """Read what follows a mnemonic, to the end of the line."""
    operands: list[Operand] = []
    if reader.next.kind == "end":
        return operands
    while True:
        operands.append(_operand(reader, constants))
        if not reader.takes(","):
            reader.end()
            return operands


def _operand(reader: Reader, constants: Mapping[str, int]) -> Operand:
    size, first = _size(reader), reader.next
    if first.text == "[" or (
        first.text.lower() in SEGMENTS and reader.behind().text == ":" and reader.behind(2).text == "["
    ):
        return _memory(reader, size, constants)
    if is_register(first):
        if size:
            raise Misplaced(first.column, f"'{first.text}' has its own size; leave out what stands before it")
        return _register(reader)
    if first.kind == "name" and reader.behind().kind not in ("end", "mark"):
        hint = HINTS.get(first.text.lower(), "expected an operand")
        raise Misplaced(first.column, f"'{first.text}' before {reader.behind()}: {hint}")
    value = reader.expression()
    if reader.takes(":"):
        return Far(value, reader.expression(), size)
    return Immediate(value, size, first.column)


def _size(reader: Reader) -> int:
    """Read `word ptr` and its like, or `word` alone; 0 when there is none."""
    token = reader.next
    if token.kind != "name" or token.text.lower() not in SIZES:
        return 0
    reader.take()
    if reader.next.text.lower() == "ptr":
        reader.take()
    if reader.next.kind == "end":
        raise expected("an operand", reader.next)
    return SIZES[token.text.lower()]


def _register(reader: Reader) -> Register:
    name = reader.take().text.lower()
    if name == "st" and reader.takes("("):
        number = reader.take()
        if number.text not in tuple("01234567"):
            raise expected("a number from 0 to 7", number)
        reader.take(")")
        return Register(f"st({number.text})")
    return Register(name)


def _memory(reader: Reader, size: int, constants: Mapping[str, int]) -> Memory:
    memory = Memory(size=size, column=reader.next.column)
    if reader.next.text != "[":
        memory.segment = reader.take().text.lower()
        reader.take(":")
    reader.take("[")
    if not memory.segment and reader.next.text.lower() in SEGMENTS and reader.behind().text == ":":
        memory.segment = reader.take().text.lower()
        reader.take(":")
    if reader.next.text.lower() in HINTS and reader.behind().kind == "name":
        raise Misplaced(reader.next.column, f"'{reader.next.text}': {HINTS[reader.next.text.lower()]}")
    sign = "+"
    while True:
        _term(reader, memory, sign, constants)
        if reader.next.text not in ("+", "-"):
            break
        sign = reader.take().text
    reader.take("]")
    return memory


def _term(reader: Reader, memory: Memory, sign: str, constants: Mapping[str, int]) -> None:
    """Read one summand of an address."""
    first = reader.next
    while reader.next.text in ("+", "-") and reader.next.kind == "mark":
        sign = "-" if (reader.take().text == "-") != (sign == "-") else "+"
    if is_register(reader.next):
        name = reader.take().text.lower()
        scale = _scale(reader, reader.expression(PRODUCT), constants) if reader.takes("*") else 0
    else:
        value = reader.expression(PRODUCT, stop=is_register)
        if not reader.takes("*"):
            _add(memory, sign, value, first)
            return
        name, scale = reader.take().text.lower(), _scale(reader, value, constants)
    if sign == "-":
        raise Misplaced(first.column, f"'{name}' cannot be subtracted")
    _place(memory, name, scale, first)


def _scale(reader: Reader, value: Expression, constants: Mapping[str, int]) -> int:
    if not value.is_constant(constants) or value.evaluate(constants) not in (1, 2, 4, 8):
        raise Misplaced(value.column or reader.next.column, "a register is taken 1, 2, 4 or 8 times")
    return value.evaluate(constants)


def _place(memory: Memory, name: str, scale: int, token: Token) -> None:
    if scale == 0 and not memory.base:
        memory.base = name
    elif not memory.index:
        memory.index, memory.scale = name, scale or 1
    elif scale == 1 and not memory.base:
        memory.base = name
    else:
        raise Misplaced(token.column, "an address has two registers at most, one of them with a factor")


def _add(memory: Memory, sign: str, value: Expression, token: Token) -> None:
    if sign == "-":
        value = Expression("-", column=token.column, parts=(value,))
    memory.displacement = (
        value
        if memory.displacement is None
        else Expression("+", column=token.column, parts=(memory.displacement, value))
    )
