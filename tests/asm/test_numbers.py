"""Numbers reach Keystone in base 16 only: it takes the base of the others from memory that nobody has set."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import keystone
import pytest

from kvmpy.asm import assemble
from kvmpy.asm.expressions import hexadecimal
from kvmpy.errors import AssemblyError

ROOT = Path(__file__).parents[2]
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']\'')


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("mov dx, 1016", "mov dx, 0x3f8"),
        ("mov eax, [rax + 4*rcx - 128]", "mov eax, [rax + 4*rcx - 0x80]"),
        (".equ PORT, 1016", ".equ PORT, 0x3f8"),
        (".quad __kvmpy_12", ".quad __kvmpy_12"),
        (".code16", ".code16"),
        ("movaps xmm10, xmm11", "movaps xmm10, xmm11"),
        ("mov ax, 1016h", "mov ax, 1016h"),
        ("mov ax, 0x1016", "mov ax, 0x1016"),
        ("mov ax, 0b1010", "mov ax, 0b1010"),
        ('.ascii "port 1016", 13', '.ascii "port 1016", 0xd'),
    ],
)
def test_only_decimal_numbers_are_rewritten(text: str, written: str) -> None:
    assert hexadecimal(text) == written


def test_keystone_never_sees_a_decimal_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    asm = keystone.Ks.asm

    def recorded(self: keystone.Ks, text: str, *args: object, **options: object) -> object:
        seen.append(STRINGS.sub("", text))
        return asm(self, text, *args, **options)

    monkeypatch.setattr(keystone.Ks, "asm", recorded)
    monkeypatch.setattr(sys, "path", list(sys.path))
    build_all = runpy.run_path(str(ROOT / "tools" / "build_guests.py"))["build_all"]
    assert "guest" in build_all(ROOT / "guest", tmp_path)
    assert "0x3f8" in "".join(seen)
    assert not re.findall(r"(?<![\w.])[1-9]\d+(?![\w.])", "\n".join(seen))


def test_constants_and_numbers_keep_their_value() -> None:
    assembly = assemble(
        ".equ COM1, 1016\n mov dx, COM1\n mov eax, [rbx + 100]\n .word 1000, 10h, 0b11\n .fill 12, 1, 16"
    )
    assert assembly.code.hex() == "66baf803" + "8b4364" + "e80310000300" + "10" * 12


@pytest.mark.parametrize("statement", [".long", "mov eax,", ".space", ".equ N,"])
def test_endless_number_is_refused_with_its_line(statement: str) -> None:
    with pytest.raises(AssemblyError, match="line 2"):
        assemble(f"nop\n{statement} {'9' * 5000}")
