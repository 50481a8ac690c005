"""What Keystone is given: one instruction at a time, in text that our own parser wrote."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import keystone
import pytest

from kvmpy.asm import assemble, encode
from kvmpy.errors import AssemblyError

ROOT = Path(__file__).parents[2]
OPERAND = r"(-?0x[0-9a-f]+|[a-z0-9]+(\([0-7]\))?|([a-z]+ ptr )?([c-gs]s:)?\[[a-z0-9+*x -]+\]|[a-z]+ ptr -?0x[0-9a-f]+)"
CANONICAL = re.compile(rf"[a-z][a-z0-9]*( {OPERAND}(, {OPERAND})*)?")


def test_it_sees_canonical_instructions_and_numbers_in_base_16_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the base of a plain number from memory that nobody has set: 1016 may mean 0x1016."""
    seen: list[str] = []
    asm = keystone.Ks.asm

    def recorded(self: keystone.Ks, text: str, *args: object, **options: object) -> object:
        seen.append(text)
        return asm(self, text, *args, **options)

    monkeypatch.setattr(keystone.Ks, "asm", recorded)
    monkeypatch.setattr(sys, "path", list(sys.path))
    encode.keystone.cache_clear()
    build_all = runpy.run_path(str(ROOT / "tools" / "build_guests.py"))["build_all"]
    assert "guest" in build_all(ROOT / "guest", tmp_path)
    assert len(seen) > 100
    for text in seen:
        assert CANONICAL.fullmatch(text), text
        assert not re.search(r"(?<![\w.(])[1-9]\d+(?![\w.])", text), text


@pytest.mark.parametrize(
    ("source", "bits", "code"),
    [
        ("mov [r8], al", 64, "418800"),
        ("mov byte [rbx], 5", 64, "c60305"),
        ("MOV EAX, 10H", 32, "b810000000"),
        ("mov eax, [rbx + 4*rcx - 8]", 64, "8b448bf8"),
        ("mov eax, [4*rcx + rbx]", 64, "8b048b"),
        ("mov eax, [rcx + rbx]", 64, "8b0419"),
        ("mov ds:[eax], cx", 32, "668908"),
        ("mov eax, [fs:0x10]", 32, "64a110000000"),
        ("add dword ptr [rsp + 8 - 4], 1", 64, "8344240401"),
        ("iret", 32, "cf"),
        ("pushf", 32, "9c"),
        ("push es", 32, "06"),
        ("pop gs", 32, "0fa9"),
        ("lgdt [eax]", 32, "0f0110"),
        ("lgdt [0x12345678]", 32, "0f011578563412"),
        ("sysretq", 64, "480f07"),
        ("cbw", 16, "98"),
        ("cwde", 16, "6698"),
        ("jmp far_away\nfar_away: hlt", 32, "eb00f4"),
        ("rep ret", 64, "f3c3"),
        ("lock xadd [rbx], eax", 64, "f00fc103"),
        ("repne scasb", 16, "f2ae"),
    ],
)
def test_what_is_written_is_what_comes_out(source: str, bits: int, code: str) -> None:
    """Intel SDM vol. 2; GNU as 2.40 gives the same."""
    assert assemble(source, bits=bits).code.hex() == code


@pytest.mark.parametrize(("mnemonic", "bits"), [("cqo", 32), ("cdqe", 32), ("cqo", 16)])
def test_an_instruction_that_the_mode_does_not_have_is_not_another_one(mnemonic: str, bits: int) -> None:
    """Keystone makes CDQ of CQO there, and CWDE of CDQE."""
    with pytest.raises(AssemblyError, match="another instruction"):
        assemble(mnemonic, bits=bits)
