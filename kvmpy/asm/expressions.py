"""Constant expressions of directives whose size has to be known before Keystone sees them."""

from __future__ import annotations

import ast
import operator
import re

from kvmpy.errors import AssemblyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NUMBER = re.compile(r"(?i)0x[0-9a-f]+|0b[01]+|[0-9][0-9a-f]*h|[0-9]+")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)\'')
DECIMAL = re.compile(rf"(?P<string>{STRING.pattern})|(?<![\w.$])[1-9]\d+(?![\w.])")
CHARACTER = re.compile(r"'([^'\\])'")
LENGTH_LIMIT = 200  # characters: deep nesting would exhaust the parser
SHIFT_LIMIT = 64
OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: lambda a, b: a << min(b, SHIFT_LIMIT),
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}


def parse_number(text: str) -> int | None:
    """Return the value of a literal as Keystone reads it (10, 0x10, 10h, 0b10, 'A', with a sign), None for others."""
    text = text.strip()
    if text[:1] in ("-", "+", "~"):
        value = parse_number(text[1:])
        return None if value is None else {"-": -value, "+": value, "~": ~value}[text[0]]
    if character := CHARACTER.fullmatch(text):
        return ord(character[1])
    if not NUMBER.fullmatch(text):
        return None
    if text[-1] in "hH":
        return int(text[:-1], 16)
    return int(text, 0) if text[:2].lower() in ("0x", "0b") else int(text)


def hexadecimal(text: str) -> str:
    """Write the decimal numbers of a text in base 16; a single digit is the same in both.

    Keystone takes the base of a number without a prefix from memory that nobody has set: 1016 may mean 0x1016.
    """
    return DECIMAL.sub(lambda m: m[0] if m["string"] else hex(int(m[0])), text)


def evaluate(text: str, constants: Mapping[str, int]) -> int:
    """Return the value of an expression over numbers and constants; AssemblyError when it is none."""
    plain = NUMBER.sub(lambda m: str(parse_number(m[0])) if not _inside_name(text, m) else m[0], text)
    try:
        if len(text) > LENGTH_LIMIT:
            raise ValueError
        return _value(ast.parse(plain.strip().replace("/", "//"), mode="eval").body, constants)
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        raise AssemblyError(
            f"{text.strip()!r} is no constant; use numbers and earlier .equ names, not labels"
        ) from None


def _inside_name(text: str, match: re.Match[str]) -> bool:
    return match.start() > 0 and (text[match.start() - 1].isalnum() or text[match.start() - 1] in "_.")


def _value(node: ast.AST, constants: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert)):
        value = _value(node.operand, constants)
        return -value if isinstance(node.op, ast.USub) else ~value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, constants), _value(node.right, constants))
    raise ValueError
