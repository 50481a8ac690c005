"""Assembly text to machine code, over Keystone."""

from __future__ import annotations

from bisect import bisect_right

from kvmpy.asm.check import check_instruction
from kvmpy.asm.expressions import hexadecimal
from kvmpy.asm.source import RESERVED_PREFIX, SPACE_LIMIT, Source, Statement
from kvmpy.errors import AssemblyError, ConfigError
from kvmpy.record import record

PASSES = 8
WORD = 8
MODE_SIZES = (16, 32, 64)
ADDRESS_LIMIT = 1 << 63


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
    """The result: the bytes, labels and .equ constants by name, each statement's place, and what is code or data."""

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
    instruction is read back and compared. Raises AssemblyError that names line and text.

    >>> assemble("start: mov al, 'A'  ; letter\\n jmp start", bits=16, origin=0x7C00).code.hex()
    'b041ebfc'
    """
    if bits not in MODE_SIZES:
        raise ConfigError(f"{bits}-bit code: there is 16, 32 and 64")
    if not 0 <= origin < ADDRESS_LIMIT:
        raise ConfigError(f"origin {origin:#x}: choose an address from 0 to 2^63 - 1")
    parsed = Source(source, bits)
    pads = {i: 0 for i, statement in enumerate(parsed.statements) if statement.pad}
    for _ in range(PASSES):
        code, addresses, values = _run(parsed, pads, origin)
        wanted = _paddings(parsed, pads, addresses)
        if wanted == pads:
            return _finish(parsed, code, addresses, values, origin)
        pads = wanted
    raise AssemblyError("the addresses of .org and .balign do not settle; jumps over them change their length")


def _paddings(source: Source, pads: dict[int, int], addresses: list[int]) -> dict[int, int]:
    """Return the bytes each .org and .balign needs, given where it is now."""
    wanted, shift = {}, 0
    for i, now in pads.items():
        statement = source.statements[i]
        assert statement.pad
        needed = statement.pad(addresses[i] + shift)
        if not 0 <= needed <= SPACE_LIMIT:
            at = addresses[i] + shift
            raise _at(statement, AssemblyError(f"it would take {needed} bytes from {at:#x}; 0 to {SPACE_LIMIT} can be"))
        wanted[i] = needed
        shift += needed - now
    return wanted


def _run(source: Source, pads: dict[int, int], origin: int) -> tuple[bytes, list[int], dict[str, int]]:
    """Assemble once; return the code, the address of each statement, and the values of all names.

    The addresses come back as quad words behind the code: Keystone has no other way to tell them.
    """
    text = list(source.equations)
    marks = []
    for i, statement in enumerate(source.statements):
        text.append(f".code{statement.bits}")
        text += [f"{label}:" for label in statement.labels]
        marks.append(f"{RESERVED_PREFIX}{i}")
        text += [f"{marks[-1]}:", f".fill {pads[i]}, 1, 0x90" if i in pads else statement.code]
    names = [*marks, *source.names]
    text += [f".quad {name}" for name in names]
    encoded = _keystone("\n".join(text), origin)
    if isinstance(encoded, str):
        raise _locate(source, encoded)
    size = len(encoded) - WORD * len(names)
    words = [int.from_bytes(encoded[at : at + WORD], "little") for at in range(size, len(encoded), WORD)]
    return encoded[:size], words[: len(marks)], dict(zip(source.names, words[len(marks) :], strict=True))


def _keystone(text: str, origin: int) -> bytes | str:
    """Return the code, or Keystone's complaint."""
    import keystone

    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    try:
        encoded, _ = engine.asm(hexadecimal(text), origin, as_bytes=True)
    except keystone.KsError as error:
        return str(error.message)
    return encoded if isinstance(encoded, bytes) else "nothing came out; say the operand's width, as in 'byte ptr [x]'"


def _locate(source: Source, complaint: str) -> AssemblyError:
    """Find the line that Keystone refused: assemble each by itself, with all names known."""
    known = "".join(f".equ {name}, 0\n" for name in source.names)
    for statement in source.statements:
        alone = f"{known}.code{statement.bits}\n{statement.code}\n.byte 0"
        reason = _keystone(alone, 0)
        if isinstance(reason, str):
            return _at(statement, AssemblyError(_plain(reason)))
    return AssemblyError(f"{_plain(complaint)}; no single line is at fault")


def _plain(complaint: str) -> str:
    return complaint.split(" (KS_ERR")[0].replace("Cannot find a symbol", "a name is not defined").lower()


def _at(statement: Statement, error: AssemblyError) -> AssemblyError:
    return AssemblyError(f"line {statement.number}: {error}: {statement.text}")


def _finish(source: Source, code: bytes, addresses: list[int], values: dict[str, int], origin: int) -> Assembly:
    lines: list[Line] = []
    spans: list[Span] = []
    ends = [*addresses[1:], origin + len(code)]
    for statement, start, end in zip(source.statements, addresses, ends, strict=True):
        raw = code[start - origin : end - origin]
        if statement.kind == "instruction":
            try:
                check_instruction(statement.plain, raw, bits=statement.bits, address=start)
            except AssemblyError as error:
                raise _at(statement, error) from None
        elif not raw:
            continue
        lines.append(Line(start, raw, statement.number, statement.text))
        _extend(spans, start, end, statement.bits if statement.kind == "instruction" else 0)
    if not code:
        raise AssemblyError("the source holds no code")
    defined = {line.split()[1].rstrip(",") for line in source.equations}
    symbols = {name: value for name, value in values.items() if name not in defined}
    constants = {name: value for name, value in values.items() if name in defined}
    return Assembly(code, origin, symbols, constants, lines, spans)


def _extend(spans: list[Span], start: int, end: int, bits: int) -> None:
    if spans and spans[-1].bits == bits and spans[-1].end == start:
        spans[-1].end = end
    else:
        spans.append(Span(start, end, bits))
