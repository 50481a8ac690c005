"""The checks of VM entry on guest state, rule by rule (Intel SDM vol. 3, 26.3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvmpy.cpu.entry_checks import refused_state
from kvmpy.cpu.flags import CR0, CR4, EFER, RFLAGS
from kvmpy.cpu.modes import long_mode, protected_mode, real_mode, real_segment
from kvmpy.cpu.state import CpuState

MAKERS: dict[str, Callable[[], CpuState]] = {
    "reset": CpuState,
    "real": lambda: real_mode(0x100, segment=0x1234),
    "protected": lambda: protected_mode(0x10_0000, 0x9000),
    "long": lambda: long_mode(0x10_0000, 0x9000, 0x1000),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_good_state_is_not_refused(name: str) -> None:
    state = MAKERS[name]()
    assert refused_state(state.regs, state.sregs) == []


BROKEN: list[tuple[str, str, Any, str]] = [
    ("real", "cr0", CR0.ET | CR0.PG, "CR0.PG is set without CR0.PE"),
    ("real", "cr0", CR0.ET | CR0.NW, "CR0.NW is set without CR0.CD"),
    ("long", "cr4", 0, "EFER.LMA is set without CR0.PG and CR4.PAE"),
    ("long", "efer", EFER.LMA, "EFER.LMA is not EFER.LME, with CR0.PG set"),
    ("protected", "cr4", CR4.PCIDE, "CR4.PCIDE is set outside long mode"),
    ("long", "cr3", 1 << 52, "CR3 0x10000000000000 has bits above a physical address"),
    ("long", "cs.type", 2, "CS: type 0x2 is none that it may have"),
    ("long", "cs.type", 8, "CS: type 0x8 is none that it may have"),  # not accessed
    ("long", "cs.s", 0, "CS: S is 0"),
    ("long", "cs.present", 0, "CS: is not present"),
    ("long", "cs.db", 1, "CS: L and D are both set"),
    ("long", "ss.type", 1, "SS: type 0x1 is none that it may have"),  # read-only
    ("long", "ss.selector", 0x13, "SS: RPL 3 is not that of CS, 0"),
    ("long", "ds.type", 9, "DS: type 0x9 is none that it may have"),  # execute-only
    ("long", "ds.type", 2, "DS: type 0x2 is none that it may have"),  # not accessed
    ("long", "es.limit", 0xFFFF_F000, "ES: G is set, and limit 0xfffff000 does not end in 0xfff"),
    ("real", "es.limit", 0x10_0000, "ES: G is clear, and limit 0x100000 has more than 20 bits"),
    ("long", "ds.base", 1 << 32, "DS: base 0x100000000 has more than 32 bits"),
    ("long", "fs.base", 1 << 47, "FS: base 0x800000000000 is not canonical"),
    ("long", "tr.type", 9, "TR: type 0x9 is none that it may have"),  # not busy
    ("long", "tr.type", 3, "TR: type 0x3 is none that it may have"),  # a 16-bit TSS
    ("long", "tr.s", 1, "TR: S is 1"),
    ("long", "tr.unusable", 1, "TR: is unusable"),
    ("long", "tr.selector", 0x24, "TR: selector 0x24 points into the LDT"),
    ("long", "gdt.base", 1 << 47, "GDTR: base 0x800000000000 is not canonical"),
    ("long", "idt.limit", 0x1_0000, "IDTR: limit 0x10000 has more than 16 bits"),
    ("long", "rip", 1 << 47, "RIP 0x800000000000 is not canonical"),
    ("protected", "rip", 1 << 32, "RIP 0x100000000 has more than 32 bits outside 64-bit code"),
    ("long", "rflags", 0, "RFLAGS: bit 1 is clear"),
    ("long", "rflags", 0x2 | 1 << 3, "RFLAGS: reserved bits 0x8 are set"),
    ("long", "rflags", 0x2 | 1 << 22, "RFLAGS: reserved bits 0x400000 are set"),
]


@pytest.mark.parametrize(("mode", "name", "value", "complaint"), BROKEN)
def test_a_broken_rule_is_named_and_no_other(mode: str, name: str, value: int, complaint: str) -> None:
    state = MAKERS[mode]()
    owner: Any = state.regs if name in ("rip", "rflags") else state.sregs
    *way, last = name.split(".")
    for step in way:
        owner = getattr(owner, step)
    setattr(owner, last, int(value))
    assert refused_state(state.regs, state.sregs) == [complaint]


@pytest.mark.parametrize(("mode", "type_"), [("protected", 3), ("protected", 11), ("long", 11)])
def test_a_busy_tss_of_either_size_is_good_outside_long_mode(mode: str, type_: int) -> None:
    state = MAKERS[mode]()
    state.sregs.tr.type = type_
    assert refused_state(state.regs, state.sregs) == []


def test_unusable_data_segments_are_not_looked_at() -> None:
    state = MAKERS["long"]()
    state.sregs.ds.unusable, state.sregs.ds.type = 1, 0
    assert refused_state(state.regs, state.sregs) == []


def test_virtual_8086_mode_has_segments_of_its_own() -> None:
    state = protected_mode(0x100, 0x9000)
    state.regs.rflags |= RFLAGS.VM
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        setattr(state.sregs, name, real_segment(0x1000))
    assert refused_state(state.regs, state.sregs) == []
    state.sregs.es.base = 0
    assert refused_state(state.regs, state.sregs) == ["ES: base and limit are not those of virtual-8086 mode"]
    state.sregs.es.base = 0x10000
    state.sregs.cr0 &= ~int(CR0.PE)
    assert refused_state(state.regs, state.sregs) == ["RFLAGS.VM is set outside protected mode"]
