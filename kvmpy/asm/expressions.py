"""Expressions over numbers, names and the current address: parsed here, and valued once all addresses are known."""

from __future__ import annotations

import operator

from kvmpy.asm.tokens import Misplaced, Token, expected, number, text_of
from kvmpy.errors import AssemblyError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEPTH_LIMIT = 50
SHIFT_LIMIT = 64
BETWEEN_LIMIT = 1 << 128  # what is in between may be larger than what comes out


def _divide(a: int, b: int) -> int:
    if b == 0:
        raise AssemblyError("a division by zero")
    return a // b


def _count(b: int) -> int:
    if not 0 <= b <= SHIFT_LIMIT:
        raise AssemblyError(f"a shift by {b}; 0 to {SHIFT_LIMIT} can be")
    return b


# Operators from the loosest to the tightest.
LEVELS: tuple[dict[str, Callable[[int, int], int]], ...] = (
    {"|": operator.or_},
    {"^": operator.xor},
    {"&": operator.and_},
    {"<<": lambda a, b: a << _count(b), ">>": lambda a, b: a >> _count(b)},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": _divide},
)
SUM, PRODUCT = 4, 5


@record
class Expression:
    """A tree: `kind` is "number", "name", "here", "-", "~" or an operator; `parts` are below it."""

    kind: str
    value: int = 0
    name: str = ""
    column: int = 0
    parts: tuple[Expression, ...] = ()

    def names(self) -> Iterator[Expression]:
        """Give every name in it."""
        if self.kind == "name":
            yield self
        for part in self.parts:
            yield from part.names()

    def is_constant(self, constants: Mapping[str, int]) -> bool:
        """Whether it can be valued now: all its names are constants, and it does not ask where it is."""
        if self.kind == "here":
            return False
        return (self.kind != "name" or self.name in constants) and all(p.is_constant(constants) for p in self.parts)

    def evaluate(self, names: Mapping[str, int], here: int = 0) -> int:
        """Return its value; Misplaced for a name that is not defined, and for what cannot be computed."""
        if self.kind == "number":
            return self.value
        if self.kind == "here":
            return here
        if self.kind == "name":
            if self.name not in names:
                raise Misplaced(self.column, f"'{self.name}' is not defined")
            return names[self.name]
        values = [part.evaluate(names, here) for part in self.parts]
        if len(values) == 1:
            return -values[0] if self.kind == "-" else ~values[0]
        try:
            result = OPERATORS[self.kind](*values)
        except AssemblyError as error:
            raise Misplaced(self.column, str(error)) from None
        if abs(result) >= BETWEEN_LIMIT:
            raise Misplaced(self.column, "a value takes more than 128 bits")
        return result


OPERATORS = {sign: function for level in LEVELS for sign, function in level.items()}


def constant(value: int) -> Expression:
    """Return a number as an expression."""
    return Expression("number", value)


class Reader:
    """The tokens of a statement, read one after the other."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    @property
    def next(self) -> Token:
        """The token that comes next."""
        return self._tokens[self._at]

    def behind(self, count: int = 1) -> Token:
        """Return the token that comes `count` after the next."""
        return self._tokens[min(self._at + count, len(self._tokens) - 1)]

    def take(self, what: str = "") -> Token:
        """Return the next token, which must be `what` if that is said, and go on behind it."""
        token = self.next
        if what and token.text != what:
            raise expected(f"'{what}'", token)
        if token.kind != "end":
            self._at += 1
        return token

    def takes(self, *texts: str) -> bool:
        """If the next token is one of these, go on behind it and say so."""
        if self.next.kind == "mark" and self.next.text in texts:
            self._at += 1
            return True
        return False

    def end(self) -> None:
        """Raise an error unless the line ends here."""
        if self.next.kind != "end":
            raise expected("the end of the line", self.next)

    def expression(self, level: int = 0, stop: Callable[[Token], bool] = lambda _token: False) -> Expression:
        """Read an expression; a product ends before a factor for which `stop` says so (a register)."""
        if level == len(LEVELS):
            return self._unary(stop)
        left = self.expression(level + 1, stop)
        while self.next.kind == "mark" and self.next.text in LEVELS[level] and not stop(self.behind()):
            sign = self.take()
            left = Expression(sign.text, column=sign.column, parts=(left, self.expression(level + 1, stop)))
        return left

    def _unary(self, stop: Callable[[Token], bool]) -> Expression:
        token = self.next
        if token.kind == "mark" and token.text in "+-~":
            self._deeper(token)
            self.take()
            inner = self._unary(stop)
            self._depth -= 1
            return inner if token.text == "+" else Expression(token.text, column=token.column, parts=(inner,))
        if token.text == "(":
            self._deeper(token)
            self.take()
            inner = self.expression()
            self.take(")")
            self._depth -= 1
            return inner
        return self._atom()

    def _deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise Misplaced(token.column, f"more than {DEPTH_LIMIT} signs or parentheses in one another")

    def _atom(self) -> Expression:
        token = self.next
        if token.kind == "number":
            value = Expression("number", number(token), column=token.column)
        elif token.kind == "character":
            value = Expression("number", text_of(token)[0], column=token.column)
        elif token.kind == "name":
            value = Expression("name", name=token.text, column=token.column)
        elif token.text == "." and token.kind == "mark":
            value = Expression("here", column=token.column)
        else:
            raise expected("a number, a name or '('", token)
        self.take()
        return value
