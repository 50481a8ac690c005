"""The vCPUs of the software CPU take turns: nothing tears, nobody starves, and each sees what the others write."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvmpy import SoftAccelerator
from kvmpy.accel.base import Vcpu
from kvmpy.accel.exits import Exit, Hlt, Interrupted, IoOut, MmioRead, UnknownExit
from kvmpy.accel.soft import SoftVm
from kvmpy.asm import assemble
from kvmpy.cpu.modes import protected_mode
from kvmpy.errors import ClosedError
from kvmpy.memory import GuestMemory

COUNTER, LOCK, CODE = 0x8000, 0x9000, 0x10000
SECONDS = 20.0
# ECX times; ESI is the vCPU's number, EBX how many there are.
INCREMENT = {
    "inc": "lock inc dword ptr [0x8000]",
    "xadd": "mov eax, 1\nlock xadd [0x8000], eax",
    "cmpxchg": "mov eax, [0x8000]\nagain: lea edx, [eax + 1]\nlock cmpxchg [0x8000], edx\njnz again",
    "spin lock": (
        "mov eax, 1\ntry: xchg [0x9000], eax\ntest eax, eax\njnz try\ninc dword ptr [0x8000]\nmov dword ptr [0x9000], 0"
    ),
    "polite spin lock": (
        "enter: mov eax, 1\nxchg [0x9000], eax\ntest eax, eax\njz mine\nheld: pause\ncmp dword ptr [0x9000], 0\n"
        "jne held\njmp enter\nmine: inc dword ptr [0x8000]\nmov dword ptr [0x9000], 0"
    ),
    "one after the other": (
        "mine: mov eax, [0x8000]\nxor edx, edx\ndiv ebx\ncmp edx, esi\nje go\npause\njmp mine\n"
        "go: inc dword ptr [0x8000]"
    ),
}


@pytest.fixture(scope="module")
def soft() -> Iterator[SoftAccelerator]:
    with SoftAccelerator() as accelerator:
        yield accelerator


@contextmanager
def vcpus(soft: SoftAccelerator, *sources: str, times: int = 1) -> Iterator[tuple[GuestMemory, SoftVm, list[Vcpu]]]:
    """Make a VM with a vCPU for each source, at its beginning."""
    with GuestMemory(1 << 20) as memory, soft.create_vm() as vm:
        vm.add_memory(memory)
        made: list[Vcpu] = []
        for number, source in enumerate(sources):
            at = CODE + 0x200 * number
            memory.write(at, assemble(source, bits=32, origin=at).code)
            vcpu, state = (
                vm.create_vcpu(number, cpus=len(sources)),
                protected_mode(at, 0x80000 + 0x400 * number, gdt=0x800),
            )
            state.regs.rcx, state.regs.rbx, state.regs.rsi = times, len(sources), number
            vcpu.regs, vcpu.sregs = state.regs, state.sregs
            made.append(vcpu)
        yield memory, vm, made


def run_all(made: list[Vcpu]) -> list[Exit]:
    """Run each in a thread of its own; a deadline kicks them."""
    results: dict[int, Exit] = {}

    def run(vcpu: Vcpu) -> None:
        results[vcpu.id] = vcpu.run()

    threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in made]
    watchdog = threading.Timer(SECONDS, lambda: [vcpu.kick() for vcpu in made])
    watchdog.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watchdog.cancel()
    watchdog.join()
    return [results[vcpu.id] for vcpu in made]


@pytest.mark.parametrize("cpus", [2, 5])
@pytest.mark.parametrize("how", INCREMENT)
def test_no_increment_is_lost(soft: SoftAccelerator, how: str, cpus: int) -> None:
    times = 2000 if "after" in how else 20_000
    source = f"loop_: {INCREMENT[how]}\ndec ecx\njnz loop_\nhlt"
    with vcpus(soft, *[source] * cpus, times=times) as (memory, _, made):
        assert run_all(made) == [Hlt()] * cpus
        assert memory.read_int(COUNTER, 4) == times * cpus


def test_sixty_four_wait_for_each_other(soft: SoftAccelerator) -> None:
    source = f"loop_: {INCREMENT['one after the other']}\ndec ecx\njnz loop_\nhlt"
    with vcpus(soft, *[source] * 64, times=5) as (memory, _, made):
        assert run_all(made) == [Hlt()] * 64
        assert memory.read_int(COUNTER, 4) == 5 * 64


def test_who_spins_without_pause_does_not_starve_others(soft: SoftAccelerator) -> None:
    """The first one never ends by itself, and the last one tells it to."""
    spins = "wait_: cmp dword ptr [0x9000], 0\nje wait_\nhlt"
    with vcpus(soft, spins, spins, "mov dword ptr [0x9000], 1\nhlt") as (_, _, made):
        assert run_all(made) == [Hlt()] * 3


def test_code_that_another_cpu_writes_is_seen(soft: SoftAccelerator) -> None:
    """The first one writes an immediate, the second one serializes and executes it (Intel SDM vol. 3, 8.1.3)."""
    writes = """
        next: mov eax, [0x8004]         ; how many were executed
        cmp eax, [0x8000]               ; how many were written
        je write
        pause
        jmp next
        write: inc eax
        mov [0xa001], eax
        mov [0x8000], eax
        dec ecx
        jnz next
        hlt
    """
    executes = """
        next: mov eax, [0x8000]
        cmp eax, [0x8004]
        jne call_
        pause
        jmp next
        call_: mov edi, ecx
        xor eax, eax
        cpuid
        mov ecx, edi
        mov edx, 0xa000
        call edx
        cmp eax, [0x8000]
        jne wrong
        mov [0x8004], eax
        dec ecx
        jnz next
        hlt
        wrong: out 0x80, al
    """
    with vcpus(soft, writes, executes, times=1000) as (memory, _, made):
        memory.write(0xA000, assemble("mov eax, 0\nret", bits=32).code)
        assert run_all(made) == [Hlt(), Hlt()]
        assert memory.read_int(0xA001, 4) == 1000


def test_code_that_another_cpu_wrote_is_seen_by_one_that_comes_back(soft: SoftAccelerator) -> None:
    with vcpus(soft, "mov eax, 1\nhlt", "mov byte ptr [0x10001], 2\nhlt") as (_, _, (first, second)):
        start = first.regs
        assert (first.run(), first.regs.rax) == (Hlt(), 1)
        assert second.run() == Hlt()
        first.regs = start
        assert (first.run(), first.regs.rax) == (Hlt(), 2)


def test_the_state_of_one_is_not_that_of_another(soft: SoftAccelerator) -> None:
    """General, x87, SSE and segment registers, MSRs and flags, while both run."""
    source = """
        mov eax, esi
        inc eax
        mov ebp, eax
        cvtsi2sd xmm3, eax
        fninit
        push eax
        fild dword ptr [esp]
        again: out 0x80, al
        cvtsd2si edx, xmm3
        cmp edx, ebp
        jne wrong
        fist dword ptr [esp]
        cmp [esp], ebp
        jne wrong
        dec ecx
        jnz again
        hlt
        wrong: mov [0xfffff000], al
    """
    with vcpus(soft, *[source] * 3, times=200) as (_, _, made):
        for vcpu in made:
            sregs = vcpu.sregs
            sregs.cr4 |= 0x600  # OSFXSR, OSXMMEXCPT
            vcpu.sregs = sregs
        seen: dict[int, list[Exit]] = {vcpu.id: [] for vcpu in made}

        def run(vcpu: Vcpu) -> None:
            while isinstance(exit := vcpu.run(), IoOut):
                seen[vcpu.id].append(exit)
            seen[vcpu.id].append(exit)

        threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert seen == {n: [IoOut(0x80, 1, bytes([n + 1]))] * 200 + [Hlt()] for n in range(3)}


def test_a_kick_reaches_one_that_waits_for_its_turn(soft: SoftAccelerator) -> None:
    with vcpus(soft, "spin: jmp spin", "spin: jmp spin") as (_, _, made):
        threads = [threading.Thread(target=vcpu.run) for vcpu in made]
        for thread in threads:
            thread.start()
        while not all(vcpu.entries for vcpu in made):
            time.sleep(0.001)
        for vcpu, thread in zip(made, threads, strict=True):
            vcpu.kick()
            thread.join(SECONDS)
            assert not thread.is_alive()


def test_a_vm_that_is_closed_lets_go_of_who_is_in_the_guest(soft: SoftAccelerator) -> None:
    with GuestMemory(1 << 20) as memory:
        vm = soft.create_vm()
        vm.add_memory(memory)
        memory.write(CODE, b"\xeb\xfe")
        errors: list[Exception] = []
        made = [vm.create_vcpu(number) for number in range(2)]

        def run(vcpu: Vcpu) -> None:
            try:
                vcpu.run()
            except ClosedError as error:
                errors.append(error)

        for vcpu in made:
            state = protected_mode(CODE, 0x8000, gdt=0x800)
            vcpu.regs, vcpu.sregs = state.regs, state.sregs
        threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in made]
        for thread in threads:
            thread.start()
        while not all(vcpu.entries for vcpu in made):
            time.sleep(0.001)
        vm.close()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert len(errors) == 2


def test_state_can_be_read_while_another_runs(soft: SoftAccelerator) -> None:
    """It is not on the engine: nobody waits for it, and it is its own."""
    with vcpus(soft, "spin: jmp spin", "mov eax, 5\nhlt") as (_, _, (spins, halts)):
        thread = threading.Thread(target=spins.run)
        thread.start()
        assert halts.run() == Hlt()
        for _ in range(200):
            regs = halts.regs
            assert (regs.rax, regs.rsi) == (5, 1)
            regs.rdi += 1
            halts.regs = regs
        assert halts.state.regs.rdi == 200
        spins.kick()
        thread.join(SECONDS)
        assert (spins.regs.rsi, halts.regs.rsi) == (0, 1)


def test_an_access_of_one_is_answered_while_another_runs(soft: SoftAccelerator) -> None:
    reads = "next: mov eax, [0xfff00000]\nadd edi, eax\ndec ecx\njnz next\nhlt"
    with vcpus(soft, "spin: jmp spin", reads, times=100) as (_, _, (spins, asks)):
        thread = threading.Thread(target=spins.run)
        thread.start()
        exits = 0
        while isinstance(exit := asks.run(), MmioRead):
            exit.value = 3
            exits += 1
        spins.kick()
        thread.join(SECONDS)
        assert (exit, exits, asks.regs.rdi) == (Hlt(), 100, 300)
        assert not isinstance(exit, (Interrupted, UnknownExit))
