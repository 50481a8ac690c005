"""Assembly source, line by line: labels, directives, instructions; what each is, and what is wrong with it."""

from __future__ import annotations

from kvmpy.asm.expressions import Expression, Reader
from kvmpy.asm.instruction import PREFIXES, Instruction
from kvmpy.asm.operands import REGISTERS, SIZES, read_operands
from kvmpy.asm.prefixes import check_registers, check_sizes
from kvmpy.asm.tokens import Misplaced, Token, expected, strip_comments, text_of, tokens_of
from kvmpy.errors import AssemblyError
from kvmpy.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Item = TypeVar("Item")

SOURCE_LIMIT = 4 << 20
SPACE_LIMIT = 1 << 20
VALUE_LIMIT = 1 << 64
DATA = {"byte": 1, "word": 2, "short": 2, "long": 4, "int": 4, "quad": 8}
TEXT = ("ascii", "asciz", "string")
SPACE = ("space", "skip", "zero")
MODES = {"code16": 16, "code32": 32, "code64": 64}
CONSTANTS = ("equ", "set")
ALIGNMENTS = ("balign", "align")
DIRECTIVES = (*DATA, *TEXT, *SPACE, "fill", "org", *ALIGNMENTS, *CONSTANTS, *MODES)
NOP = b"\x90"


@record
class Data:
    """Bytes, and values that become bytes: (width, value)."""

    parts: list[bytes | tuple[int, Expression]]

    @property
    def size(self) -> int:
        """How many bytes they take."""
        return sum(len(part) if isinstance(part, bytes) else part[0] for part in self.parts)


@record
class Padding:
    """Bytes up to an address, or to a multiple of a number."""

    to: int
    multiple: bool

    def size(self, address: int) -> int:
        """How many bytes that takes from an address; negative if it is behind."""
        return -address % self.to if self.multiple else self.to - address


@record
class Equation:
    """A name for a value that depends on addresses."""

    name: str
    value: Expression


@record
class Statement:
    """One statement: the number of its line, its text, the mode it stands in, the labels before it, and what it is."""

    number: int
    text: str
    bits: int
    labels: list[str] = field(default_factory=list)
    item: Instruction | Data | Padding | Equation | None = None


class Source:
    """A parsed source: its statements and constants. AssemblyError names line and column of what is wrong."""

    def __init__(self, text: str, bits: int) -> None:
        self.bits = bits
        self.statements: list[Statement] = []
        self.constants: dict[str, int] = {}
        self._lines: dict[str, int] = {}  # where each name is defined
        if len(text) > SOURCE_LIMIT:
            raise AssemblyError(f"the source has {len(text)} characters; {SOURCE_LIMIT} is the most")
        waiting: list[str] = []
        lines = list(strip_comments(text))
        for number, line in enumerate(lines, 1):
            try:
                waiting = self._line(number, line, waiting)
            except Misplaced as error:
                raise located(error, number, line.strip()) from None
        self.statements.append(Statement(len(lines), "", self.bits, waiting))
        self._check_equations()

    def _line(self, number: int, line: str, labels: list[str]) -> list[str]:
        """Read a line; return the labels that wait for the next statement."""
        reader = Reader(tokens_of(line))
        while reader.next.kind == "name" and reader.behind().text == ":" and not _is_far(reader):
            labels = [*labels, self._name(reader.take(), number)]
            reader.take(":")
        first = reader.next
        if first.kind == "end":
            return labels
        text = line[first.column - 1 :].strip()
        if first.kind == "directive":
            return self._directive(number, text, reader, labels)
        if first.kind != "name":
            raise expected("a label, a directive or an instruction", first)
        if reader.behind().text.lower() == "equ":
            raise Misplaced(reader.behind().column, "write '.equ NAME, value'")
        self._add(number, text, labels, self._instruction(reader))
        return []

    def _instruction(self, reader: Reader) -> Instruction:
        first = reader.next
        words = [reader.take().text.lower()]
        while words[-1] in PREFIXES:
            if reader.next.kind != "name":
                raise expected(f"an instruction behind '{words[-1]}'", reader.next)
            words.append(reader.take().text.lower())
        if len(words) > 3 or len(set(words)) < len(words):
            raise Misplaced(first.column, "an instruction has two prefixes at most, and each once")
        if words[-1] in REGISTERS or words[-1] in SIZES or "_" in words[-1]:
            raise Misplaced(first.column, f"'{words[-1]}' is no instruction")
        instruction = Instruction(words, read_operands(reader, self.constants), self.bits, first.column)
        check_registers(instruction)
        check_sizes(instruction)
        return instruction

    def _name(self, token: Token, number: int) -> str:
        name = token.text
        if name in self._lines:
            raise Misplaced(token.column, f"{name!r} is defined already, in line {self._lines[name]}")
        if name.lower() in REGISTERS or name.lower() in SIZES:
            raise Misplaced(token.column, f"{name!r} is a register or a size; choose another name")
        self._lines[name] = number
        return name

    def _add(
        self, number: int, text: str, labels: list[str], item: Instruction | Data | Padding | Equation | None
    ) -> None:
        self.statements.append(Statement(number, text, self.bits, labels, item))

    # Directives

    def _directive(self, number: int, text: str, reader: Reader, labels: list[str]) -> list[str]:
        token = reader.take()
        name = token.text[1:].lower()
        if name in MODES:
            reader.end()
            self.bits = MODES[name]
            return labels
        if name in CONSTANTS:
            equation = self._constant(reader, number)
            if equation is None:
                return labels
            self._add(number, text, labels, equation)
            return []
        if name not in DIRECTIVES:
            raise Misplaced(token.column, f"directive .{name} is not known; there are .{', .'.join(DIRECTIVES)}")
        self._add(number, text, labels, self._data(name, reader))
        return []

    def _data(self, name: str, reader: Reader) -> Data | Padding:
        if name in TEXT:
            return Data([text + b"\0" * (name != "ascii") for text in self._list(reader, _text)])
        if name in DATA:
            return Data([(DATA[name], value) for value in self._list(reader, Reader.expression)])
        column = reader.next.column
        numbers = [self._known(value, column) for value in self._list(reader, Reader.expression)]
        if name == "org":
            return Padding(_one(numbers, column), multiple=False)
        if name in ALIGNMENTS:
            value = _one(numbers, column)
            if value <= 0 or value & value - 1 or value > SPACE_LIMIT:
                raise Misplaced(column, f"{value} is no power of two up to {SPACE_LIMIT}")
            return Padding(value, multiple=True)
        return _filled(name, numbers, column)

    def _list(self, reader: Reader, read: Callable[[Reader], Item]) -> list[Item]:
        """Read what is separated by commas, to the end of the line."""
        items = [read(reader)]
        while reader.takes(","):
            items.append(read(reader))
        reader.end()
        return items

    def _known(self, value: Expression, column: int) -> int:
        """Return the value of an expression that must be known here."""
        if not value.is_constant(self.constants):
            raise Misplaced(column, "expected numbers and earlier .equ names: this must be known before any address is")
        return value.evaluate(self.constants)

    def _constant(self, reader: Reader, number: int) -> Equation | None:
        token = reader.next
        if token.kind != "name":
            raise expected("a name", token)
        reader.take()
        reader.take(",")
        value = reader.expression()
        reader.end()
        name = self._name(token, number)
        if not value.is_constant(self.constants):
            return Equation(name, value)
        self.constants[name] = value.evaluate(self.constants)
        if not -VALUE_LIMIT < self.constants[name] < VALUE_LIMIT:
            raise Misplaced(token.column, f"the value of {name} takes more than 64 bits")
        return None

    def _check_equations(self) -> None:
        """Refuse names that are made of later ones: they could go round in a circle."""
        equations = [(s, s.item) for s in self.statements if isinstance(s.item, Equation)]
        later = {equation.name for _, equation in equations}
        for statement, equation in equations:
            for name in equation.value.names():
                if name.name in later or name.name not in self._lines:
                    error = Misplaced(name.column, f"'{name.name}' is not defined, or only later")
                    raise located(error, statement.number, statement.text)
            later.discard(equation.name)


def located(error: Misplaced, number: int, text: str) -> AssemblyError:
    """Return an error with its line and column."""
    return AssemblyError(f"line {number}, column {error.column}: {error}: {text[:200]}")


def _is_far(reader: Reader) -> bool:
    """Whether what looks like a label is a segment before an address: `fs:[0]` alone is no statement anyway."""
    return reader.next.text.lower() in REGISTERS and reader.behind(2).text == "["


def _text(reader: Reader) -> bytes:
    if reader.next.kind != "string":
        raise expected('a text in double quotes, "like this"', reader.next)
    return text_of(reader.take())


def _one(numbers: list[int], column: int) -> int:
    if len(numbers) != 1:
        raise Misplaced(column, f"expected one number, found {len(numbers)}")
    return numbers[0]


def _filled(name: str, numbers: list[int], column: int) -> Data:
    """`.fill COUNT, SIZE, VALUE`, `.space COUNT, VALUE`."""
    most = 3 if name == "fill" else 2
    if len(numbers) > most:
        raise Misplaced(column, f"expected {most} numbers at most, found {len(numbers)}")
    count = numbers[0]
    size = numbers[1] if name == "fill" and len(numbers) > 1 else 1
    value = numbers[-1] if len(numbers) == most else 0
    if not 0 <= size <= 8 or not 0 <= count * size <= SPACE_LIMIT or count < 0:
        raise Misplaced(column, f"{count} times {size} bytes: 0 to {SPACE_LIMIT} bytes can be")
    if not -(1 << 8 * size - 1) <= value < 1 << 8 * size if size else value:
        raise Misplaced(column, f"{value} does not fit in {size} bytes")
    return Data([(value % (1 << 8 * size)).to_bytes(size, "little") * count if size else b""])


def padding(size: int) -> bytes:
    """Return what fills a gap: instructions that do nothing."""
    return NOP * size
