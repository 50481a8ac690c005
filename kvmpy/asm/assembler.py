"""Assembly text to machine code: our own parser and layout, Keystone for each instruction by itself.

Every statement gets an address, with all branches short; where a value turns out not to fit, its instruction grows, and
all are placed again. As nothing ever shrinks, that ends.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import contextmanager
from threading import Lock

from kvmpy.asm.check import Mismatch, read_back
from kvmpy.asm.encode import encode
from kvmpy.asm.instruction import Instruction
from kvmpy.asm.source import SPACE_LIMIT, Data, Equation, Padding, Source, Statement, located, padding
from kvmpy.asm.special import Branch, branch
from kvmpy.asm.tokens import Misplaced
from kvmpy.errors import AssemblyError, ConfigError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.asm.expressions import Expression
    from kvmpy.asm.instruction import Encoded, Field

ONE_AT_A_TIME = Lock()  # the engines of Keystone and Capstone are shared by all threads
MODE_SIZES = (16, 32, 64)
ADDRESS_LIMIT = 1 << 63
CODE_LIMIT = 64 << 20


@record
class Line:
    """A statement's place: its address, its bytes, the number of its line in the source, and its text."""

    address: int
    raw: bytes
    number: int
    text: str


@record
class Span:
    """A run of addresses, `end` exclusive, that holds code of 16, 32 or 64 bits, or data (`bits` 0)."""

    start: int
    end: int
    bits: int


@record
class Assembly:
    """The result: the bytes, labels and .equ constants by name, each statement's place, and what is code or data.

    >>> assembly = assemble(".equ PORT, 0x10\\nstart: out PORT, al\\nhlt", bits=16, origin=0x7C00)
    >>> assembly.symbols, assembly.constants, assembly.line_at(0x7C02).text
    ({'start': 31744}, {'PORT': 16}, 'hlt')
    """

    code: bytes
    origin: int
    symbols: dict[str, int]
    constants: dict[str, int]
    lines: list[Line]
    spans: list[Span]

    def line_at(self, address: int) -> Line | None:
        """Return the statement whose bytes hold an address."""
        i = bisect_right([line.address for line in self.lines], address) - 1
        line = self.lines[i] if i >= 0 else None
        return line if line and address < line.address + len(line.raw) else None


def assemble(source: str, *, bits: int = 64, origin: int = 0) -> Assembly:
    """Assemble Intel syntax for code that lies at `origin`; `.code16`, `.code32` and `.code64` change the mode within.

    Accepts comments after `;`, far jumps `jmp selector:label`, `.equ`, `.org` and `.balign` by absolute address. Every
    instruction is read back and compared. Raises AssemblyError that names line, column and text.

    >>> assemble("start: mov al, 'A'  ; letter\\n jmp start", bits=16, origin=0x7C00).code.hex()
    'b041ebfc'
    """
    if bits not in MODE_SIZES:
        raise ConfigError(f"{bits}-bit code: there is 16, 32 and 64")
    if not 0 <= origin < ADDRESS_LIMIT:
        raise ConfigError(f"origin {origin:#x}: choose an address from 0 to 2^63 - 1")
    with ONE_AT_A_TIME:
        return Layout(Source(source, bits), origin).assembly()


class Part:
    """A statement while it is placed: how long it is, where it lies, and how it becomes bytes."""

    def __init__(self, statement: Statement, constants: dict[str, int]) -> None:
        self.statement = statement
        self.address = 0
        self.size = 0
        self.branch: Branch | None = None
        self.near = False
        self.encoded: Encoded | None = None
        item = statement.item
        if isinstance(item, Data):
            self.size = item.size
        elif isinstance(item, Instruction):
            self.branch = branch(item)
            if self.branch:
                self.near = not self.branch.short
                self._measure_branch()
            else:
                self.encoded = encode(item, constants)
                self.size = len(self.encoded.code)

    def _measure_branch(self) -> None:
        assert self.branch
        self.size = len(self.branch.near) + self.branch.size if self.near else len(self.branch.short) + 1

    def place(self, address: int) -> int:
        """Lie at an address; return the one behind."""
        self.address = address
        item = self.statement.item
        if isinstance(item, Padding):
            self.size = item.size(address)
            if not 0 <= self.size <= SPACE_LIMIT:
                text = f"this takes {self.size} bytes from {address:#x}; 0 to {SPACE_LIMIT} can be"
                raise Misplaced(1, text)
        return address + self.size

    def grow(self, layout: Layout) -> bool:
        """Take a longer form if a value does not fit; say whether."""
        if self.branch:
            return self._grow_branch(layout, self.branch)
        for place in self.encoded.fields if self.encoded else ():
            value = layout.value_of(place, self)
            if not place.fits(value):
                self._widen(place, value, layout.constants)
                return True
        return False

    def _widen(self, place: Field, value: int, constants: dict[str, int]) -> None:
        """Encode the instruction again, with a field that is wider than this one; Misplaced if there is none."""
        instruction = self.statement.item
        assert isinstance(instruction, Instruction)
        try:
            wider = encode(instruction, constants, 2 * place.size)
        except Misplaced:
            wider = None
        if not wider or not all(field.size > place.size for field in wider.fields if field.value is place.value):
            text = f"{value:#x} does not fit in {place.size} byte{'s' * (place.size > 1)}"
            raise Misplaced(place.value.column or instruction.column, text)
        self.encoded = wider
        self.size = len(wider.code)

    def _grow_branch(self, layout: Layout, form: Branch) -> bool:
        distance = layout.value(form.target, self) - self.address - self.size
        if self.near:
            self._check_near(distance, form)
            return False
        if -0x80 <= distance < 0x80:
            return False
        if not form.near:
            raise Misplaced(form.column, f"the target is {distance} bytes away; this reaches -128 to 127")
        self.near = True
        self._measure_branch()
        return True

    def _check_near(self, distance: int, form: Branch) -> None:
        bits = self.statement.bits
        limit = 1 << (8 * form.size - (bits == 64))
        if not -limit <= distance < limit:
            raise Misplaced(form.column, f"the target is {distance:#x} bytes away; {bits}-bit code reaches {limit:#x}")

    def code(self, layout: Layout) -> bytes:
        """Return the bytes, with every value put in."""
        item = self.statement.item
        if isinstance(item, Data):
            return b"".join(part if isinstance(part, bytes) else self._value(layout, *part) for part in item.parts)
        if isinstance(item, Padding):
            return padding(self.size)
        if self.branch:
            return self._branch_code(layout, self.branch)
        if self.encoded is None:
            return b""
        code = bytearray(self.encoded.code)
        for place in self.encoded.fields:
            value = layout.value_of(place, self) % (1 << 8 * place.size)
            code[place.offset : place.offset + place.size] = value.to_bytes(place.size, "little")
        return bytes(code)

    def _branch_code(self, layout: Layout, form: Branch) -> bytes:
        size = form.size if self.near else 1
        distance = layout.value(form.target, self) - self.address - self.size
        code = (form.near if self.near else form.short) + (distance % (1 << 8 * size)).to_bytes(size, "little")
        try:
            read_back(code, self.statement.bits, self.address)
        except Mismatch as error:
            raise Misplaced(form.column, str(error)) from None
        return code

    def _value(self, layout: Layout, size: int, value: Expression) -> bytes:
        number = layout.value(value, self)
        if not -(1 << 8 * size - 1) <= number < 1 << 8 * size:
            raise Misplaced(value.column or 1, f"{number:#x} does not fit in {size} byte{'s' * (size > 1)}")
        return (number % (1 << 8 * size)).to_bytes(size, "little")


class Layout:
    """All statements at their addresses."""

    def __init__(self, source: Source, origin: int) -> None:
        self.origin = origin
        self.constants = source.constants
        self.labels: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.higher: dict[str, int] = {}  # what the names would be if all lay one byte higher
        self.parts: list[Part] = []
        for statement in source.statements:
            with placed(statement):
                self.parts.append(Part(statement, self.constants))
        self._place()
        while self._grow():
            self._place()

    def _grow(self) -> bool:
        grown = False
        for part in self.parts:
            with placed(part.statement):
                grown |= part.grow(self)
        return grown

    def _place(self) -> None:
        """Give every statement its address, and every name its value."""
        address = self.origin
        for part in self.parts:
            self.labels.update(dict.fromkeys(part.statement.labels, address))
            with placed(part.statement):
                address = part.place(address)
            if address - self.origin > CODE_LIMIT:
                raise AssemblyError(f"line {part.statement.number}: more than {CODE_LIMIT} bytes of code")
        self.names = {**self.constants, **self.labels}
        self.higher = {**self.constants, **{name: value + 1 for name, value in self.labels.items()}}
        for part in self.parts:
            item = part.statement.item
            if isinstance(item, Equation):
                with placed(part.statement):
                    self.names[item.name] = item.value.evaluate(self.names, part.address)
                    self.higher[item.name] = item.value.evaluate(self.higher, part.address + 1)

    def value(self, expression: Expression, part: Part) -> int:
        """Return the value of an expression of a statement."""
        return expression.evaluate(self.names, part.address)

    def value_of(self, place: Field, part: Part) -> int:
        """Return what a field gets: the value, or its distance from the end of the instruction if it is an address."""
        value = self.value(place.value, part)
        if not place.relative:
            return value
        moves = place.value.evaluate(self.higher, part.address + 1) - value
        if moves not in (0, 1):
            raise Misplaced(place.value.column or 1, "this adds up addresses; take one, and numbers")
        return value - (part.address + part.size) if moves else value

    def assembly(self) -> Assembly:
        """Return the result."""
        lines: list[Line] = []
        spans: list[Span] = []
        code = bytearray()
        for part in self.parts:
            statement = part.statement
            with placed(statement):
                raw = part.code(self)
            if raw:
                lines.append(Line(part.address, raw, statement.number, statement.text))
                bits = statement.bits if isinstance(statement.item, Instruction) else 0
                _extend(spans, part.address, part.address + len(raw), bits)
            code += raw
        if not code:
            raise AssemblyError("the source holds no code")
        constants = {name: value for name, value in self.names.items() if name not in self.labels}
        return Assembly(bytes(code), self.origin, dict(self.labels), constants, lines, spans)


@contextmanager
def placed(statement: Statement) -> Iterator[None]:
    """Give an error of this statement its line."""
    try:
        yield
    except Misplaced as error:
        raise located(error, statement.number, statement.text) from None


def _extend(spans: list[Span], start: int, end: int, bits: int) -> None:
    if spans and spans[-1].bits == bits and spans[-1].end == start:
        spans[-1].end = end
    else:
        spans.append(Span(start, end, bits))
