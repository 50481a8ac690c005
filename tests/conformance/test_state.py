"""The state of a vCPU: what is set is read back, and a guest goes on elsewhere where it stopped."""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy.accel.exits import Hlt, IoIn, IoOut
from kvmpy.accel.testbed import CODE, DATA, Testbed
from kvmpy.cpu.fpu import FpuState, decode_fpu, encode_fpu
from kvmpy.cpu.msrs import Msr
from kvmpy.cpu.state import GENERAL_REGISTERS


def test_general_registers_round_trip(guests: Guests) -> None:
    bed = guests.load(64, "hlt")
    regs = bed.vcpu.regs
    for i, name in enumerate(n for n in GENERAL_REGISTERS if n not in ("rip", "rflags")):
        setattr(regs, name, 0x0101010101010101 * (i + 1))
    regs.rflags = 0x2 | 1 | 1 << 6 | 1 << 11
    bed.vcpu.regs = regs
    assert bed.vcpu.state.regs == regs


def test_the_guest_sees_the_registers(guests: Guests) -> None:
    bed = guests.load(64, "add rax, r15\nhlt")
    regs = bed.vcpu.regs
    regs.rax, regs.r15 = 40, 2
    bed.vcpu.regs = regs
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == 42


def test_registers_can_be_changed_between_exits(guests: Guests) -> None:
    bed = guests.load(64, "mov ebx, 1\nin al, 0xf0\nadd ebx, eax\nhlt")
    exit = bed.go()
    assert isinstance(exit, IoIn)
    exit.data = b"\x05"
    bed.vcpu.complete()
    regs = bed.vcpu.regs
    assert (regs.rip, regs.rax & 0xFF) == (CODE + 7, 5)
    regs.rax = 100
    bed.vcpu.regs = regs
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rbx == 101


def test_debug_registers_msrs_and_fpu_round_trip(guests: Guests) -> None:
    bed = guests.load(64, "hlt")
    state = bed.vcpu.state
    state.debug.db = [0x1000, 0x2000, 0x3000, 0x4000]
    state.msrs = {int(Msr.LSTAR): 0x123456, int(Msr.KERNEL_GS_BASE): 0x7FFF_0000}
    fpu = FpuState(control=0x27F, xmm=[i * 0x1111 for i in range(16)], st=[i << 63 for i in range(8)], tag=0xFF)
    state.xsave = encode_fpu(fpu, state.xsave)
    bed.vcpu.state = state
    back = bed.vcpu.state
    assert back.debug.db == state.debug.db
    assert {index: back.msrs[index] for index in state.msrs} == state.msrs
    assert decode_fpu(back.xsave).xmm == fpu.xmm
    assert decode_fpu(back.xsave).control == 0x27F


def copy_into(source: Testbed, target: Testbed) -> None:
    for region in source.memory.regions:
        target.memory.write(region.gpa, source.memory.read(region.gpa, region.size))
    target.vcpu.state = source.vcpu.state


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_guest_goes_on_in_another_vm(guests: Guests, bits: int) -> None:
    source = "mov ecx, 10\nxor eax, eax\nagain: add eax, ecx\nout 0xf0, al\ndec ecx\njnz again\nhlt"
    first = guests.load(bits, source)
    for _ in range(4):
        assert isinstance(first.go(), IoOut)
    second = guests.load(bits, "hlt")
    copy_into(first, second)
    while isinstance(exit := second.go(), IoOut):
        pass
    assert isinstance(exit, Hlt)
    assert second.vcpu.regs.rax & 0xFF == 55


def test_a_read_that_waits_for_its_answer_is_finished_by_the_copy(guests: Guests) -> None:
    first = guests.load(64, "in al, 0xf0\nmov bl, al\nhlt")
    exit = first.go()
    assert isinstance(exit, IoIn)
    exit.data = b"\x37"
    second = guests.load(64, "hlt")
    copy_into(first, second)
    assert isinstance(second.go(), Hlt)
    assert second.vcpu.regs.rbx & 0xFF == 0x37


@pytest.mark.needs("dirty_log")
def test_dirty_pages_are_those_the_guest_wrote(guests: Guests) -> None:
    bed = guests.load(64, f"mov rbx, {DATA}\nmov [rbx], al\nout 0xf0, al\nmov [rbx + 0x3000], al\nhlt")
    assert bed.vm.dirty_pages() == []
    bed.go()
    assert DATA & ~0xFFF in bed.vm.dirty_pages()
    bed.go()
    pages = bed.vm.dirty_pages()
    assert (DATA + 0x3000) & ~0xFFF in pages
    assert DATA & ~0xFFF not in pages


def test_translate_agrees_with_the_tables(guests: Guests) -> None:
    bed = guests.load(64, "hlt")
    assert bed.vcpu.translate(DATA + 5) == DATA + 5
    assert bed.vcpu.translate(1 << 40) is None
