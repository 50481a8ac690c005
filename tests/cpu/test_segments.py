"""Descriptors, gates and task-state segments, bit by bit as the manual draws them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.cpu.segments import (
    Gate,
    Gdt,
    Idt,
    SystemType,
    Tss,
    code_segment,
    data_segment,
    decode_segment,
    encode_segment,
    tss_segment,
)
from kvmpy.cpu.state import Segment
from kvmpy.errors import ConfigError

bit = st.integers(0, 1)


@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        # Linux's own boot GDT (arch/x86/include/asm/desc_defs.h): flat code and data of each width.
        (code_segment(bits=32), 0x00CF9B000000FFFF),
        (data_segment(), 0x00CF93000000FFFF),
        (code_segment(bits=64), 0x00AF9B000000FFFF),
        (code_segment(bits=64, dpl=3), 0x00AFFB000000FFFF),
        (data_segment(dpl=3), 0x00CFF3000000FFFF),
        # Base 31:24 in the top byte, 23:16 in bits 39:32, limit 19:16 in bits 51:48 (SDM vol. 3, figure 3-8).
        (Segment(base=0x12345678, limit=0xABCDE, type=3, db=1), 0x124A_9334_5678_BCDE),
        (code_segment(bits=16, limit=0xFFFF), 0x00009B000000FFFF),
        (tss_segment(0x6000), 0x0000_8900_6000_0067),
    ],
)
def test_descriptors(segment: Segment, descriptor: int) -> None:
    assert encode_segment(segment) == descriptor.to_bytes(8, "little")


segments = st.builds(
    Segment,
    selector=st.just(0),
    base=st.integers(0, 0xFFFFFFFF),
    limit=st.integers(0, 0xFFFFF),
    type=st.integers(0, 15),
    s=bit,
    dpl=st.integers(0, 3),
    present=st.just(1),
    avl=bit,
    l=bit,
    db=bit,
)


@given(segments)
def test_what_is_encoded_can_be_decoded(segment: Segment) -> None:
    assert decode_segment(encode_segment(segment)) == segment


@given(segments, st.integers(0, 0xFFFFF))
def test_with_g_the_limit_counts_pages(segment: Segment, pages: int) -> None:
    segment.g, segment.limit = 1, pages << 12 | 0xFFF
    encoded = int.from_bytes(encode_segment(segment), "little")
    assert (encoded & 0xFFFF) | (encoded >> 48 & 0xF) << 16 == pages
    assert encoded >> 55 & 1 == 1
    assert decode_segment(encode_segment(segment)) == segment


@given(st.integers(0, (1 << 64) - 1))
def test_a_system_segment_of_long_mode_has_a_base_of_64_bits(base: int) -> None:
    """Figure 7-4: the upper half in bytes 8 to 11, then zero."""
    encoded = encode_segment(tss_segment(base), bits=64)
    assert (encoded[8:12], encoded[12:]) == ((base >> 32).to_bytes(4, "little"), bytes(4))
    assert decode_segment(encoded).base == base


@pytest.mark.parametrize(
    "segment",
    [
        Segment(base=1 << 32),
        Segment(limit=1 << 20),
        Segment(limit=0x12345, g=1),
        Segment(base=-1),
    ],
)
def test_segments_that_no_descriptor_can_say(segment: Segment) -> None:
    with pytest.raises(ConfigError, match="segment"):
        encode_segment(segment)


def test_a_gdt_gives_selectors_with_their_privilege() -> None:
    gdt = Gdt(bits=64)
    selectors = [gdt.add(s) for s in (code_segment(bits=64), data_segment(dpl=3), tss_segment(0x1234), data_segment())]
    assert selectors == [0x08, 0x13, 0x18, 0x28]  # a TSS takes two entries in long mode
    assert gdt.register(0x800).limit == 8 * 6 - 1
    assert gdt.segment(0x18).type == SystemType.TSS_BUSY  # loading makes it busy (7.2.2)
    for wrong in (0, 0x30, 0x1000):
        with pytest.raises(ConfigError, match="not in this GDT"):
            gdt.segment(wrong)


@pytest.mark.parametrize(
    ("bits", "gate", "raw"),
    [
        # Offset 15:0, selector, IST, type and DPL, offset 31:16 (figure 6-2); in long mode 63:32 and zero (figure 6-8).
        (32, Gate(0x08, 0x12345678), "7856 0800 00 8e 3412"),
        (32, Gate(0x08, 0x12345678, type=SystemType.TRAP_GATE, dpl=3), "7856 0800 00 ef 3412"),
        (64, Gate(0x18, 0x1122334455667788, ist=5), "8877 1800 05 8e 6655 44332211 00000000"),
        (64, Gate(0x18, 1, present=0), "0100 1800 00 0e 0000 00000000 00000000"),
    ],
)
def test_gates(bits: int, gate: Gate, raw: str) -> None:
    assert gate.encode(bits) == bytes.fromhex(raw)
    assert Gate.decode(bytes.fromhex(raw)) == gate


@given(
    st.builds(
        Gate, st.integers(0, 0xFFFF), st.integers(0, (1 << 64) - 1), type=st.integers(0, 15), dpl=st.integers(0, 3),
        ist=st.integers(0, 7), present=bit,
    )
)  # fmt: skip
def test_gates_of_long_mode_go_round(gate: Gate) -> None:
    assert Gate.decode(gate.encode(64)) == gate


@pytest.mark.parametrize("gate", [Gate(1 << 16, 0), Gate(8, 1 << 32), Gate(8, 0, dpl=4), Gate(8, 0, ist=1)])
def test_gates_that_do_not_fit_32_bits(gate: Gate) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        gate.encode(32)


def test_an_idt_ends_at_its_highest_vector() -> None:
    idt = Idt(bits=32)
    assert idt.register(0).limit == 0
    idt.set(3, Gate(8, 0x1000))
    assert idt.encode() == bytes(24) + Gate(8, 0x1000).encode(32)
    assert idt.register(0x5000).limit == 31
    with pytest.raises(ConfigError, match="vector 256"):
        idt.set(256, Gate(8, 0))
    with pytest.raises(ConfigError, match="real mode"):
        Idt(bits=16)


def test_a_tss_of_long_mode() -> None:
    """Figure 7-11: RSP0 at 4, RSP1 at 12, IST1 at 36, the I/O map's base at 102."""
    raw = Tss(stacks=[0x1111, 0x2222, 0x3333], ist=[0xA0 + n for n in range(7)]).encode(64)
    assert len(raw) == 0x68
    assert [int.from_bytes(raw[at : at + 8], "little") for at in (4, 12, 20)] == [0x1111, 0x2222, 0x3333]
    assert [int.from_bytes(raw[36 + 8 * n : 44 + 8 * n], "little") for n in range(7)] == [0xA0 + n for n in range(7)]
    assert int.from_bytes(raw[102:104], "little") == 0x68


def test_a_tss_of_32_bits() -> None:
    """Figure 7-2: ESP0 at 4, SS0 at 8, the I/O map's base at 102."""
    raw = Tss(stacks=[0x1111, 0, 0], ss0=0x10).encode(32)
    assert (raw[4:8], raw[8:10], raw[102:104]) == (b"\x11\x11\0\0", b"\x10\0", b"\x68\0")


@given(st.sets(st.integers(0, 0xFFFF), max_size=20))
def test_the_io_bitmap_opens_just_the_ports_that_are_named(ports: set[int]) -> None:
    """SDM vol. 1, 19.5.2: a bit for each port, set where it is closed, and a byte of ones behind them."""
    raw = Tss(open_ports=sorted(ports)).encode(64)
    bitmap = raw[0x68:]
    assert len(bitmap) == 8192 + 1
    assert bitmap[-1] == 0xFF
    opened = {port for port in range(0x10000) if not bitmap[port // 8] >> port % 8 & 1}
    assert opened == ports


def test_a_port_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="port 0x10000"):
        Tss(open_ports=[0x10000]).encode(64)
