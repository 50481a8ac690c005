"""A line of assembly source as tokens with their columns; what is wrong with it is an error that names the place."""

from __future__ import annotations

import re

from kvmpy.errors import AssemblyError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STRING = r'"(?:[^"\\]|\\.)*"'
CHARACTER = r"'(?:[^'\\]|\\.)'"
TOKEN = re.compile(
    rf"(?P<space>[ \t]+)|(?P<string>{STRING})|(?P<character>{CHARACTER})|(?P<number>\d\w*)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<directive>\.[A-Za-z]\w*)|(?P<mark><<|>>|[-+*/~&|^()\[\],:.])",
    re.ASCII,
)
COMMENT = re.compile(rf"(?P<keep>{STRING}|{CHARACTER})|/\*.*?\*/|(?:;|#|//)[^\n]*", re.DOTALL)
NUMBER = re.compile(r"(?i)0x(?P<hex>[0-9a-f]+)|0b(?P<bin>[01]+)|(?P<h>[0-9][0-9a-f]*)h|(?P<dec>[0-9]+)")
NUMBER_LENGTH = 70  # characters: 64 binary digits and the prefix
NUMBER_LIMIT = 1 << 64
HINTS = {
    "$": "the current address is '.', hexadecimal numbers begin with 0x",
    "%": "registers have no sign before them, and there is no remainder",
    '"': "a text is not closed",
    "'": "a character is not closed, or is more than one",
    "@": "sections and relocations are not known here",
    "=": "write '.equ NAME, value'",
    "<": "write '<<' for a shift",
    ">": "write '>>' for a shift",
    "\\": "a statement ends with its line",
    "?": "there are no choices",
}
ESCAPES = {"n": 10, "t": 9, "r": 13, "b": 8, "f": 12, "0": 0, "\\": 92, '"': 34, "'": 39}


@record
class Token:
    """A word of a line: its kind (a group of TOKEN, or "end"), its text, and its column, counted from 1."""

    kind: str
    text: str
    column: int

    def __str__(self) -> str:
        return "the end of the line" if self.kind == "end" else f"'{self.text}'"


class Misplaced(AssemblyError):
    """Something is wrong at a column; who knows the line adds it."""

    def __init__(self, column: int, message: str) -> None:
        super().__init__(message)
        self.column = column


def expected(what: str, found: Token) -> Misplaced:
    """Return the error that something else stands where `what` was expected."""
    return Misplaced(found.column, f"expected {what}, found {found}")


def tokens_of(line: str) -> list[Token]:
    """Return the tokens of a line without comments; the last is the end."""
    found = []
    at = 0
    while at < len(line):
        match = TOKEN.match(line, at)
        if not match:
            raise _no_token(line, at)
        kind = str(match.lastgroup)
        if kind == "character" and not match[0].isascii():
            raise Misplaced(at + 1, "a character between single quotes must be ASCII")
        if kind != "space":
            found.append(Token(kind, match[0], at + 1))
        at = match.end()
    found.append(Token("end", "", len(line) + 1))
    return found


def _no_token(line: str, at: int) -> Misplaced:
    character = line[at]
    if not character.isascii() or not character.isprintable():
        return Misplaced(at + 1, f"{character!r}: outside of text only printable ASCII characters are accepted")
    hint = HINTS.get(character)
    return Misplaced(at + 1, f"'{character}' has no meaning here{f'; {hint}' if hint else ''}")


def strip_comments(text: str) -> Iterator[str]:
    """Give the lines with blanks for comments: from `;`, `#` or `//` to the end of the line, `/* … */` over lines."""

    def blank(match: re.Match[str]) -> str:
        return match["keep"] or "".join("\n" if character == "\n" else " " for character in match[0])

    yield from COMMENT.sub(blank, text).split("\n")


def number(token: Token) -> int:
    """Return the value of a literal: 10, 0x10, 10h, 0b10."""
    if len(token.text) > NUMBER_LENGTH:
        raise Misplaced(token.column, "a number takes more than 64 bits")
    match = NUMBER.fullmatch(token.text)
    if not match:
        hint = "; labels have names" if re.fullmatch(r"\d+[bf]", token.text) else ""
        raise Misplaced(token.column, f"'{token.text}' is no integer; write 10, 0x10, 10h or 0b10{hint}")
    base, digits = next((b, match[g]) for g, b in (("hex", 16), ("bin", 2), ("h", 16), ("dec", 10)) if match[g])
    value = int(digits, base)
    if value >= NUMBER_LIMIT:
        raise Misplaced(token.column, "a number takes more than 64 bits")
    return value


def text_of(token: Token) -> bytes:
    """Return the bytes of a string or character, UTF-8, with its escapes carried out: \\n \\t \\r \\0 \\x41 \\101 …"""
    inner, out, at = token.text[1:-1], bytearray(), 0
    while at < len(inner):
        match = re.compile(r"\\x([0-9a-fA-F]{1,2})|\\([0-7]{1,3})|\\(.)|([^\\]+)", re.DOTALL).match(inner, at)
        assert match
        if match[1] or match[2]:
            out.append(int(match[1] or match[2], 16 if match[1] else 8) & 0xFF)
        elif match[3]:
            if match[3] not in ESCAPES:
                raise Misplaced(token.column + 1 + at, f"'\\{match[3]}' is no escape; there are {' '.join(ESCAPES)}")
            out.append(ESCAPES[match[3]])
        else:
            out += match[4].encode()
        at = match.end()
    return bytes(out)
