"""Widths and segments are those that were written: by the encodings of the Intel SDM vol. 2, and by running them."""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy.accel.exits import Hlt
from kvmpy.asm import assemble
from kvmpy.errors import AssemblyError

ENCODED = [
    # A segment that is not the one meant without (SDM vol. 1, 3.7.4): 26 2e 36 3e 64 65
    (16, "mov al, ds:[bp]", "3e 8a 46 00"),
    (16, "mov al, ss:[bx]", "36 8a 07"),
    (16, "mov al, ds:[bp + si]", "3e 8a 42 00"),
    (32, "mov eax, ds:[esp + 4]", "3e 8b 44 24 04"),
    (32, "mov dword ptr ds:[ebp - 4], 1", "3e c7 45 fc 01 00 00 00"),
    (32, "add byte ptr ds:[ebp], 5", "3e 80 45 00 05"),
    (32, "mov al, ds:[ebx]", "8a 03"),
    (32, "mov al, ss:[ebp]", "8a 45 00"),
    (64, "mov al, fs:[rbp]", "64 8a 45 00"),
    # What is moved on the stack: 66 where it is not the mode's own (PUSH, POP, PUSHF, PUSHA)
    (32, "push dword ptr 5", "6a 05"),
    (32, "push word ptr 0x1234", "66 68 34 12"),
    (32, "push 0xffff", "68 ff ff 00 00"),
    (32, "push 0xffffff80", "6a 80"),
    (64, "push word ptr 5", "66 6a 05"),
    (64, "push qword ptr 0xffff", "68 ff ff 00 00"),
    (64, "push -1", "6a ff"),
    (16, "push 0xff80", "6a 80"),
    (16, "push dword ptr 5", "66 6a 05"),
    (16, "push fs", "0f a0"),
    (32, "push ds", "1e"),
    (32, "pushfw", "66 9c"),
    (64, "popfq", "9d"),
    (16, "pushad", "66 60"),
    (64, "push word ptr [rbx]", "66 ff 33"),
    (32, "pop [ebx]", "8f 03"),
    # Far addresses in memory (JMP, CALL: FF /5, FF /3)
    (16, "jmp dword ptr [bx]", "ff 2f"),
    (16, "jmp fword ptr [bx]", "66 ff 2f"),
    (32, "jmp fword ptr [ebx]", "ff 2b"),
    (32, "ljmp dword ptr [ebx]", "66 ff 2b"),
    (64, "call fword ptr [rbx]", "ff 1b"),
    # What was refused, though it is right
    (16, "aam", "d4 0a"),
    (32, "aad 16", "d5 10"),
    (64, "comisd xmm15, qword ptr [r8]", "66 45 0f 2f 38"),
    (64, "cmpps xmm1, xmm2, 1", "0f c2 ca 01"),
    (64, "cmpsd xmm1, xmm2, 6", "f2 0f c2 ca 06"),
    (64, "enter 0xffff, 31", "c8 ff ff 1f"),
    (32, "xlat", "d7"),
    (32, "iretw", "66 cf"),
    (32, "lock xchg eax, [ebx]", "f0 87 03"),
]


@pytest.mark.parametrize(("bits", "text", "code"), ENCODED)
def test_it_is_encoded_as_it_is_written(bits: int, text: str, code: str) -> None:
    assert assemble(text, bits=bits).code.hex(" ") == code


REFUSED = [
    (32, "lock add eax, [ebx]", "'add' cannot be locked; only what reads and writes memory can"),
    (32, "lock bt [ebx], eax", "'bt' cannot be locked"),
    (
        32,
        "jmp dword ptr 0x1000",
        "a size before a number says nothing here; leave it out, or give it to what lies",
    ),
    (64, "mov rax, dword ptr 5", "a size before a number says nothing here"),
    (64, "add qword ptr [rax], byte ptr 5", "a size before a number says nothing here"),
    (64, "push dword ptr 5", "64-bit code moves 2 or 8 bytes here, not 4"),
    (32, "push qword ptr 5", "32-bit code moves 2 or 4 bytes here, not 8"),
    (32, "push byte ptr 5", "32-bit code moves 2 or 4 bytes here, not 1"),
    (64, "push 0x80000000", "a push takes 4 bytes and extends their sign, which is not 0x80000000; push a register"),
    (16, "push 0x12345", "0x12345 does not fit in 2 bytes"),
    (32, "ljmp qword ptr [ebx]", "a far address is a dword (selector and word) or an fword (and dword)"),
    (64, "cmppd xmm1, xmm2, 9", "the last operand is a number from 0 to 7"),
    (16, "mov rax, 1", "rax is a register of 64-bit code; write .code64 before it"),
    (16, "mov eax, [rbx]", "column 10: rbx is a register of 64-bit code"),
    (32, "movaps xmm0, xmm9", "xmm9 is a register of 64-bit code"),
    (32, "mov cr8, eax", "cr8 is a register of 64-bit code"),
    (64, "serialize", "there is no such instruction here; write its bytes with .byte"),
    (64, "rdpid eax", "write its bytes with .byte"),
]


@pytest.mark.parametrize(("bits", "text", "said"), REFUSED)
def test_what_is_refused_names_a_way(bits: int, text: str, said: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        assemble(text, bits=bits)
    assert said in str(caught.value)


def test_the_segment_that_was_written_is_read(guests: Guests) -> None:
    source = """
        mov ax, 0x1000
        mov ds, ax
        mov bp, 0x100
        mov byte ptr ds:[bp], 'D'
        mov byte ptr ss:[bp], 'S'
        mov al, ds:[bp]
        mov ah, [bp]
        hlt
    """
    bed = guests.load(16, source)
    assert isinstance(bed.go(), Hlt)
    assert (bed.vcpu.regs.rax & 0xFFFF).to_bytes(2, "little") == b"DS"


@pytest.mark.parametrize(
    ("bits", "text", "moved"),
    [
        (16, "push 5", 2), (16, "push dword ptr 5", 4), (16, "pushad", 32), (32, "push 5", 4),
        (32, "push word ptr 5", 2), (32, "push ds", 4), (32, "pushfd", 4), (64, "push 0xffff", 8),
        (64, "push word ptr 5", 2), (64, "push fs", 8),
    ],
)  # fmt: skip
def test_as_much_is_pushed_as_was_written(guests: Guests, bits: int, text: str, moved: int) -> None:
    bed = guests.load(bits, f"{text}\nhlt")
    before = bed.vcpu.regs.rsp
    assert isinstance(bed.go(), Hlt)
    assert before - bed.vcpu.regs.rsp == moved
