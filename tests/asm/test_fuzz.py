"""Whatever the source says, the assembler ends, and answers with code or one error."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.asm import assemble, disassemble
from kvmpy.errors import AssemblyError

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 120
TOKENS = (
    "mov add push pop jmp call ret retf lea int in out rep lock repne nop loop jz jcxz lgdt sgdt fld fstp fadd fild "
    "shl shld imul test xchg movzx movsxd stosb movsd cmpxchg8b vaddps bt enter leave iret sysret pushf bswap setz "
    "cmovz movaps cvtsi2sd fxch fldcw fxsave pinsrw les bound aam arpl monitor rdrand prefetcht0 "
    "rax eax ax al ah r8 r8b r15d spl cs fs cr0 cr4 dr7 st st(1) xmm0 ymm1 mm0 rip esp bx si "
    "[ ] [rax] [bx+si] [rip+lab] [lab] [rax+rbx*4+1] fs:[0x28] , , , + - * : ( ) 0 1 5 -1 255 256 65536 0x10 10h 0b11 "
    "0xffffffff 0x123456789 0xffffffffffffffff 0x1ffffffffffffffff 'a' 'ab' \"str\" lab x . lab-x "
    "byte word dword qword tbyte xmmword ptr short offset rel .byte .word .long .quad .ascii .asciz .fill .space .org "
    ".balign .equ .code16 .code32 .code64 .text .incbin ~ << >> / & | ^ ; # \\ $ % @ = 09 1.5 0x 1e5 lab: x: /* */ \n"
).split(" ")


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Keystone is C: nothing but the end of the process gets out of one of its loops."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def try_it(source: str, bits: int, origin: int = 0x7C00) -> None:
    try:
        made = assemble(source, bits=bits, origin=origin)
    except AssemblyError as error:
        message = str(error)
        assert message.startswith("line ") or "no code" in message
        assert "\n" not in message.partition(": ")[2][:20]
        return
    assert made.code
    assert b"".join(line.raw for line in made.lines) == made.code
    for span in made.spans:
        if span.bits:
            raw = made.code[span.start - origin : span.end - origin]
            assert b"".join(i.raw for i in disassemble(raw, bits=span.bits, origin=span.start)) == raw


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=9).map(" ".join), st.sampled_from([16, 32, 64]))
def test_any_tokens(text: str, bits: int) -> None:
    try_it(f"{text}\nlab: nop\nx: nop", bits)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.sampled_from([16, 32, 64]))
def test_any_text(text: str, bits: int) -> None:
    try_it(text, bits)


LINES = [
    line for path in sorted((ROOT / "guest").rglob("*.asm")) for line in path.read_text().splitlines() if line.strip()
]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), min_size=1, max_size=3),
    st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from(TOKENS), st.sampled_from(["put", "cut", "swap"])), max_size=4
    ),
    st.sampled_from([16, 32, 64]),
)
def test_sources_that_were_damaged(lines: list[str], changes: list[tuple[int, str, str]], bits: int) -> None:
    text = "\n".join(lines)
    for at, token, change in changes:
        at %= len(text) + 1
        text = {
            "put": text[:at] + token + text[at:],
            "cut": text[:at] + text[at + len(token) :],
            "swap": text[at:] + text[:at],
        }[change]
    try_it(text, bits)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(
    "mnemonic", ["ret", "retf", "push", "int", "in al,", "out", "enter", "aam", "call", "loop", "jmp"]
)
def test_numbers_that_are_too_large_for_their_place(mnemonic: str, bits: int) -> None:
    """Keystone never returned from some of them."""
    for value in ("0x123456789", "-0x123456789", "0xffffffffffffffff", "lab + 0x123456789"):
        try_it(f"{mnemonic} {value}\nlab: nop", bits)
        try_it(f"rep {mnemonic} {value}\nlab: nop", bits)
