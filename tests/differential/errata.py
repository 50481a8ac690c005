"""What the engine of the software CPU does not do as a processor does, and nobody has mended: docs/errata.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
LIST, PAGE = DOCS / "errata.toml", DOCS / "errata.md"
INTRODUCTION = """\
# Errata of the software CPU

What the software CPU does otherwise than a processor. Random programs on both found it
(`tests/differential`; `python tools/differential.py --minutes 10` looks for more); what is mended
leaves the list. It is written from `docs/errata.toml`.

| instruction | modes | what it does | what is right |
|---|---|---|---|
"""
EVERYWHERE = (16, 32, 64)


@dataclass(frozen=True)
class Made:
    """An instruction of a program: the name of its form, and its traits."""

    form: str
    traits: frozenset[str]

    def matches(self, forms: str, traits: Iterable[str]) -> bool:
        """Tell whether its form is one of a regular expression, and whether it has all these traits."""
        return self.traits.issuperset(traits) and bool(re.fullmatch(forms, self.form))

    def is_one_of(self, kinds: Iterable[tuple[str, str]]) -> bool:
        """Tell whether it is of one of these kinds: forms, and traits with blanks between them."""
        return any(self.matches(forms, traits.split()) for forms, traits in kinds)


@dataclass(frozen=True)
class Erratum:
    """A table of docs/errata.toml."""

    instruction: str
    does: str
    right: str
    forms: str
    modes: tuple[int, ...] = EVERYWHERE
    traits: tuple[str, ...] = ()
    differs: tuple[str, ...] = field(default=())
    vector: int = -1

    def is_about(self, made: Made, bits: int) -> bool:
        """Tell whether an instruction in code of these bits is an instance."""
        return bits in self.modes and made.matches(self.forms, self.traits)


ERRATA = [Erratum(**table) for table in tomllib.loads(LIST.read_text())["erratum"]]


def is_left_out(made: Made, bits: int) -> bool:
    """Tell whether no program has this instruction."""
    return any(erratum.is_about(made, bits) for erratum in ERRATA if not erratum.differs)


def not_known(found: Iterable[str], instructions: Iterable[Made], bits: int, vector: int) -> list[str]:
    """Return the differences that are no erratum's of these instructions, of which the last raised an exception."""
    known = [
        pattern
        for erratum in ERRATA
        if erratum.vector in (-1, vector) and any(erratum.is_about(made, bits) for made in instructions)
        for pattern in erratum.differs
    ]
    return [line for line in found if not any(re.match(pattern, line) for pattern in known)]


def page() -> str:
    """Return docs/errata.md."""
    rows = [f"| {e.instruction} | {', '.join(map(str, e.modes))} bit | {e.does} | {e.right} |\n" for e in ERRATA]
    return INTRODUCTION + "".join(rows)
