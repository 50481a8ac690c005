"""The software CPU itself: its fixed list of features, its engine, and what a hostile guest cannot do to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from random import Random

import pytest
from machines import loaded

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
from kvmpy.accel.testbed import CODE, DATA, HANDLERS, PRESENT_WRITABLE_USER, PT, Testbed
from kvmpy.asm import assemble
from kvmpy.cpu.modes import protected_mode
from kvmpy.errors import UnsupportedError
from kvmpy.machine.stop import Stop, StopKind
from kvmpy.memory import GuestMemory


@pytest.fixture(scope="module")
def soft() -> Iterator[SoftAccelerator]:
    with SoftAccelerator() as accelerator:
        yield accelerator


@pytest.mark.parametrize("name", PROBES)
def test_a_feature_is_there_exactly_when_the_fixed_list_says_so(soft: SoftAccelerator, name: str) -> None:
    """A regression must not hide behind a skip."""
    try:
        found = PROBES[name][1](soft)
    except UnsupportedError:
        found = False
    assert found == getattr(soft.features, name) == (name not in MISSING)


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
