"""What ring 3 may not do, and how it is stopped (Intel SDM vol. 3, chapter 5)."""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy.accel.exits import IoIn, IoOut
from kvmpy.accel.testbed import CODE, DATA, IDT, IO_BITMAP, PT, USER_DATA, USER_STACK
from kvmpy.cpu.flags import CR0, CR4, RFLAGS

UD, NM, GP, PF = 6, 7, 13, 14
RINGS = [pytest.param(bits, marks=pytest.mark.needs(f"exceptions_{bits}")) for bits in (32, 64)]
WINDOW = 0x1F_0000
pytestmark = pytest.mark.needs("exceptions_64")


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize(
    "instruction",
    [
        "hlt", "cli", "sti", "clts", "invd", "wbinvd", "mov rax, cr0", "mov cr0, rax", "mov rax, cr3", "mov cr3, rax",
        "mov cr4, rax", "mov rax, dr7", "mov dr7, rax", "lgdt [rsp]", "lidt [rsp]", "ltr ax", "lldt ax", "lmsw ax",
        "invlpg [rsp]", "rdmsr", "wrmsr",
    ],
)  # fmt: skip
def test_privileged_instructions_give_gp_0(guests: Guests, instruction: str, bits: int) -> None:
    if bits == 32:
        instruction = instruction.replace("rax", "eax").replace("rsp", "esp")
    bed, exit = guests.run(bits, f"{instruction}\nnop", ring=3)
    assert bed.vector(exit) == GP
    error, ip, cs = bed.frame(3)
    assert (error, ip, cs & 3) == (0, CODE, 3)


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("instruction", ["in al, dx", "in eax, dx", "out dx, al", "out dx, eax", "insb", "outsb"])
def test_a_port_closed_in_the_bitmap_gives_gp_0(guests: Guests, instruction: str, bits: int) -> None:
    bed, exit = guests.run(bits, f"mov edx, 0x500\n{instruction}\nnop", ring=3)
    assert bed.vector(exit) == GP
    assert bed.frame(2) == [0, CODE + 5]


@pytest.mark.parametrize("bits", RINGS)
def test_a_port_open_in_the_bitmap_exits_from_ring_3(guests: Guests, bits: int) -> None:
    bed, exit = guests.run(bits, "mov al, 0x5a\nout 0xf0, al", ring=3)
    assert isinstance(exit, IoOut)
    assert exit.value == 0x5A
    assert bed.vcpu.sregs.cs.selector & 3 == 3


def test_a_wide_access_needs_every_port_it_covers(guests: Guests) -> None:
    """Ports 0xfe and 0xff are open, 0x100 is closed (SDM vol. 1, 19.5.2)."""
    bed, exit = guests.run(64, "mov edx, 0xfe\nin ax, dx\nin eax, dx", ring=3)
    assert isinstance(exit, IoIn)
    assert (exit.port, exit.size) == (0xFE, 2)
    assert bed.vector(bed.go()) == GP


def test_opening_a_port_in_the_bitmap_lets_ring_3_use_it(guests: Guests) -> None:
    bed = guests.load(64, "mov edx, 0x500\nout dx, al", ring=3)
    bed.memory.write_int(IO_BITMAP + 0x500 // 8, 1, 0xFE)
    exit = bed.go()
    assert isinstance(exit, IoOut)
    assert exit.port == 0x500


@pytest.mark.needs("iopl_ring3")
def test_iopl_3_opens_all_ports(guests: Guests) -> None:
    bed = guests.load(64, "mov edx, 0x500\nout dx, al", ring=3)
    regs = bed.vcpu.regs
    regs.rflags |= int(RFLAGS.IOPL1 | RFLAGS.IOPL2)
    bed.vcpu.regs = regs
    exit = bed.go()
    assert isinstance(exit, IoOut)
    assert exit.port == 0x500


@pytest.mark.needs("tsd_ring3")
def test_tsd_keeps_rdtsc_from_ring_3(guests: Guests) -> None:
    bed = guests.load(64, "rdtsc\nnop", ring=3)
    sregs = bed.vcpu.sregs
    sregs.cr4 |= CR4.TSD
    bed.vcpu.sregs = sregs
    assert bed.vector(bed.go()) == GP


def test_supervisor_pages_are_closed(guests: Guests) -> None:
    bed = guests.load(64, f"mov rbx, {WINDOW}\nmov rax, [rbx]\nnop", ring=3)
    bed.memory.write_int(PT + (WINDOW >> 12) * 8, 8, WINDOW | 3)
    assert bed.vector(bed.go()) == PF
    assert bed.frame(1)[0] == 5  # present, user


@pytest.mark.parametrize("bits", RINGS)
def test_the_way_to_ring_0_takes_the_stack_of_the_tss_and_saves_the_user_s(guests: Guests, bits: int) -> None:
    bed, _ = guests.run(bits, "ud2", ring=3)
    ip, cs, _, rsp, ss = bed.frame(5)
    assert (ip, cs & 3, rsp, ss) == (CODE, 3, USER_STACK, USER_DATA)
    assert bed.vcpu.sregs.ss.dpl == 0


@pytest.mark.needs("int_n_ring3")
@pytest.mark.parametrize("bits", RINGS)
def test_int_n_from_ring_3_saves_the_user_s_stack(guests: Guests, bits: int) -> None:
    """Through a gate of DPL 3 (SDM vol. 3, 6.12.1.1)."""
    bed, exit = guests.run(bits, "int 0x42\nnop", ring=3)
    assert bed.vector(exit) == 0x42
    ip, cs, _, sp, ss = bed.frame(5)
    assert (ip, cs & 3, sp, ss) == (CODE + 2, 3, USER_STACK, USER_DATA)
    assert not bed.vcpu.sregs.cs.selector & 3


@pytest.mark.needs("int_n_ring3")
@pytest.mark.parametrize("bits", RINGS)
def test_int_n_through_a_gate_of_dpl_0_is_gp_with_its_vector(guests: Guests, bits: int) -> None:
    """SDM vol. 3, 6.12.1.1: the gate's DPL keeps ring 3 from calling a handler of hardware's; 6.13: the IDT flag."""
    bed = guests.load(bits, "int 0x42\nnop", ring=3)
    at = IDT + 0x42 * bits // 4 + 5
    bed.memory.write_int(at, 1, bed.memory.read_int(at, 1) & 0x9F)
    assert bed.vector(bed.go()) == GP
    assert bed.frame(2) == [0x42 << 3 | 2, CODE]


@pytest.mark.needs("ts_ring3")
@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("instruction", ["fninit", "xorps xmm0, xmm0"])
def test_task_switched_gives_nm_in_ring_3(guests: Guests, instruction: str, bits: int) -> None:
    bed = guests.load(bits, f"nop\n{instruction}", ring=3)
    sregs = bed.vcpu.sregs
    sregs.cr0 |= CR0.TS
    sregs.cr4 |= CR4.OSFXSR
    bed.vcpu.sregs = sregs
    assert bed.vector(bed.go()) == NM
    assert bed.frame(1)[0] == CODE + 1


@pytest.mark.needs("exceptions_32")
def test_a_data_segment_of_ring_0_is_closed_to_32_bit_ring_3(guests: Guests) -> None:
    """SDM vol. 3, 5.5: a data segment is reached when its DPL is not below CPL and RPL; the error code names it."""
    bed, exit = guests.run(32, "mov ax, 0x10\nmov ds, ax", ring=3)
    assert bed.vector(exit) == GP
    assert bed.frame(2) == [0x10, CODE + 4]


@pytest.mark.needs("exceptions_32")
def test_32_bit_ring_3_computes_and_reaches_its_memory(guests: Guests) -> None:
    bed, exit = guests.run(32, f"mov ebx, {DATA}\nmov dword ptr [ebx], 41\ninc dword ptr [ebx]\nud2", ring=3)
    assert bed.vector(exit) == UD
    assert bed.memory.read_int(DATA, 4) == 42


@pytest.mark.needs("syscall")
def test_syscall_goes_to_lstar_and_saves_rip_and_rflags(guests: Guests) -> None:
    from kvmpy.accel.testbed import HANDLERS, USER_CODE64
    from kvmpy.cpu.msrs import Msr

    bed = guests.load(64, "syscall\nnop", ring=3)
    state = bed.initial_state(ring=3)
    state.sregs.efer |= 1
    state.msrs = {
        int(Msr.STAR): 0x18 << 32 | (USER_CODE64 - 16) << 48,
        int(Msr.LSTAR): HANDLERS + 4 * 0x50,
        int(Msr.SFMASK): 0x200,
    }
    bed.vcpu.state = state
    assert bed.vector(bed.go()) == 0x50
    assert bed.vcpu.regs.rcx == CODE + 2
    assert bed.vcpu.sregs.cs.selector & 3 == 0


def test_unprivileged_instructions_just_run(guests: Guests) -> None:
    _, exit = guests.run(64, "mov eax, 6\nmov ecx, 7\nmul ecx\nout 0xf0, eax", ring=3)
    assert isinstance(exit, IoOut)
    assert exit.value == 42
