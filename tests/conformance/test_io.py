"""IN and OUT, in every size and form (Intel SDM vol. 2, IN, INS, OUT, OUTS; vol. 1, 19.3)."""

from __future__ import annotations

import pytest
from conftest import Guests, exits_until_hlt

from kvmpy.accel.exits import Hlt, IoIn, IoOut
from kvmpy.accel.testbed import DATA

MODES = (16, 32, 64)
REGISTER = {1: "al", 2: "ax", 4: "eax"}
SUFFIX = {1: "b", 2: "w", 4: "d"}
PORT = 0xF0
POINTERS = {16: ("si", "di", "cx"), 32: ("esi", "edi", "ecx"), 64: ("rsi", "rdi", "rcx")}


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.parametrize("size", REGISTER)
@pytest.mark.parametrize("port", [f"{PORT:#x}", "dx"])
def test_out_gives_port_size_and_value(guests: Guests, bits: int, size: int, port: str) -> None:
    bed, exit = guests.run(bits, f"mov eax, 0x89abcdef\nmov dx, {PORT}\nout {port}, {REGISTER[size]}\nhlt")
    assert isinstance(exit, IoOut)
    assert (exit.port, exit.size, exit.count) == (PORT, size, 1)
    assert exit.value == 0x89ABCDEF & (1 << 8 * size) - 1
    assert isinstance(bed.go(), Hlt)


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.parametrize(("size", "expected"), [(1, 0x11111144), (2, 0x11113344), (4, 0x11223344)])
@pytest.mark.parametrize("port", [f"{PORT:#x}", "dx"])
def test_in_fills_only_its_part_of_eax(guests: Guests, bits: int, size: int, expected: int, port: str) -> None:
    bed, exit = guests.run(bits, f"mov eax, 0x11111111\nmov dx, {PORT}\nin {REGISTER[size]}, {port}\nhlt")
    assert isinstance(exit, IoIn)
    assert (exit.port, exit.size, exit.count) == (PORT, size, 1)
    exit.data = (0x11223344).to_bytes(4, "little")[:size]
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == expected


def test_in_to_eax_clears_the_upper_half_of_rax(guests: Guests) -> None:
    bed, exit = guests.run(64, f"mov rax, -1\nin eax, {PORT}\nhlt")
    assert isinstance(exit, IoIn)
    exit.data = b"\x01\0\0\0"
    bed.go()
    assert bed.vcpu.regs.rax == 1  # a 32-bit result is zero-extended (SDM vol. 1, 3.4.1.1)


def test_an_unanswered_in_reads_as_all_ones(guests: Guests) -> None:
    bed, exit = guests.run(32, f"in eax, {PORT}\nhlt")
    assert isinstance(exit, IoIn)
    bed.go()
    assert bed.vcpu.regs.rax == 0xFFFFFFFF


@pytest.mark.parametrize("port", [0x100, 0x3F8, 0xCF8, 0xFFFF])
def test_dx_reaches_all_ports(guests: Guests, port: int) -> None:
    _, exit = guests.run(16, f"mov dx, {port}\nout dx, al\nhlt")
    assert isinstance(exit, IoOut)
    assert exit.port == port


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.parametrize("size", SUFFIX)
def test_outs_sends_memory_and_advances_the_pointer(guests: Guests, bits: int, size: int) -> None:
    source, _, _ = POINTERS[bits]
    bed = guests.load(bits, f"mov {source}, {DATA}\nmov dx, {PORT}\nouts{SUFFIX[size]}\nhlt")
    bed.memory.write(DATA, b"\x11\x22\x33\x44")
    exit = bed.go()
    assert isinstance(exit, IoOut)
    assert (exit.port, exit.size, exit.data) == (PORT, size, b"\x11\x22\x33\x44"[:size])
    bed.go()
    assert bed.vcpu.regs.rsi & 0xFFFF == DATA + size


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.parametrize("size", SUFFIX)
def test_ins_stores_to_memory_and_advances_the_pointer(guests: Guests, bits: int, size: int) -> None:
    _, target, _ = POINTERS[bits]
    bed, exit = guests.run(bits, f"mov {target}, {DATA}\nmov dx, {PORT}\nins{SUFFIX[size]}\nhlt")
    assert isinstance(exit, IoIn)
    exit.data = b"\xa1\xb2\xc3\xd4"[:size]
    assert isinstance(bed.go(), Hlt)
    assert bed.memory.read(DATA, 4) == exit.data.ljust(4, b"\0")
    assert bed.vcpu.regs.rdi & 0xFFFF == DATA + size


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.parametrize("size", SUFFIX)
def test_rep_outs_sends_count_items(guests: Guests, bits: int, size: int) -> None:
    source, _, counter = POINTERS[bits]
    bed = guests.load(bits, f"mov {source}, {DATA}\nmov {counter}, 5\nmov dx, {PORT}\nrep outs{SUFFIX[size]}\nhlt")
    content = bytes(range(0x40, 0x40 + 5 * size))
    bed.memory.write(DATA, content)
    found = exits_until_hlt(bed)
    assert all(isinstance(exit, IoOut) and exit.size == size for exit in found)
    assert b"".join(exit.data for exit in found if isinstance(exit, IoOut)) == content
    assert bed.vcpu.regs.rcx == 0
    assert bed.vcpu.regs.rsi & 0xFFFF == DATA + 5 * size


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.parametrize("size", SUFFIX)
def test_rep_ins_stores_count_items(guests: Guests, bits: int, size: int) -> None:
    _, target, counter = POINTERS[bits]
    bed = guests.load(bits, f"mov {target}, {DATA}\nmov {counter}, 5\nmov dx, {PORT}\nrep ins{SUFFIX[size]}\nhlt")
    content = bytes(range(0x60, 0x60 + 5 * size))
    given = 0
    while isinstance(exit := bed.go(), IoIn):
        assert exit.size == size
        exit.data = content[given : given + exit.size * exit.count]
        given += len(exit.data)
    assert isinstance(exit, Hlt)
    assert bed.memory.read(DATA, len(content) + 1) == content + b"\0"
    assert bed.vcpu.regs.rcx == 0


def test_the_direction_flag_turns_string_output_round(guests: Guests) -> None:
    bed = guests.load(64, f"std\nmov rsi, {DATA + 2}\nmov ecx, 3\nmov dx, {PORT}\nrep outsb\nhlt")
    bed.memory.write(DATA, b"abc")
    found = exits_until_hlt(bed)
    assert b"".join(exit.data for exit in found if isinstance(exit, IoOut)) == b"cba"
    assert bed.vcpu.regs.rsi == DATA - 1


@pytest.mark.parametrize("bits", MODES)
def test_rep_with_a_count_of_zero_does_nothing(guests: Guests, bits: int) -> None:
    source, _, counter = POINTERS[bits]
    bed, exit = guests.run(bits, f"mov {source}, {DATA}\nxor {counter}, {counter}\nrep outsb\nhlt")
    assert isinstance(exit, Hlt)
    assert bed.vcpu.regs.rsi & 0xFFFF == DATA
