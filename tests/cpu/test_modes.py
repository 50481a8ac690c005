"""The ready-made states: what a processor in that mode has, and what VM entry would check of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmpy.cpu.flags import CR0, CR4, EFER, RFLAGS
from kvmpy.cpu.modes import Mode, cpl, flat_gdt, long_mode, mode_of, protected_mode, real_mode
from kvmpy.cpu.segments import decode_segment
from kvmpy.cpu.state import CpuState, Segment, SystemRegisters
from kvmpy.errors import ConfigError
from kvmpy.record import replace

PROTECTED, LONG = CR0.PE, EFER.LME | EFER.LMA


@pytest.mark.parametrize(
    ("cr0", "efer", "rflags", "l", "d", "name", "bits"),
    [
        # Intel SDM vol. 3, 2.2 and figure 2-3; in long mode CS.L and CS.D choose (5.2.1).
        (0, 0, 0, 0, 0, "real", 16),
        (0, 0, 0, 1, 1, "real", 16),
        (PROTECTED, 0, 0, 0, 0, "protected-16", 16),
        (PROTECTED, 0, 0, 0, 1, "protected-32", 32),
        (PROTECTED, EFER.LME, 0, 1, 1, "protected-32", 32),
        (PROTECTED, 0, RFLAGS.VM, 0, 1, "virtual-8086", 16),
        (PROTECTED, LONG, 0, 0, 0, "compatibility-16", 16),
        (PROTECTED, LONG, 0, 0, 1, "compatibility-32", 32),
        (PROTECTED, LONG, 0, 1, 0, "long", 64),
        (PROTECTED, LONG, RFLAGS.VM, 1, 0, "long", 64),
    ],
)
def test_the_mode_of_a_state(cr0: int, efer: int, rflags: int, l: int, d: int, name: str, bits: int) -> None:  # noqa: E741
    sregs = SystemRegisters(cs=Segment(l=l, db=d), cr0=cr0, efer=efer)
    mode = mode_of(sregs, rflags)
    assert (mode, mode.bits) == (Mode(name), bits)


def test_the_privilege_level_is_that_of_the_stack() -> None:
    """24.4.1: SS.DPL; in real mode always 0, whatever the selectors hold."""
    user = SystemRegisters(cs=Segment(selector=0x33, dpl=3), ss=Segment(selector=0x2B, dpl=3), cr0=CR0.PE)
    assert cpl(user) == 3
    user.cr0 = 0
    assert cpl(user) == 0


MAKERS: dict[str, Callable[[], CpuState]] = {
    "real": lambda: real_mode(0x100, segment=0x1234, stack=0xFFFE),
    "protected-32": lambda: protected_mode(0x10_0000, 0x9000, gdt=0x800),
    "long": lambda: long_mode(0x10_0000, 0x9000, 0x1000, gdt=0x800),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_ready_made_state_is_of_its_mode_and_would_pass_vm_entry(name: str) -> None:
    """Intel SDM vol. 3, 26.3.1.1 (control registers), 26.3.1.2 (segments), 26.3.1.4 (RFLAGS)."""
    state = MAKERS[name]()
    sregs = state.sregs
    assert mode_of(sregs, state.regs.rflags) == name
    assert state.regs.rflags == 0x2  # bit 1 is one, interrupts are off
    assert sregs.cs.type in (9, 11, 13, 15)  # accessed code
    for segment in (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        assert segment.type == 3  # accessed, writable data
    for segment in (sregs.cs, sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        assert segment.s == segment.present == 1
        assert segment.dpl == segment.selector & 3 == 0 or name == "real"
        assert segment.g or segment.limit <= 0xFFFFF
        assert not segment.g or segment.limit & 0xFFF == 0xFFF
    assert (sregs.tr.type, sregs.tr.s, sregs.tr.present, sregs.tr.unusable) == (0xB, 0, 1, 0)
    assert sregs.ldt.unusable
    assert not sregs.cr0 & CR0.PG or sregs.cr0 & CR0.PE
    assert (sregs.efer & EFER.LMA != 0) == (sregs.efer & EFER.LME != 0 and sregs.cr0 & CR0.PG != 0)
    assert not sregs.efer & EFER.LMA or sregs.cr4 & CR4.PAE
    assert not (sregs.cs.l and sregs.cs.db)


def test_real_mode_segments_are_sixteen_times_their_selector() -> None:
    """SDM vol. 3, 20.1.1."""
    state = real_mode(0x100, segment=0x1234, stack=0xFFFE)
    assert {(s.selector, s.base, s.limit) for s in (state.sregs.cs, state.sregs.ss, state.sregs.ds)} == {
        (0x1234, 0x12340, 0xFFFF)
    }
    assert (state.regs.rip, state.regs.rsp) == (0x100, 0xFFFE)


@pytest.mark.parametrize("name", ["protected-32", "long"])
def test_segment_registers_are_what_loading_them_from_the_flat_gdt_would_give(name: str) -> None:
    sregs = MAKERS[name]().sregs
    gdt = flat_gdt()
    assert (sregs.gdt.base, sregs.gdt.limit) == (0x800, len(gdt) - 1)
    for segment in (sregs.cs, sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        at = segment.selector
        assert replace(segment, selector=0) == decode_segment(gdt[at : at + 8])


def test_the_flat_gdt() -> None:
    """Null, then what Linux boots with too: flat 32-bit code, data, 64-bit code, all accessed (SDM vol. 3, 3.4.5)."""
    entries = [flat_gdt()[at : at + 8] for at in range(0, len(flat_gdt()), 8)]
    assert [int.from_bytes(entry, "little") for entry in entries] == [
        0,
        0x00CF9B000000FFFF,
        0x00CF93000000FFFF,
        0x00AF9B000000FFFF,
    ]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: real_mode(0x10000), "real-mode entry 0x10000 does not fit in 16 bits"),
        (lambda: real_mode(0, segment=-1), "real-mode segment -0x1"),
        (lambda: real_mode(0, stack=1 << 20), "real-mode stack"),
        (lambda: protected_mode(1 << 32, 0), "protected-mode entry"),
        (lambda: protected_mode(0, 0, gdt=-8), "GDT address"),
        (lambda: long_mode(1 << 47, 0, 0), "not canonical"),
        (lambda: long_mode(0, 0, 0x1008), "not 4 KiB-aligned"),
        (lambda: long_mode(0, 0, 1 << 52), "CR3 0x10000000000000 does not fit in 52 bits"),
    ],
)
def test_addresses_that_cannot_be(make: Callable[[], CpuState], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()
