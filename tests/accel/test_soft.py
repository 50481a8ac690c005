"""The software CPU itself: its fixed list of features, its engine, and what a hostile guest cannot do to it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from random import Random

import pytest
from machines import loaded
from peers import needs_kvm

from kvmpy.accel.exits import (
    Exit,
    Hlt,
    InternalError,
    Interrupted,
    IoIn,
    IoOut,
    MmioWrite,
    Rdmsr,
    Shutdown,
    UnknownExit,
)
from kvmpy.accel.probe import PROBES
from kvmpy.accel.soft import SoftAccelerator
from kvmpy.accel.soft_features import MISSING
from kvmpy.accel.testbed import (
    CODE,
    CODE32,
    CODE64,
    DATA,
    DATA32,
    HANDLERS,
    IDT,
    PML4,
    PRESENT_WRITABLE_USER,
    PT,
    STACK,
    TSS,
    USER_CODE32,
    USER_CODE64,
    USER_DATA,
    USER_STACK,
    Testbed,
)
from kvmpy.asm import assemble
from kvmpy.cpu.modes import protected_mode
from kvmpy.cpu.state import Segment
from kvmpy.machine.stop import Stop, StopKind
from kvmpy.memory import GuestMemory


@pytest.fixture(scope="module")
def soft() -> Iterator[SoftAccelerator]:
    with SoftAccelerator() as accelerator:
        yield accelerator


@pytest.mark.parametrize("name", PROBES)
def test_a_feature_is_there_exactly_when_the_fixed_list_says_so(soft: SoftAccelerator, name: str) -> None:
    """A regression must not hide behind a skip."""
    assert PROBES[name][1](soft) == getattr(soft.features, name) == (name not in MISSING)


# Hostile and broken guests: the documented end, never a hang or an exception of Python's


def ends_with(
    soft: SoftAccelerator, source: str, *, mode: str = "protected", seconds: float = 10, **options: object
) -> Stop:
    with loaded(soft, source, mode=mode, **options) as machine:  # type: ignore[arg-type]
        return machine.run(timeout=seconds)


def test_a_jump_to_where_no_memory_is(soft: SoftAccelerator) -> None:
    stop = ends_with(soft, "mov eax, 0xd0000000\njmp eax")
    assert stop.kind == StopKind.INTERNAL_ERROR
    assert isinstance(stop.exit, InternalError)
    assert stop.exit.data[1] == 0xD000_0000  # where it could not go on


def test_code_in_rom_runs_and_cannot_be_written(soft: SoftAccelerator) -> None:
    with GuestMemory(1 << 20) as memory, soft.create_vm() as vm:
        memory.add(0xF000_0000, 0x1000, readonly=True, name="rom")
        memory.write(0xF000_0000, assemble("mov dword ptr [0xf0000800], 5\nmov eax, [0xf0000800]\nhlt", bits=32).code)
        memory.write(0xF000_0800, b"\x11\x22\x33\x44")
        vm.add_memory(memory)
        vcpu = vm.create_vcpu()
        state = protected_mode(0xF000_0000, 0x8000, gdt=0x800)
        vcpu.regs, vcpu.sregs = state.regs, state.sregs
        assert vcpu.run() == MmioWrite(0xF000_0800, 4, 5)
        assert isinstance(vcpu.run(), Hlt)
        assert vcpu.regs.rax == 0x44332211


def test_a_loop_of_faults_ends_at_the_deadline(soft: SoftAccelerator) -> None:
    """The handler of #UD is itself the instruction that raised it."""
    with Testbed(soft, 64) as bed:
        bed.load(b"\x0f\x0b")
        bed.memory.write(HANDLERS + 4 * 6, b"\x48\xcf")  # IRETQ to the faulting instruction
        assert isinstance(bed.go(0.2), Interrupted)


def test_a_stack_that_is_not_mapped_is_a_triple_fault(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("mov rsp, 0x7fff0000\npush rax\nhlt", bits=64, origin=CODE).code)
        assert isinstance(bed.go(), Shutdown)
        assert isinstance(bed.go(), Shutdown)  # and it stays so


def test_a_guest_that_unmaps_itself_is_a_triple_fault(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("xor eax, eax\nmov cr3, rax\nnop\nhlt", bits=64, origin=CODE).code)
        bed.memory.write(0, bytes(0x800))
        assert isinstance(bed.go(), Shutdown)


@pytest.mark.parametrize("irqchip", ["none", "python"])
def test_halt_with_interrupts_off(soft: SoftAccelerator, irqchip: str) -> None:
    assert ends_with(soft, "cli\nhlt", irqchip=irqchip).kind == StopKind.HALT


def test_an_endless_loop_with_interrupts_on_sleeps_till_the_deadline(soft: SoftAccelerator) -> None:
    assert (
        ends_with(soft, "sti\nagain: hlt\njmp again", mode="real", irqchip="python", seconds=0.3).kind
        == StopKind.TIMEOUT
    )


def test_ports_are_exact_in_the_middle_of_a_block(soft: SoftAccelerator) -> None:
    """What stands behind a port access in the same block is not executed before the exit."""
    with Testbed(soft, 64) as bed:
        bed.load(
            assemble("mov eax, 1\nout 0xf0, al\nmov eax, 2\nin al, 0xf1\nmov ebx, eax\nhlt", bits=64, origin=CODE).code
        )
        assert isinstance(bed.go(), IoOut)
        assert (bed.vcpu.regs.rax, bed.vcpu.regs.rip) == (1, CODE + 7)
        exit = bed.go()
        assert isinstance(exit, IoIn)
        assert bed.vcpu.regs.rbx == 0
        exit.data = b"\x99"
        assert isinstance(bed.go(), Hlt)
        assert bed.vcpu.regs.rbx == 0x99


def test_a_closed_port_in_ring_3_is_gp_at_the_instruction(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("mov dx, 0x500\nmov eax, 0x1234\nin al, dx\nhlt", bits=64, origin=CODE).code, ring=3)
        assert bed.vector(bed.go()) == 13
        assert bed.frame(2) == [0, CODE + 9]
        assert bed.vcpu.regs.rax & 0xFFFF == 0x1234


def test_code_that_the_host_changes_is_seen(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("again: mov al, 1\nout 0xf0, al\njmp again", bits=64, origin=CODE).code)
        for value in (1, 1, 77, 77, 78):
            bed.memory.write(CODE + 1, bytes([value]))
            exit = bed.go()
            assert isinstance(exit, IoOut)
            assert exit.data == bytes([value])


def test_page_tables_that_the_host_changes_are_seen(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("again: mov al, [0x1f0000]\nout 0xf0, al\njmp again", bits=64, origin=CODE).code)
        for page, value in ((0x18_0000, 5), (0x19_0000, 6)):
            bed.memory.write(page, bytes([value]))
            bed.memory.write_int(PT + (0x1F_0000 >> 12) * 8, 8, page | PRESENT_WRITABLE_USER)
            exit = bed.go()
            assert isinstance(exit, IoOut)
            assert exit.data == bytes([value])


def test_a_look_at_an_address_leaves_no_trace(soft: SoftAccelerator) -> None:
    """Neither accessed bits nor CR2: only the guest's own accesses set those (Intel SDM vol. 3, 4.8)."""
    with Testbed(soft, 64) as bed:
        bed.load(b"\xf4")
        before = bed.memory.read(PML4, 4 * 0x1000)
        assert bed.vcpu.translate(CODE) == CODE
        assert bed.vcpu.translate(1 << 40) is None
        assert bed.memory.read(PML4, len(before)) == before
        assert bed.vcpu.sregs.cr2 == 0


def test_two_cpus_run_side_by_side_over_one_memory(soft: SoftAccelerator) -> None:
    """Each waits for the other's word, so neither could go on alone."""
    words = (0x9000, 0x9100)
    with GuestMemory(1 << 20) as memory, soft.create_vm() as vm:
        vm.add_memory(memory)
        results: dict[int, Exit] = {}
        for number in range(2):
            mine, other = words[number], words[1 - number]
            source = f"mov byte ptr [{mine}], 1\nwait: cmp byte ptr [{other}], 1\njne wait\nhlt"
            memory.write(0x2000 + number * 0x100, assemble(source, bits=32, origin=0x2000 + number * 0x100).code)

        def run(number: int) -> None:
            vcpu = vm.create_vcpu(number)
            state = protected_mode(0x2000 + number * 0x100, 0x8000, gdt=0x800)
            vcpu.regs, vcpu.sregs = state.regs, state.sregs
            watchdog = threading.Timer(10, vcpu.kick)
            watchdog.start()
            results[number] = vcpu.run()
            watchdog.cancel()
            watchdog.join()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {0: Hlt(), 1: Hlt()}


def test_kicks_do_not_make_an_instruction_run_twice(soft: SoftAccelerator) -> None:
    """A counter in memory and one in a register go up together, however often the CPU is stopped between."""
    source = f"mov rdi, {DATA}\nagain: inc qword ptr [rdi]\ninc rbx\njmp again"
    with Testbed(soft, 64) as bed:
        bed.load(assemble(source, bits=64, origin=CODE).code)
        enough = threading.Event()

        def kick_on() -> None:
            while not enough.is_set():
                bed.vcpu.kick()

        kicker = threading.Thread(target=kick_on)
        kicker.start()
        try:
            for _ in range(300):
                assert isinstance(bed.vcpu.run(), Interrupted)
        finally:
            enough.set()
            kicker.join()
        again = assemble(source, bits=64, origin=CODE).symbols["again"]
        while bed.vcpu.regs.rip != again:
            bed.vcpu.step()
        assert bed.memory.read_int(DATA, 8) == bed.vcpu.regs.rbx > 0


def test_any_code_does_no_harm(soft: SoftAccelerator) -> None:
    """Random bytes in every mode and ring: each run ends, with an exit that has a type."""
    random = Random(2026)
    for number in range(120):
        bits = (16, 32, 64)[number % 3]
        with Testbed(soft, bits) as bed:
            bed.load(random.randbytes(64) + b"\xf4", ring=3 if bits != 16 and number % 2 else 0)
            for _ in range(20):
                exit = bed.go(0.05)
                assert not isinstance(exit, UnknownExit), exit
                if isinstance(exit, (Hlt, Shutdown, InternalError, Interrupted)):
                    break


def test_engines_leave_nothing_behind(soft: SoftAccelerator) -> None:
    def size() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1])

    def one() -> None:
        with loaded(soft, "hlt") as machine:
            machine.run(timeout=5)

    for _ in range(10):
        one()
    before = size()
    for _ in range(50):
        one()
    assert size() - before < 2048  # pages: 8 MiB, where each engine takes 4


# Instructions that the engine leaves to us


def test_debug_registers_are_the_guest_s_own_and_ports_stay_exact(soft: SoftAccelerator) -> None:
    """The engine's are in use for the stop behind a port access; the guest does not see that, nor disturb it."""
    source = """
        mov eax, 0x12345678
        mov dr0, rax
        mov dr3, rax
        mov eax, 0x4aa
        mov dr7, rax
        mov rcx, dr3
        mov rdx, dr7
        mov r9, dr6
        out 0xf0, al
        mov eax, 0
        hlt
    """
    with Testbed(soft, 64) as bed:
        bed.load(assemble(source, bits=64, origin=CODE).code)
        assert isinstance(bed.go(), IoOut)
        regs = bed.vcpu.regs
        assert (regs.rcx, regs.rdx, regs.r9, regs.rax) == (0x12345678, 0x4AA, 0xFFFF0FF0, 0x4AA)
        debug = bed.vcpu.state.debug
        assert (debug.db[0], debug.db[3], debug.dr7) == (0x12345678, 0x12345678, 0x4AA)
        assert isinstance(bed.go(), Hlt)


def test_debug_registers_in_ring_3_are_gp(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("nop\nmov rax, dr7\nhlt", bits=64, origin=CODE).code, ring=3)
        assert bed.vector(bed.go()) == 13
        assert bed.frame(2) == [0, CODE + 1]


def test_cr8_is_kept(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("mov eax, 9\nmov cr8, rax\nmov rbx, cr8\nhlt", bits=64, origin=CODE).code)
        assert isinstance(bed.go(), Hlt)
        assert (bed.vcpu.regs.rbx, bed.vcpu.sregs.cr8) == (9, 9)


@pytest.mark.parametrize("load", ["mov eax, 0x20000033", "mov rax, 0x180000033", "mov eax, 0x80000032"])
def test_cr0_refuses_what_a_processor_refuses(soft: SoftAccelerator, load: str) -> None:
    """NW without CD, a bit above 31, PG without PE (Intel SDM vol. 2, MOV to control registers)."""
    with Testbed(soft, 64) as bed:
        bed.load(assemble(f"{load}\nmov cr0, rax\nhlt", bits=64, origin=CODE).code)
        before = bed.vcpu.sregs.cr0
        assert bed.vector(bed.go()) == 13
        assert bed.vcpu.sregs.cr0 == before


def test_bytes_that_only_look_like_such_an_instruction(soft: SoftAccelerator) -> None:
    """0F 32 inside an immediate: where no instruction begins, nothing stops."""
    with Testbed(soft, 64) as bed:
        bed.load(assemble("mov eax, 0x00320f00\nmov ebx, eax\nhlt", bits=64, origin=CODE).code)
        assert isinstance(bed.go(), Hlt)
        assert bed.vcpu.regs.rbx == 0x00320F00


def test_such_an_instruction_that_is_written_later_is_found(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.vm.exit_on_msrs([0x1A0])
        bed.load(assemble("mov ecx, 0x1a0\nagain: nop\nnop\nout 0xf0, al\njmp again", bits=64, origin=CODE).code)
        assert isinstance(bed.go(), IoOut)
        bed.memory.write(CODE + 5, b"\x0f\x32")
        assert bed.go() == Rdmsr(0x1A0)


# Delivery, where no trapped-instruction test goes: IST, SYSENTER, virtual-8086 mode, nested faults


def test_an_ist_gives_the_stack(soft: SoftAccelerator) -> None:
    """Intel SDM vol. 3, 6.14.5: RSP from the TSS, aligned to 16 bytes, also without a change of ring."""
    with Testbed(soft, 64) as bed:
        bed.load(b"\x0f\x0b")
        bed.memory.write_int(IDT + 16 * 6 + 4, 1, 3)  # #UD on IST3
        bed.memory.write_int(TSS + 36 + 8 * 2, 8, 0x1_7777)
        assert bed.vector(bed.go()) == 6
        assert bed.vcpu.regs.rsp == 0x1_7770 - 5 * 8
        assert bed.frame(5) == [CODE, CODE64, 0x10002, STACK, DATA32]


def test_an_interrupt_from_ring_3_changes_the_stack(soft: SoftAccelerator) -> None:
    for bits, width in ((32, 4), (64, 8)):
        with Testbed(soft, bits) as bed:
            bed.load(b"\x0f\x0b", ring=3)
            assert bed.vector(bed.go()) == 6
            assert bed.vcpu.regs.rsp == STACK - 5 * width
            code = USER_CODE64 if bits == 64 else USER_CODE32
            assert bed.frame(5) == [CODE, code, 0x10002, USER_STACK, USER_DATA]
            assert bed.vcpu.sregs.ss.selector == (0 if bits == 64 else DATA32)


def test_sysenter_of_64_bit_mode(soft: SoftAccelerator) -> None:
    """Intel SDM vol. 2, SYSENTER: CS from the MSR, SS 8 above, IF cleared, RIP and RSP from MSRs."""
    with Testbed(soft, 64) as bed:
        bed.load(assemble("sysenter\nhlt", bits=64, origin=CODE).code, ring=3)
        bed.memory.write(CODE + 0x100, assemble("out 0xee, al\nhlt", bits=64, origin=CODE + 0x100).code)
        state = bed.initial_state(ring=3)
        state.regs.rflags |= 1 << 9
        state.msrs = {0x174: CODE64, 0x175: 0x9000, 0x176: CODE + 0x100}
        bed.vcpu.state = state
        assert bed.vector(bed.go()) == 0xEE
        regs, sregs = bed.vcpu.regs, bed.vcpu.sregs
        assert (sregs.cs.selector, sregs.ss.selector, regs.rsp) == (CODE64, CODE64 + 8, 0x9000)
        assert not regs.rflags & 1 << 9


def test_sysenter_without_its_msr_is_gp(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("nop\nsysenter", bits=64, origin=CODE).code, ring=3)
        assert bed.vector(bed.go()) == 13
        assert bed.frame(2) == [0, CODE + 1]


def test_syscall_without_efer_sce_is_ud(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("nop\nsyscall", bits=64, origin=CODE).code, ring=3)
        assert bed.vector(bed.go()) == 6
        assert bed.frame(1) == [CODE + 1]


VM = 1 << 17


def in_virtual_8086_mode(bed: Testbed, code: bytes, *, iopl: int) -> None:
    """Run `code` at 0C00:0000 with SS:SP 1000:8000, and marks in the data segments."""
    bed.load(code, ring=3)
    state = bed.initial_state(ring=3)
    for name, selector in (("cs", CODE >> 4), ("ss", 0x1000), ("ds", 0x11), ("es", 0x22), ("fs", 0x33), ("gs", 0x44)):
        setattr(state.sregs, name, Segment(selector, selector << 4, 0xFFFF, type=3, dpl=3))
    state.regs.rip, state.regs.rsp = 0, 0x8000
    state.regs.rflags = 2 | VM | iopl << 12
    bed.vcpu.sregs, bed.vcpu.regs = state.sregs, state.regs


def test_an_exception_leaves_virtual_8086_mode_with_all_its_segments(soft: SoftAccelerator) -> None:
    """Intel SDM vol. 3, 20.3.1.1 and figure 20-4: GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP on the ring-0 stack."""
    with Testbed(soft, 32) as bed:
        in_virtual_8086_mode(bed, b"\x90\x0f\x0b", iopl=3)
        assert bed.vector(bed.go()) == 6
        eip, cs, eflags, *rest = bed.frame(9)
        assert (eip, cs, rest) == (1, CODE >> 4, [0x8000, 0x1000, 0x22, 0x11, 0x33, 0x44])
        assert eflags & VM
        assert not bed.vcpu.regs.rflags & VM
        sregs = bed.vcpu.sregs
        assert [s.selector for s in (sregs.ds, sregs.es, sregs.fs, sregs.gs)] == [0, 0, 0, 0]
        assert sregs.cs.selector == CODE32


@pytest.mark.parametrize(("iopl", "vector"), [(3, 0x42), (0, 13)])
def test_int_n_of_virtual_8086_mode_needs_iopl_3(soft: SoftAccelerator, iopl: int, vector: int) -> None:
    with Testbed(soft, 32) as bed:
        in_virtual_8086_mode(bed, b"\xcd\x42", iopl=iopl)
        assert bed.vector(bed.go()) == vector


def test_ports_of_virtual_8086_mode_go_by_the_bitmap_whatever_iopl_is(soft: SoftAccelerator) -> None:
    for port, allowed in ((0xF0, True), (0x500, False)):
        with Testbed(soft, 32) as bed:
            in_virtual_8086_mode(bed, b"\xba" + port.to_bytes(2, "little") + b"\xee", iopl=3)
            exit = bed.go()
            assert (exit == IoOut(port, 1, b"\0")) == allowed
            assert allowed or bed.vector(exit) == 13


@pytest.mark.parametrize("source", ["xor ecx, ecx\ndiv ecx", "mov ax, 0x1234\nmov ds, ax"])
def test_a_fault_whose_handler_has_no_gate_is_a_double_fault_then_a_shutdown(
    soft: SoftAccelerator, source: str
) -> None:
    """Intel SDM vol. 3, table 6-5: contributory after contributory; and without a gate for #DF, the end."""
    for remove_double_fault in (False, True):
        with Testbed(soft, 64) as bed:
            bed.load(assemble(source, bits=64, origin=CODE).code)
            for vector in (0, 11, 13, *([8] if remove_double_fault else [])):
                bed.memory.write(IDT + 16 * vector, bytes(16))
            exit = bed.go()
            assert isinstance(exit, Shutdown) if remove_double_fault else bed.vector(exit) == 8


def test_int_n_through_a_gate_of_lower_dpl_is_gp_at_the_instruction(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("nop\nint 0x42", bits=64, origin=CODE).code, ring=3)
        bed.memory.write_int(IDT + 16 * 0x42 + 5, 1, 0x8E)
        assert bed.vector(bed.go()) == 13
        assert bed.frame(2) == [0x42 << 3 | 2, CODE + 1]


def test_sti_holds_interrupts_back_for_one_instruction(soft: SoftAccelerator) -> None:
    """Intel SDM vol. 2, STI."""
    with Testbed(soft, 64) as bed:
        bed.load(assemble("sti\nnop\nnop\nhlt", bits=64, origin=CODE).code)
        bed.vcpu.interrupt(0x50)
        assert bed.vector(bed.go()) == 0x50
        assert bed.frame(1) == [CODE + 2]


BOOT_AND_LIST = """
import sys
from kvmpy.cli import main
main(["boot", "hello.bin", "--accel", "kvm"])
print([name for name in sys.modules if "soft" in name or "unicorn" in name])
"""


@needs_kvm
def test_a_boot_on_kvm_pays_for_none_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", BOOT_AND_LIST], capture_output=True, text=True, timeout=30)
    assert done.stdout == "Hello from real mode\n[]\n"
