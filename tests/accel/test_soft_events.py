"""Events on the software CPU, through the guest: NMIs, traps, shadows and software interrupts, by the manual."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy import SoftAccelerator
from kvmpy.accel.exits import Debug, Hlt, IoOut, Shutdown
from kvmpy.accel.testbed import CODE, DATA, HANDLERS, IDT, PT, Testbed
from kvmpy.asm import assemble
from kvmpy.cpu.msrs import Msr
from kvmpy.errors import ConfigError

NMI, DEBUG, INVALID, PROTECTION, FAULT = 2, 1, 6, 13, 14
LOCAL = 0xE000  # code of handlers of a test's own
DR6_BS = 1 << 14


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with SoftAccelerator() as accelerator, Testbed(accelerator, 64) as made:
        yield made


def handle(bed: Testbed, vector: int, source: str) -> None:
    """Let a vector arrive at code of its own."""
    at = LOCAL + 0x100 * vector
    bed.memory.write(at, assemble(source, origin=at).code)
    gate = IDT + 16 * vector
    bed.memory.write(gate, at.to_bytes(4, "little")[:2])
    bed.memory.write(gate + 6, at.to_bytes(4, "little")[2:])


def ports(bed: Testbed, count: int = 20) -> list[int]:
    """Run to HLT and return the ports that were written."""
    seen = []
    while isinstance(exit := bed.go(), IoOut) and len(seen) < count:
        seen.append(exit.port)
    return seen


def test_an_nmi_waits_for_the_iret_of_the_one_before(bed: Testbed) -> None:
    """Intel SDM vol. 3, 6.7.1."""
    handle(bed, NMI, "out 0x70, al\nout 0x71, al\niretq")
    bed.load(assemble("out 0x60, al\nnop\nnop\nout 0x61, al\nhlt", origin=CODE).code)
    assert bed.go() == IoOut(0x60, 1, b"\0")
    bed.vcpu.nmi()
    assert bed.go() == IoOut(0x70, 1, b"\0")
    bed.vcpu.nmi()
    assert bed.vcpu.state.events.nmi_masked
    assert bed.vcpu.state.events.nmi_pending
    assert ports(bed) == [0x71, 0x70, 0x71, 0x61]
    assert not bed.vcpu.state.events.nmi_masked


def test_that_an_nmi_is_blocked_is_part_of_the_state(bed: Testbed) -> None:
    handle(bed, NMI, "out 0x70, al\nout 0x71, al\niretq")
    bed.load(assemble("nop\nout 0x61, al\nhlt", origin=CODE).code)
    bed.vcpu.nmi()
    assert bed.go() == IoOut(0x70, 1, b"\0")
    state = bed.vcpu.state
    bed.vcpu.state = state
    bed.vcpu.nmi()
    assert ports(bed) == [0x71, 0x70, 0x71, 0x61]


def test_the_trap_flag_is_told_in_dr6(bed: Testbed) -> None:
    """BS, and RIP is behind each instruction (Intel SDM vol. 3, 17.2.3)."""
    handle(bed, DEBUG, "mov rdx, dr6\nmov r8, [rsp]\nout 0x70, al\niretq")
    bed.load(assemble("pushfq\nor qword ptr [rsp], 0x100\npopfq\nnop\ninc rcx\nhlt", origin=CODE).code)
    for behind in ("nop", "inc rcx"):
        assert bed.go() == IoOut(0x70, 1, b"\0"), behind
        assert bed.vcpu.regs.rdx == 0xFFFF0FF0 | DR6_BS
    assert bed.vcpu.regs.r8 == CODE + len(assemble("pushfq\nor qword ptr [rsp], 0x100\npopfq\nnop\ninc rcx").code)


@pytest.mark.parametrize(
    "code",
    ["out 0xe9, al", "in al, 0xe9", "mov al, [0x1f0000]", "add [0x1f0000], al", "movsb", "rdmsr"],
)
def test_the_trap_flag_behind_an_instruction_that_exits(bed: Testbed, code: str) -> None:
    """The trap is behind it, once, and there is one exit."""
    handle(bed, DEBUG, "and qword ptr [rsp + 16], -257\niretq")  # no more
    bed.memory.write_int(PT + 0x1F0 * 8, 8, 0x8000_0000 | 7)
    source = f"mov esi, 0x1f0000\nmov edi, {DATA}\nmov ecx, 0x10\npushfq\nor qword ptr [rsp], 0x100\npopfq\n{code}"
    bed.load(assemble(f"{source}\nout 0x71, al\nhlt", origin=CODE).code)
    bed.vm.exit_on_msrs([0x10])
    exits = [bed.go() for _ in range(2 if code.startswith("add") else 1)]
    assert not any(isinstance(exit, Hlt) for exit in exits)
    assert bed.go() == IoOut(0x71, 1, bytes([bed.vcpu.regs.rax & 0xFF]))


def test_popf_that_clears_tf_is_trapped_once_more(bed: Testbed) -> None:
    """What counts is TF in front of the instruction (Intel SDM vol. 3, 17.3.1.4)."""
    handle(bed, DEBUG, "inc rbx\niretq")
    source = "pushfq\npop rax\nmov rcx, rax\nor rcx, 0x100\npush rax\npush rcx\npopfq\npopfq\nnop\nhlt"
    bed.load(assemble(source, origin=CODE).code)
    assert bed.go() == Hlt()
    assert bed.vcpu.regs.rbx == 1


def test_rf_lasts_for_one_instruction(bed: Testbed) -> None:
    """A breakpoint of the guest's is hit each time it comes by (Intel SDM vol. 3, 17.3.1.1)."""
    handle(bed, DEBUG, "inc rbx\nbts qword ptr [rsp + 16], 16\niretq")
    source = f"mov rax, {CODE + 0x80}\nmov dr0, rax\nmov eax, 0x402\nmov dr7, rax\nmov ecx, 3\njmp {CODE + 0x80}"
    bed.load(assemble(f"{source}\n.org {CODE + 0x80}\nhere: nop\ndec ecx\njnz here\nhlt", origin=CODE).code)
    assert bed.go() == Hlt()
    assert bed.vcpu.regs.rbx == 3


def test_rf_that_iret_sets_is_not_seen_by_pushf(bed: Testbed) -> None:
    source = (
        f"mov rax, rsp\npush 0x10\npush rax\npush 0x10002\npush 0x18\npush {CODE + 0x80}\niretq\n.org {CODE + 0x80}"
    )
    bed.load(assemble(f"{source}\nnop\npushfq\npop rbx\nhlt", origin=CODE).code)
    assert bed.go() == Hlt()
    assert bed.vcpu.regs.rbx == 2


def test_the_interrupt_shadow_survives_that_registers_are_set(bed: Testbed) -> None:
    """STI, and somebody looks: what comes next is executed before an interrupt (Intel SDM vol. 3, 6.8.3)."""
    for assign in (lambda v: setattr(v, "regs", v.regs), lambda v: setattr(v, "state", v.state)):
        bed.load(assemble("sti\ninc rbx\ninc rbx\nhlt", origin=CODE).code)
        bed.vcpu.step()
        assign(bed.vcpu)
        assert not bed.vcpu.interruptible
        bed.vcpu.interrupt(0x40)
        assert bed.go() == IoOut(0x40, 1, b"\0")
        assert bed.vcpu.regs.rbx == 1


def test_cr2_does_not_change_by_another_fault(bed: Testbed) -> None:
    """UD2 in the last two bytes of a page whose neighbour is not there."""
    bed.memory.write_int(PT + 0x1F0 * 8, 8, 0x20000 | 7)
    bed.memory.write_int(PT + 0x1F1 * 8, 8, 0)
    bed.memory.write(0x20FFE, b"\x0f\x0b")
    bed.load(assemble("mov rax, 0x1f0ffe\njmp rax", origin=CODE).code)
    sregs = bed.vcpu.sregs
    sregs.cr2 = 0x1234
    bed.vcpu.sregs = sregs
    assert bed.vector(bed.go()) == INVALID
    assert bed.vcpu.sregs.cr2 == 0x1234


def test_hlt_in_ring_3_under_a_step_is_a_fault(bed: Testbed) -> None:
    for code in (b"\xf4", b"\xf3\xf4"):
        bed.load(code, ring=3)
        assert isinstance(bed.vcpu.step(), Debug)
        assert bed.vcpu.raised == (PROTECTION, 0)


def test_hlt_under_a_step_is_hlt(bed: Testbed) -> None:
    for code in (b"\xf4", b"\xf3\xf4"):
        bed.load(code)
        assert bed.vcpu.step() == Hlt()
        assert bed.vcpu.regs.rip == CODE + len(code)


@pytest.mark.parametrize("prefix", [b"", b"\x48"])
def test_syscall_with_and_without_rex_w(bed: Testbed, prefix: bytes) -> None:
    bed.load(prefix + b"\x0f\x05", ring=3)
    state = bed.vcpu.state
    state.msrs[Msr.STAR] = 0x18 << 32
    state.msrs[Msr.LSTAR] = LOCAL
    state.sregs.efer |= 1
    bed.vcpu.state = state
    bed.memory.write(LOCAL, b"\xf4")
    assert bed.go() == Hlt()
    assert (bed.vcpu.regs.rip, bed.vcpu.regs.rcx) == (LOCAL + 1, CODE + len(prefix) + 2)


@pytest.mark.parametrize("vector", [0x20, 0xCC, 0xCE, 0xF1, 3])
def test_a_gate_that_refuses_int_n(bed: Testbed, vector: int) -> None:
    """RIP is that of INT n, whatever its second byte looks like."""
    bed.load(bytes([0xCD, vector]), ring=3)
    bed.memory.write(IDT + 16 * vector + 5, b"\x8e")
    assert bed.vector(bed.go()) == PROTECTION
    assert bed.frame(2) == [vector * 8 + 2, CODE]


@pytest.mark.parametrize("code", [b"\xcc", b"\x66\xcc"])
def test_a_gate_that_refuses_int3(bed: Testbed, code: bytes) -> None:
    bed.load(code, ring=3)
    bed.memory.write(IDT + 16 * 3 + 5, b"\x8e")
    assert bed.vector(bed.go()) == PROTECTION
    assert bed.frame(2) == [3 * 8 + 2, CODE]


@pytest.mark.parametrize("ring", [0, 3])
def test_int1_is_a_debug_exception_whatever_its_gate_allows(bed: Testbed, ring: int) -> None:
    bed.load(b"\xf1", ring=ring)
    bed.memory.write(IDT + 16 * DEBUG + 5, b"\x8e")
    assert bed.vector(bed.go()) == DEBUG
    assert bed.frame(1) == [CODE + 1]


def test_an_interrupt_that_waits_is_not_replaced_and_is_part_of_the_state(bed: Testbed) -> None:
    bed.load(assemble("out 0x60, al\nsti\nnop\nout 0x61, al\nhlt", origin=CODE).code)
    bed.go()
    bed.vcpu.interrupt(0x40)
    with pytest.raises(ConfigError, match="vector 0x40 waits"):
        bed.vcpu.interrupt(0x41)
    state = bed.vcpu.state
    assert state.events.interrupt == 0x40
    bed.vcpu.state = state
    assert bed.go() == IoOut(0x40, 1, b"\0")


@pytest.mark.parametrize(
    "code", ["rdmsr", "mov cr0, rax", "mov rax, cr8", "mov rax, dr6", "mov cr4, rax", "cpuid", "nop"]
)
def test_a_step_moves_by_one_instruction_at_first_sight(bed: Testbed, code: str) -> None:
    length = len(assemble(code).code)
    sregs = bed.vcpu.sregs
    bed.load(assemble(f"{code}\n{code}\n{code}\nhlt", origin=CODE).code)
    sregs = bed.vcpu.sregs
    regs = bed.vcpu.regs
    regs.rax, regs.rcx = sregs.cr4 if "cr4" in code else sregs.cr0, 0x10
    bed.vcpu.regs = regs
    for n in range(1, 4):
        assert isinstance(bed.vcpu.step(), Debug)
        assert bed.vcpu.regs.rip == CODE + n * length
        regs = bed.vcpu.regs
        regs.rax, regs.rcx = sregs.cr4 if "cr4" in code else sregs.cr0, 0x10
        bed.vcpu.regs = regs


def test_handlers_of_the_testbed_are_left_as_they_were(bed: Testbed) -> None:
    assert bed.memory.read(HANDLERS + 4 * FAULT, 4) == b"\xe6\x0e\xf4\xf4"


@pytest.mark.parametrize(("address", "vector"), [("0xdead0000", FAULT), ("0x8000000000000000", PROTECTION)])
def test_a_guest_that_has_shut_down_runs_again_with_a_new_state(bed: Testbed, address: str, vector: int) -> None:
    """What the engine kept of the fault that could not be delivered made a double fault of the next one."""
    source = f"mov rbx, {address}\nmov al, [rbx]"
    begun = bed.initial_state()
    begun.sregs.idt.limit = 0
    bed.memory.write(CODE, assemble(source).code)
    bed.vcpu.state = begun
    assert bed.go() == Shutdown()
    handle(bed, vector, "out 0x70, al\nhlt")
    bed.load(assemble(source, origin=CODE).code)
    assert ports(bed) == [0x70]
