"""Addresses, branches as short as they can be, and values that are put in when all is placed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from kvmpy.asm import assemble
from kvmpy.errors import AssemblyError


def code(source: str, bits: int = 64, origin: int = 0) -> str:
    return assemble(source, bits=bits, origin=origin).code.hex()


@pytest.mark.parametrize(
    ("bits", "distance", "expected"),
    [
        (64, 127, "eb7f"),
        (64, 128, "e980000000"),
        (32, 128, "e980000000"),
        (16, 127, "eb7f"),
        (16, 128, "e98000"),
    ],
)
def test_a_jump_is_short_as_far_as_that_reaches(bits: int, distance: int, expected: str) -> None:
    """Intel SDM vol. 2, JMP: EB cb, E9 cw, E9 cd."""
    assert code(f"jmp far_away\n.space {distance}\nfar_away: nop", bits).startswith(expected)


@pytest.mark.parametrize(("distance", "expected"), [(126, "7480"), (127, "0f847bffffff")])
def test_a_jump_back_too(distance: int, expected: str) -> None:
    """From the end of the instruction: 128 bytes back is as far as a byte reaches."""
    assert code(f"back: .space {distance}\nje back")[2 * distance :] == expected


def test_one_long_jump_makes_another_long() -> None:
    """The second is out of reach only because the first has grown."""
    source = f"jmp end\njmp there\n.space {0x7F - 5 + 5}\nthere: .space 2\nend: nop"
    lines = assemble(source).lines
    assert len(lines[0].raw) == 5
    assert len(lines[1].raw) == 2
    source = f"x: jmp end\n.space {0x80 - 2 - 2}\njmp x\n.space 200\nend: nop"
    lines = assemble(source).lines
    assert [len(lines[0].raw), len(lines[2].raw)] == [5, 5]


def test_addresses_move_with_the_origin_and_padding_is_by_address() -> None:
    made = assemble("nop\n.balign 16\nlab: .long lab\n.org 0x7c20\nend: nop", bits=16, origin=0x7C05)
    assert made.symbols == {"lab": 0x7C10, "end": 0x7C20}
    assert made.code[0x10 - 5 :][:4] == (0x7C10).to_bytes(4, "little")
    assert len(made.code) == 0x1C


def test_a_gap_is_filled_with_what_does_nothing() -> None:
    assert code(".byte 1\n.balign 4\n.byte 2") == "0190909002"


def test_a_name_for_a_distance_and_for_the_current_address() -> None:
    made = assemble("start: .space 5\nhere: .equ size, . - start\n.equ next, here + size\nmov ecx, size\n.long next")
    assert made.constants == {"size": 5, "next": 10}
    assert made.code[5:] == b"\xb9\x05\0\0\0\x0a\0\0\0"


def test_a_label_in_memory_is_counted_from_rip_only_where_that_is_said() -> None:
    """ModRM 00 101 is RIP-relative, SIB 0x25 is absolute (Intel SDM vol. 2, 2.2.1.6)."""
    assert code("lea rsi, [rip + lab]\nlab: nop", origin=0x400000) == "488d3500000000" + "90"
    assert code("lea rsi, [lab]\nlab: nop", origin=0x400000) == "488d342508004000" + "90"
    assert code("mov eax, [rip + 8]\nnop") == "8b0508000000" + "90"  # a number is the distance itself
    assert code("mov eax, [rip + end - start]\nstart: nop\nend: nop") == "8b0501000000" + "9090"
    assert code("fstp dword ptr [0x1234]") == "d91c2534120000"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mov rax, lab", "48c7c0" + "00104000"),
        ("push lab", "68" + "00104000"),
        ("mov dword ptr [rbx], lab", "c703" + "00104000"),
        ("mov eax, [rbx + lab]", "8b83" + "00104000"),
        ("mov word ptr [lab], lab2 - lab", "66c70425" + "00104000" + "0100"),
        ("mov byte ptr [rax + lab], lab2 - lab", "c680" + "00104000" + "01"),
        ("add al, lab2 - lab", "0401"),
        ("int lab2 - lab", "cd01"),
    ],
)
def test_values_of_labels_in_every_place(source: str, expected: str) -> None:
    assert code(f"{source}\n.org 0x401000\nlab: nop\nlab2: nop", origin=0x400FE0).startswith(expected)


def test_a_value_that_needs_64_bits_takes_them() -> None:
    """MOV r64, imm64 where imm32 does not do (Intel SDM vol. 2, MOV): bit 31 would be extended."""
    assert code("mov rax, lab\nlab: nop", origin=0x80000000).startswith("48b80a00008000000000")
    with pytest.raises(AssemblyError, match="does not fit in 4 bytes"):
        code("push lab\nlab: nop", origin=0x80000000)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mov si, lab", "be207c"),
        ("mov esi, lab", "66be207c0000"),
        ("mov al, [lab]", "a0207c"),
        ("mov eax, [ebx + lab]", "67668b83207c0000"),
        ("mov [bx + di + lab], cl", "8889207c"),
        ("push lab", "68207c"),
        ("push dword lab", "6668207c0000"),
        ("jmp 0x08:lab", "ea207c0800"),
        ("jmp dword 0x08:lab", "66ea207c00000800"),
        ("call 0x08:lab", "9a207c0800"),
        ("lgdt [lab]", "0f0116207c"),
        ("call lab", "e81d00"),
        ("loop lab", "e21e"),
        ("jcxz lab", "e31e"),
        ("jecxz lab", "67e31d"),
        ("ret", "c3"),
        ("ret 4", "c20400"),
        ("retf 4", "ca0400"),
        ("iret", "cf"),
        ("rep movsd", "f366a5"),
    ],
)
def test_sixteen_bit_code(source: str, expected: str) -> None:
    """Intel SDM vol. 2, and QEMU's own boot code: no operand-size prefix but where a dword is said."""
    assert code(f"{source}\n.org 0x7c20\nlab: nop", 16, 0x7C00).startswith(expected)


def test_lines_and_spans_tell_what_lies_where() -> None:
    made = assemble("nop\n.byte 1\n.code32\nnop\n nop", bits=16, origin=0x10)
    assert [(line.address, line.number, line.text) for line in made.lines] == [
        (0x10, 1, "nop"),
        (0x11, 2, ".byte 1"),
        (0x12, 4, "nop"),
        (0x13, 5, "nop"),
    ]
    spans = [(span.start, span.end, span.bits) for span in made.spans]
    assert spans == [(0x10, 0x11, 16), (0x11, 0x12, 0), (0x12, 0x14, 32)]
    assert made.line_at(0x12) is made.lines[2]
    assert made.line_at(0x14) is None


def test_threads_do_not_disturb_one_another() -> None:
    sources = {n: "\n".join(f"mov eax, [rbx + {n * 100 + i}]\nadd ecx, {n}" for i in range(100)) for n in range(4)}
    alone = {n: assemble(source).code for n, source in sources.items()}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: (n % 4, assemble(sources[n % 4]).code), range(12)))
    assert all(alone[n] == code for n, code in together)
