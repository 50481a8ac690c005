"""What ring 3 may not do, and how it is stopped (Intel SDM vol. 3, chapter 5)."""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy.accel.exits import IoIn, IoOut
from kvmpy.accel.testbed import CODE, IO_BITMAP, PT, USER_DATA, USER_STACK
from kvmpy.cpu.flags import CR4, RFLAGS

GP, PF = 13, 14
WINDOW = 0x1F_0000
pytestmark = pytest.mark.needs("exceptions_64")


@pytest.mark.parametrize(
    "instruction",
    [
        "hlt", "cli", "sti", "clts", "invd", "wbinvd", "mov rax, cr0", "mov cr0, rax", "mov rax, cr3", "mov cr3, rax",
        "mov cr4, rax", "mov rax, dr7", "mov dr7, rax", "lgdt [rsp]", "lidt [rsp]", "ltr ax", "lldt ax", "lmsw ax",
        "invlpg [rsp]", "rdmsr", "wrmsr",
    ],
)  # fmt: skip
def test_privileged_instructions_give_gp_0(guests: Guests, instruction: str) -> None:
    bed, exit = guests.run(64, f"{instruction}\nnop", ring=3)
    assert bed.vector(exit) == GP
    error, ip, cs = bed.frame(3)
    assert (error, ip, cs & 3) == (0, CODE, 3)


@pytest.mark.parametrize("instruction", ["in al, dx", "in eax, dx", "out dx, al", "out dx, eax", "insb", "outsb"])
def test_a_port_closed_in_the_bitmap_gives_gp_0(guests: Guests, instruction: str) -> None:
    bed, exit = guests.run(64, f"mov edx, 0x500\n{instruction}\nnop", ring=3)
    assert bed.vector(exit) == GP
    assert bed.frame(2) == [0, CODE + 5]


def test_a_port_open_in_the_bitmap_exits_from_ring_3(guests: Guests) -> None:
    bed, exit = guests.run(64, "mov al, 0x5a\nout 0xf0, al", ring=3)
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


def test_the_way_to_ring_0_takes_the_stack_of_the_tss_and_saves_the_user_s(guests: Guests) -> None:
    bed, _ = guests.run(64, "ud2", ring=3)
    ip, cs, _, rsp, ss = bed.frame(5)
    assert (ip, cs & 3, rsp, ss) == (CODE, 3, USER_STACK, USER_DATA)
    assert bed.vcpu.sregs.ss.dpl == 0


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
