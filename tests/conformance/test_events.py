"""Events from outside: interrupts, NMIs, exceptions put in by the host; single steps and breakpoints; kicks."""

from __future__ import annotations

import threading

import pytest
from conftest import Guests

from kvmpy.accel.base import Watchpoint
from kvmpy.accel.exits import Debug, Hlt, Interrupted, IoIn, IoOut
from kvmpy.accel.testbed import CODE, DATA, PT
from kvmpy.asm import assemble
from kvmpy.errors import ConfigError

NMI, UD, GP, PF = 2, 6, 13, 14
WINDOW = 0x1F_0000
DB = 1
IF = 1 << 9
MODES = (16, 32, 64)


@pytest.mark.needs("interrupt")
@pytest.mark.parametrize("bits", MODES)
def test_an_interrupt_arrives_through_its_vector(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, "nop\nnop\nhlt")
    regs = bed.vcpu.regs
    regs.rflags |= IF
    bed.vcpu.regs = regs
    bed.vcpu.interrupt(0x40)
    assert bed.vector(bed.go()) == 0x40
    assert bed.frame(1)[0] == CODE  # before the first instruction
    assert not bed.vcpu.regs.rflags & IF  # an interrupt gate clears IF (SDM vol. 3, 6.12.1.2)


@pytest.mark.needs("nmi")
@pytest.mark.parametrize("bits", MODES)
def test_an_nmi_arrives_with_interrupts_off(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, "nop\nnop\nhlt")
    bed.vcpu.nmi()
    assert bed.vector(bed.go()) == NMI


@pytest.mark.needs("exceptions_64")
def test_the_host_can_raise_an_exception_with_an_error_code(guests: Guests) -> None:
    bed = guests.load(64, "nop\nhlt")
    bed.vcpu.raise_exception(GP, 0x1230)
    assert bed.vector(bed.go()) == GP
    assert bed.frame(2) == [0x1230, CODE]


@pytest.mark.needs("exceptions_64")
def test_the_host_can_raise_an_exception_without_an_error_code(guests: Guests) -> None:
    bed = guests.load(64, "nop\nhlt")
    bed.vcpu.raise_exception(UD)
    assert bed.vector(bed.go()) == UD
    assert bed.frame(1)[0] == CODE


@pytest.mark.needs("chips")
def test_a_line_of_the_kernel_s_irqchip_interrupts(guests: Guests) -> None:
    """The PIC set up for vectors from 0x50 on, everything but line 3 masked, then the line is raised."""
    source = "\n".join(
        f"mov al, {value}\nout {port}, al"
        for port, value in [(0x20, 0x11), (0x21, 0x50), (0x21, 4), (0x21, 1), (0x21, 0xF7)]
    )
    bed = guests.load(64, source + "\nout 0xf0, al\nsti\nhlt\nhlt", chips=True)
    exit = bed.go()
    assert isinstance(exit, IoOut)
    assert exit.port == 0xF0
    bed.vm.set_irq(3, 1)
    assert bed.vector(bed.go()) == 0x53


@pytest.mark.needs("single_step")
@pytest.mark.parametrize("bits", MODES)
def test_single_step_stops_behind_each_instruction(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, "nop\nmov al, 5\ninc al\nhlt")
    for expected in (CODE + 1, CODE + 3, CODE + 5):
        exit = bed.vcpu.step()
        assert isinstance(exit, Debug)
        assert (exit.exception, exit.pc) == (DB, expected)
        assert exit.dr6 & 1 << 14  # BS (SDM vol. 3, 17.2.3)
    assert bed.vcpu.regs.rax & 0xFF == 6
    assert isinstance(bed.go(), Hlt)


@pytest.mark.needs("single_step")
def test_a_step_over_an_access_gives_the_access(guests: Guests) -> None:
    bed = guests.load(64, "out 0xf0, al\nhlt")
    exit = bed.vcpu.step()
    assert isinstance(exit, IoOut)


@pytest.mark.needs("single_step", "exceptions_64")
@pytest.mark.parametrize(("entry", "error"), [(0, 0x10), (WINDOW | 3 | 1 << 63, 0x11)])
def test_a_step_onto_code_that_may_not_be_fetched_is_one_page_fault(guests: Guests, entry: int, error: int) -> None:
    bed = guests.load(64, "nop")
    bed.memory.write_int(PT + (WINDOW >> 12) * 8, 8, entry)
    regs = bed.vcpu.regs
    regs.rip = WINDOW
    bed.vcpu.regs = regs
    exit = bed.vcpu.step()
    while isinstance(exit, Debug):  # some hosts stop behind the delivery
        exit = bed.go()
    assert bed.vector(exit) == PF
    assert bed.frame(2) == [error, WINDOW]


@pytest.mark.needs("breakpoint")
@pytest.mark.parametrize("bits", MODES)
def test_a_breakpoint_stops_before_its_instruction_each_time(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, "mov cl, 3\nagain: nop\ndec cl\njnz again\nhlt")
    bed.vcpu.breakpoints = [CODE + 2]
    for left in (3, 2, 1):
        exit = bed.go()
        assert isinstance(exit, Debug)
        assert exit.pc == CODE + 2
        assert bed.vcpu.regs.rcx & 0xFF == left
    assert isinstance(bed.go(), Hlt)


@pytest.mark.needs("breakpoint")
@pytest.mark.parametrize("code", ["out 0x99, al", "in al, 0x99"])
def test_a_breakpoint_behind_an_instruction_that_exits(guests: Guests, code: str) -> None:
    """It stands there when it comes back, and was not told yet."""
    bed = guests.load(64, f"{code}\nnop\n{code}\nhlt")
    bed.vcpu.breakpoints = [CODE + 2, CODE + 5]
    for address in bed.vcpu.breakpoints:
        assert isinstance(bed.go(), IoOut | IoIn)
        exit = bed.go()
        assert isinstance(exit, Debug)
        assert exit.pc == address
    assert isinstance(bed.go(), Hlt)


@pytest.mark.needs("breakpoint")
def test_a_breakpoint_is_told_again_when_rip_was_set(guests: Guests) -> None:
    bed = guests.load(64, "nop\nnop\nhlt")
    bed.vcpu.breakpoints = [CODE + 1]
    assert isinstance(bed.go(), Debug)
    bed.vcpu.regs = bed.vcpu.regs
    assert isinstance(bed.go(), Debug)
    assert isinstance(bed.go(), Hlt)


@pytest.mark.needs("breakpoint", "single_step")
def test_a_breakpoint_that_a_step_arrived_at_is_not_told_again(guests: Guests) -> None:
    bed = guests.load(64, "nop\nnop\nhlt")
    bed.vcpu.breakpoints = [CODE + 1]
    assert isinstance(bed.vcpu.step(), Debug)
    assert isinstance(bed.go(), Hlt)


def test_an_interrupt_that_waits_is_not_replaced(guests: Guests) -> None:
    bed = guests.load(64, "sti\nnop\nhlt")
    bed.vcpu.interrupt(0x40)
    with pytest.raises(ConfigError, match=r"interrupt 0x41: .*interruptible"):
        bed.vcpu.interrupt(0x41)


@pytest.mark.needs("breakpoint")
def test_breakpoints_can_be_removed(guests: Guests) -> None:
    bed = guests.load(64, "nop\nnop\nnop\nhlt")
    bed.vcpu.breakpoints = [CODE + 1, CODE + 2]
    assert isinstance(bed.go(), Debug)
    bed.vcpu.breakpoints = []
    assert isinstance(bed.go(), Hlt)


@pytest.mark.needs("watchpoint")
@pytest.mark.parametrize("bits", MODES)
def test_a_watchpoint_stops_behind_each_write(guests: Guests, bits: int) -> None:
    """A data breakpoint is a trap (SDM vol. 3, 17.3.1.2): it comes behind the instruction, which happened once."""
    source = f"""
        mov bx, {DATA}
        mov al, [bx]
        inc byte ptr [bx]
        mov byte ptr [bx + 4], 9
        inc byte ptr [bx]
        hlt
    """
    pointer = {16: "bx", 32: "ebx", 64: "rbx"}[bits]
    code = assemble(source.replace("[bx", f"[{pointer}").replace("mov bx", f"mov {pointer}"), bits=bits, origin=CODE)
    bed = guests.load(bits, "hlt")
    bed.load(code.code)
    bed.vcpu.watchpoints = [Watchpoint(DATA, 1)]
    for count in (1, 2):
        exit = bed.go()
        assert isinstance(exit, Debug)
        assert exit.dr6 & 0xF == 1
        assert bed.memory.read_int(DATA, 1) == count
    assert isinstance(bed.go(), Hlt)


@pytest.mark.needs("watchpoint", "breakpoint")
def test_a_watchpoint_of_reads_and_a_breakpoint_together(guests: Guests) -> None:
    bed = guests.load(64, f"mov rbx, {DATA}\nnop\nmov ax, [rbx + 2]\nhlt")
    bed.vcpu.breakpoints = [CODE + 7]
    bed.vcpu.watchpoints = [Watchpoint(DATA, 8, reads=True)]
    first, second = bed.go(), bed.go()
    assert isinstance(first, Debug)
    assert isinstance(second, Debug)
    assert (first.dr6 & 0xF, second.dr6 & 0xF) == (1, 2)
    bed.vcpu.watchpoints = []
    assert isinstance(bed.go(), Hlt)


@pytest.mark.parametrize("point", [Watchpoint(DATA + 1, 2), Watchpoint(DATA, 3), Watchpoint(DATA, 16)])
def test_watchpoints_that_cannot_be(guests: Guests, point: Watchpoint) -> None:
    bed = guests.load(64, "hlt")
    with pytest.raises(ConfigError, match="multiple"):
        bed.vcpu.watchpoints = [point]
    bed.vcpu.breakpoints = [1, 2, 3]
    with pytest.raises(ConfigError, match="four"):
        bed.vcpu.watchpoints = [Watchpoint(DATA), Watchpoint(DATA + 1)]


@pytest.mark.needs("guest_watchpoint")
def test_the_guest_s_own_watchpoint_is_a_trap_behind_the_write(guests: Guests) -> None:
    """DR7: local, write, four bytes (SDM vol. 3, 17.2.4); DR6 tells the handler which (17.2.3)."""
    source = f"""
        mov eax, {DATA}
        mov dr0, rax
        mov eax, 0x000d0401
        mov dr7, rax
        mov rbx, {DATA}
        mov eax, [rbx]
        mov byte ptr [rbx + 2], 1
        hlt
    """
    bed = guests.load(64, source)
    assert bed.vector(bed.go()) == DB
    assert bed.frame(1)[0] == CODE + len(assemble(source, bits=64, origin=CODE).code) - 1
    assert bed.memory.read_int(DATA, 4) == 1 << 16
    assert bed.vcpu.state.debug.dr6 & 0xF == 1


@pytest.mark.needs("guest_watchpoint")
def test_the_guest_s_own_breakpoint_is_a_fault_before_the_instruction(guests: Guests) -> None:
    source = f"mov eax, {CODE + 0x20}\nmov dr1, rax\nmov eax, 0x404\nmov dr7, rax\nagain: inc ecx\njmp again"
    bed = guests.load(64, source)
    bed.memory.write(CODE + 0x18, b"\x90" * 8 + b"\xfe\xc3\xf4")
    bed.memory.write(CODE + len(assemble(source, bits=64, origin=CODE).code) - 4, b"\x90\x90\x90\x90")
    assert bed.vector(bed.go()) == DB
    assert bed.frame(1)[0] == CODE + 0x20
    assert bed.vcpu.state.debug.dr6 & 0xF == 2


def test_there_are_four_breakpoints(guests: Guests) -> None:
    bed = guests.load(64, "nop\nhlt")
    with pytest.raises(ConfigError, match="four"):
        bed.vcpu.breakpoints = [1, 2, 3, 4, 5]


def test_a_kick_from_another_thread_ends_an_endless_loop(guests: Guests) -> None:
    bed = guests.load(64, "again: jmp again")
    kicker = threading.Timer(0.05, bed.vcpu.kick)
    kicker.start()
    assert isinstance(bed.vcpu.run(), Interrupted)
    kicker.join()


def test_a_kick_before_the_run_counts_for_it(guests: Guests) -> None:
    bed = guests.load(64, "nop\nhlt")
    bed.vcpu.kick()
    assert isinstance(bed.vcpu.run(), Interrupted)
    assert isinstance(bed.vcpu.run(), Hlt)
