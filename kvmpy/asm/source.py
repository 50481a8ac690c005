"""Assembly source, line by line: comments off, directives checked, and rewritten where Keystone would get it wrong.

Keystone is LLVM's assembler of 2016 with an Intel-syntax parser on top. Some directives crash the process, hang, or
read files of the host, and so does some plain nonsense (`.long 1,,2`); only what is listed here and well-formed passes.
"""

from __future__ import annotations

import re

from kvmpy.asm.expressions import NUMBER, STRING, evaluate, parse_number
from kvmpy.asm.rewrite import rewrite
from kvmpy.errors import AssemblyError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = r"[A-Za-z_]\w*"
LABEL = re.compile(rf"({NAME})\s*:(?!:)\s*")
DIRECTIVE = re.compile(r"\.(\w+)\s*(.*)", re.DOTALL)
INSTRUCTION = re.compile(r"[A-Za-z][A-Za-z0-9]*\b.*", re.DOTALL)
NASM_CONSTANT = re.compile(rf"{NAME}\s+equ\s+.*", re.IGNORECASE)
TEXT_LITERAL = r'"(?:[^"\\]|\\.)*"'
RESERVED_PREFIX = "__kvmpy_"
SOURCE_LIMIT = 4 << 20
SPACE_LIMIT = 1 << 20
NUMBER_LIMIT = 1 << 64
NUMBER_LENGTH = 70  # characters: 64 binary digits and the prefix
DATA = {"byte": 1, "word": 2, "short": 2, "long": 4, "int": 4, "quad": 8}
TEXT = ("ascii", "asciz", "string")
SPACE = ("space", "skip", "zero")
PADDING = ("org", "balign", "align")
MODES = {"code16": 16, "code32": 32, "code64": 64}
CONSTANTS = ("equ", "set")
DIRECTIVES = (*DATA, *TEXT, *SPACE, "fill", *PADDING, *CONSTANTS, *MODES)
REGISTERS = re.compile(
    r"[abcd][lhx]|e?[abcd]x|r[abcd]x|[re]?(si|di|bp|sp|ip)l?|(si|di|bp|sp)l|r(8|9|1[0-5])[dwb]?"
    r"|[cdefgs]s|cr\d+|dr\d+|st|[xyz]mm\d+",
    re.IGNORECASE,
)


@record
class Statement:
    """One directive or instruction: where it stands, with its constants put in (`plain`), and what Keystone gets
    (`code`).

    `kind` is "instruction", "data", or "padding": then `pad` gives the number of bytes needed at an address.
    """

    number: int
    text: str
    bits: int
    kind: str
    plain: str
    code: str
    labels: list[str]
    pad: Callable[[int], int] | None = None


class Source:
    """A parsed source: its statements, labels and constants. AssemblyError names the line that is wrong."""

    def __init__(self, text: str, bits: int) -> None:
        self.bits = bits
        self.statements: list[Statement] = []
        self.names: dict[str, int] = {}
        self.constants: dict[str, int] = {}
        self.equations: list[str] = []
        self._relative: list[tuple[int, str, str]] = []
        if len(text) > SOURCE_LIMIT:
            raise AssemblyError(f"the source has {len(text)} characters; {SOURCE_LIMIT} is the most")
        waiting: list[str] = []
        for number, line in enumerate(strip_comments(text), 1):
            try:
                waiting = self._line(number, line, waiting)
            except AssemblyError as error:
                raise AssemblyError(f"line {number}: {error}: {line.strip()}") from None
        self._add(len(text.splitlines()), "", "data", "", waiting)
        self._check_constants()

    def _line(self, number: int, line: str, labels: list[str]) -> list[str]:
        rest = line.strip()
        _check_characters(rest)
        while match := LABEL.match(rest):
            labels = [*labels, self._name(match[1], number)]
            rest = rest[match.end() :]
        if not rest:
            return labels
        if directive := DIRECTIVE.fullmatch(rest):
            return self._directive(number, rest, directive[1].lower(), directive[2].strip(), labels)
        if NASM_CONSTANT.fullmatch(rest):
            raise AssemblyError("write '.equ NAME, value'")
        if not INSTRUCTION.fullmatch(rest):
            raise AssemblyError("neither label, directive nor instruction")
        if " " in rest:
            _check_operands(rest.partition(" ")[2])
        plain = self._with_numbers(rest)
        _check_memory(plain)
        self._add(number, rest, "instruction", rewrite(plain, self.bits), labels, plain=plain)
        return []

    def _with_numbers(self, text: str) -> str:
        """Put the values of constants in: in a memory operand Keystone takes one name only, and no sign or factor."""
        names = re.compile(rf"{STRING.pattern}|(?<![\w.]){NAME}")
        return names.sub(lambda m: str(self.constants.get(m[0], m[0])), text)

    def _name(self, name: str, number: int) -> str:
        if name in self.names:
            raise AssemblyError(f"{name!r} is defined already, in line {self.names[name]}")
        if REGISTERS.fullmatch(name) or name.startswith(RESERVED_PREFIX):
            raise AssemblyError(f"{name!r} is a register or reserved; choose another name")
        self.names[name] = number
        return name

    def _directive(self, number: int, text: str, name: str, operands: str, labels: list[str]) -> list[str]:
        if name in MODES:
            self.bits = MODES[name]
            return labels
        if name in CONSTANTS:
            self._constant(number, operands)
            return labels
        pad = None
        kind, code = "data", text
        if name in PADDING:
            kind, code, pad = "padding", "", self._padding(name, operands)
        elif name in SPACE or name == "fill":
            code = self._space(name, operands)
        elif name in TEXT:
            code = _text(name, operands)
        elif name in DATA:
            _check_operands(operands)
        else:
            raise AssemblyError(f"directive .{name} is not accepted; there are .{', .'.join(DIRECTIVES)}")
        self._add(number, text, kind, code, labels, pad)
        return []

    def _constant(self, number: int, operands: str) -> None:
        name, comma, value = operands.partition(",")
        name = name.strip()
        if not comma or not re.fullmatch(NAME, name) or not value.strip():
            raise AssemblyError("write '.equ NAME, value'")
        self._name(name, number)
        try:
            self.constants[name] = evaluate(value, self.constants)
            value = str(self.constants[name])
        except AssemblyError:
            _check_operands(value)
            self._relative.append((number, name, value))
        if abs(self.constants.get(name, 0)) >= NUMBER_LIMIT:
            raise AssemblyError(f"the value of {name} takes more than 64 bits")
        self.equations.append(f".equ {name}, {value}")

    def _check_constants(self) -> None:
        """Refuse constants that refer to later ones: Keystone would follow a circle forever."""
        labels = self.names.keys() - self.constants.keys() - {name for _, name, _ in self._relative}
        known = labels | self.constants.keys()
        for number, name, value in self._relative:
            unknown = set(re.findall(rf"(?<![\w.]){NAME}", value)) - known
            if unknown:
                raise AssemblyError(
                    f"line {number}: {', '.join(sorted(unknown))} is not defined, or only later: .equ {name},{value}"
                )
            known = known | {name}

    def _padding(self, name: str, operands: str) -> Callable[[int], int]:
        value = evaluate(operands, self.constants)
        if name == "org":
            return lambda address: value - address
        if value <= 0 or value & value - 1 or value > SPACE_LIMIT:
            raise AssemblyError(f"alignment {value} is no power of two up to {SPACE_LIMIT}")
        return lambda address: -address % value

    def _space(self, name: str, operands: str) -> str:
        numbers = [evaluate(part, self.constants) for part in operands.split(",")]
        count, unit = numbers[0], numbers[1] if name == "fill" and len(numbers) > 1 else 1
        if not 0 <= count * unit <= SPACE_LIMIT or not 0 <= unit <= 8 or len(numbers) > (3 if name == "fill" else 2):
            raise AssemblyError(f"{count} times {unit} bytes: 0 to {SPACE_LIMIT} bytes are accepted")
        return f".{name} {', '.join(map(str, numbers))}"

    def _add(
        self,
        number: int,
        text: str,
        kind: str,
        code: str,
        labels: list[str],
        pad: Callable[[int], int] | None = None,
        plain: str = "",
    ) -> None:
        self.statements.append(Statement(number, text, self.bits, kind, plain, code, labels, pad))


def _check_characters(text: str) -> None:
    outside = STRING.sub("", text)
    if any(not m[0].isascii() for m in STRING.finditer(text) if m[0][0] == "'"):
        raise AssemblyError("a character between single quotes must be ASCII")
    if not outside.isascii() or any(not c.isprintable() and c != "\t" for c in outside):
        raise AssemblyError("outside of text only printable ASCII characters are accepted")
    if any(len(m[0]) > NUMBER_LENGTH or (parse_number(m[0]) or 0) >= NUMBER_LIMIT for m in NUMBER.finditer(outside)):
        raise AssemblyError("a number takes more than 64 bits")
    if re.search(r"(?<![\w.])\d+[bf]\b(?!\w)", outside) or re.match(r"\d+:", outside):
        raise AssemblyError("numbered labels are not accepted; give the label a name")
    if "$" in outside:
        raise AssemblyError("'$' is not accepted; the current address is '.', hexadecimal starts with 0x")


def _check_operands(text: str) -> None:
    """Refuse unfinished operands, which Keystone takes for zero or never finishes reading."""
    plain = STRING.sub("0", text)
    if plain.count("(") != plain.count(")") or plain.count("[") != plain.count("]") or '"' in plain:
        raise AssemblyError("a bracket, parenthesis or quotation mark is not closed")
    for operand in plain.split(","):
        if not operand.strip() or re.search(r"[-+*/%~!<>&|^(\[]\s*$|[(\[]\s*[)\]]", operand):
            raise AssemblyError("an operand is missing")


def _check_memory(text: str) -> None:
    """Refuse memory operands whose names Keystone would add up wrongly: it honours one, as if it were added."""
    for operand in re.findall(r"\[([^\[\]]*)\]", STRING.sub("0", text)):
        names = [m for m in re.finditer(rf"(?<![\w.]){NAME}", operand) if not REGISTERS.fullmatch(m[0])]
        factors = any(
            re.search(r"[-*/]\s*$", operand[: m.start()]) or re.match(r"\s*[*/]", operand[m.end() :]) for m in names
        )
        if len(names) > 1 or factors:
            raise AssemblyError("a memory operand may add one label; give the sum or difference a name with .equ")


def _text(name: str, operands: str) -> str:
    """Return the directive with bytes above 127, UTF-8, as octal escapes: Keystone takes ASCII only."""
    if not re.fullmatch(rf"{TEXT_LITERAL}(\s*,\s*{TEXT_LITERAL})*", operands):
        raise AssemblyError('text needs double quotes, "like this"')
    return f".{name} " + "".join(chr(b) if b < 0x80 else f"\\{b:03o}" for b in operands.encode())


def strip_comments(text: str) -> Iterator[str]:
    """Yield the lines without comments: from `;`, `#` or `//` to the end of the line, and `/* … */` over lines."""
    pattern = re.compile(rf"(?P<keep>{STRING.pattern})|/\*.*?\*/|(?:;|#|//)[^\n]*", re.DOTALL)
    yield from pattern.sub(lambda m: m["keep"] or "\n" * m[0].count("\n"), text).split("\n")
