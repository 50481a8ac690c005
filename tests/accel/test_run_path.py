"""One run path: whoever stops after an exit, looks and changes things, goes on by any way, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from conftest import Guests
from machines import MEMORY, loaded
from peers import needs_kvm

import kvmpy
from kvmpy.accel import packed
from kvmpy.accel.base import Accelerator, Vcpu, Vm
from kvmpy.accel.exits import Debug, Hlt, Interrupted, IoIn, IoOut, IrqWindowOpen, MmioRead, MmioWrite
from kvmpy.accel.testbed import CODE, PRESENT_WRITABLE_USER, PT, Testbed
from kvmpy.errors import ConfigError
from kvmpy.kvm.vcpu import kick_signals
from kvmpy.machine.machine import Machine
from kvmpy.machine.stop import StopKind

DEVICE, OTHER = 0xD000_0000, 0xD010_0000
ROM = 0xE000_0000
WINDOW = 0x1F_0000
PAGE_FAULT = 14


def open_window(bed: Testbed) -> None:
    """Two pages that are neighbours in linear addresses lie on two devices."""
    for i, target in enumerate((DEVICE, OTHER)):
        bed.memory.write_int(PT + ((WINDOW >> 12) + i) * 8, 8, target | PRESENT_WRITABLE_USER)


def test_what_every_vcpu_must_have() -> None:
    assert {"id", "enter", "exits", "run", "step", "complete", "typed_exit", "run_error"} <= Vcpu.__abstractmethods__
    assert {"create_chips", "notify", "irq_on", "coalesce"} <= Vm.__abstractmethods__


def test_the_packed_and_the_typed_way_can_take_turns(guests: Guests) -> None:
    bed = guests.load(64, "in al, 0xf0\nmov bl, al\nin al, 0xf1\nmov bh, al\nin al, 0xf2\nhlt")
    vcpu = bed.vcpu
    code = vcpu.enter()
    assert (packed.port_of(code), code & packed.REASON_MASK) == (0xF0, packed.IO)
    vcpu.answer(0x11)
    exit = vcpu.run()
    assert isinstance(exit, IoIn)
    exit.data = b"\x22"
    codes = list(vcpu.exits(1))  # the answer was filled into an object: the hot path leaves that to enter()
    assert [c & packed.REASON_MASK for c in codes] == [packed.ATTENTION]
    assert packed.port_of(vcpu.enter()) == 0xF2
    vcpu.answer(0x33)
    assert [c & packed.REASON_MASK for c in vcpu.exits(1)] == [packed.HLT]
    regs = vcpu.regs
    assert (regs.rbx & 0xFFFF, regs.rax & 0xFF) == (0x2211, 0x33)


def test_recent_exits_are_kept_oldest_first(guests: Guests) -> None:
    bed = guests.load(64, "mov ecx, 40\nagain: mov al, cl\nout 0xf0, al\ndec ecx\njnz again\nhlt")
    while not isinstance(bed.go(), Hlt):
        pass
    values = [exit.code >> packed.VALUE_SHIFT for exit in bed.vcpu.recent()[:-1]]
    assert values == list(range(31, 0, -1))


def test_past_exits_have_addresses_and_answers(guests: Guests) -> None:
    source = f"mov rbx, {WINDOW}\nmov [rbx + 8], cx\nmov eax, [rbx + 16]\nin al, 0x60\nin ax, 0x62\nhlt"
    bed = guests.load(64, source)
    open_window(bed)
    vcpu = bed.vcpu
    regs = vcpu.regs
    regs.rcx = 0x1234
    vcpu.regs = regs
    bed.go()
    read = bed.go()
    assert isinstance(read, MmioRead)
    read.value = 0xCAFE
    vcpu.enter()  # which takes the answer over
    vcpu.answer(0x5A)
    assert vcpu.recent()[-1].value == 0x5A  # before it is taken over, too
    bed.go()
    assert isinstance(bed.go(), Hlt)
    assert [(exit.code & packed.REASON_MASK, exit.gpa, exit.value) for exit in vcpu.recent()] == [
        (packed.MMIO, DEVICE + 8, 0x1234),
        (packed.MMIO, DEVICE + 16, 0xCAFE),
        (packed.IO, 0, 0x5A),
        (packed.IO, 0, 0xFFFF),  # which nobody answered
        (packed.HLT, 0, 0),
    ]


def test_registers_assigned_between_the_halves_of_a_write_do_not_lose_the_second(guests: Guests) -> None:
    bed = guests.load(64, f"mov rbx, {WINDOW + 0xFFC}\nmov rax, 0x8877665544332211\nmov [rbx], rax\nhlt")
    open_window(bed)
    assert bed.go() == MmioWrite(DEVICE + 0xFFC, 4, 0x44332211)
    regs = bed.vcpu.regs
    regs.rdx = 0x1234
    bed.vcpu.regs = regs
    assert bed.vcpu.regs.rdx == 0x1234
    assert bed.go() == MmioWrite(OTHER, 4, 0x88776655)
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rdx == 0x1234


def test_registers_assigned_between_the_halves_of_a_read_count_behind_it(guests: Guests) -> None:
    bed = guests.load(64, f"mov rbx, {WINDOW + 0xFFC}\nmov rax, [rbx]\nmov rcx, rax\nhlt")
    open_window(bed)
    exit = bed.go()
    assert isinstance(exit, MmioRead)
    exit.value = 0x44332211
    regs, sregs = bed.vcpu.regs, bed.vcpu.sregs
    regs.rdx, sregs.cr2 = 0x77, 0x55
    bed.vcpu.regs, bed.vcpu.sregs = regs, sregs
    assert (bed.vcpu.regs.rdx, bed.vcpu.sregs.cr2) == (0x77, 0x55)
    exit = bed.go()
    assert isinstance(exit, MmioRead)
    assert (exit.gpa, exit.size) == (OTHER, 4)
    exit.value = 0x88776655
    while not isinstance(bed.go(), Hlt):
        pass
    assert (bed.vcpu.regs.rdx, bed.vcpu.sregs.cr2) == (0x77, 0x55)


@pytest.mark.needs("single_step")
def test_a_step_behind_an_access_finishes_it_first(guests: Guests) -> None:
    bed = guests.load(64, "in al, 0xf0\nadd al, 1\nhlt")
    exit = bed.go()
    assert isinstance(exit, IoIn)
    exit.data = b"\x41"
    while bed.vcpu.regs.rip < CODE + 4:
        assert isinstance(bed.vcpu.step(), Debug)
    assert bed.vcpu.regs.rax & 0xFF == 0x42


@pytest.mark.needs("breakpoint")
def test_a_breakpoint_holds_on_the_hot_path_too(guests: Guests) -> None:
    bed = guests.load(64, "mov cl, 3\nagain: nop\ndec cl\njnz again\nhlt")
    bed.vcpu.breakpoints = [CODE + 2]
    seen = []
    for _ in range(4):
        (code,) = bed.vcpu.exits(1)
        if code & packed.REASON_MASK == packed.ATTENTION:  # where breakpoints have to be stepped off
            code = bed.vcpu.enter()
        seen.append((code & packed.REASON_MASK, bed.vcpu.regs.rcx & 0xFF))
    assert seen == [(packed.DEBUG, 3), (packed.DEBUG, 2), (packed.DEBUG, 1), (packed.HLT, 0)]


def test_a_kick_survives_the_completion_of_an_access(guests: Guests) -> None:
    bed = guests.load(64, "out 0xf0, al\nagain: jmp again")
    assert isinstance(bed.go(), IoOut)
    bed.vcpu.kick()
    bed.vcpu.complete()
    assert isinstance(bed.vcpu.run(), Interrupted)


def test_a_completion_leaves_no_kick_behind(guests: Guests) -> None:
    bed = guests.load(64, "out 0xf0, al\nout 0xf1, al\nhlt")
    assert isinstance(bed.go(), IoOut)
    bed.vcpu.complete()
    exit = bed.go()
    assert isinstance(exit, IoOut)
    assert exit.port == 0xF1


def test_a_kick_can_be_taken_back(guests: Guests) -> None:
    bed = guests.load(64, "hlt")
    bed.vcpu.kick()
    bed.vcpu.forget_kick()
    assert isinstance(bed.vcpu.run(), Hlt)


def test_a_kick_under_way_is_not_sent_again(guests: Guests) -> None:
    """The first one signals the thread that ran the vCPU last; the others find it under way."""
    bed = guests.load(64, "out 0xf0, al\nhlt")
    assert isinstance(bed.go(), IoOut)
    before = kick_signals()
    for _ in range(1000):
        bed.vcpu.kick()
    assert kick_signals() - before <= 1
    assert isinstance(bed.vcpu.run(), Interrupted)
    assert isinstance(bed.vcpu.run(), Hlt)


def test_kicks_from_two_threads_at_any_moment_are_all_seen(guests: Guests) -> None:
    """Each run ends by a kick; a lost one would let the watchdog of `go()` end it, which takes two seconds."""
    bed = guests.load(64, "again: jmp again")
    enough = threading.Event()

    def kick_on() -> None:
        while not enough.is_set():
            bed.vcpu.kick()

    kickers = [threading.Thread(target=kick_on) for _ in range(2)]
    for kicker in kickers:
        kicker.start()
    try:
        assert all(isinstance(bed.vcpu.run(), Interrupted) for _ in range(200))
    finally:
        enough.set()
        for kicker in kickers:
            kicker.join()


# Events that are put in


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_software_interrupt_arrives_with_interrupts_off(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, "nop\nnop\nhlt")
    bed.vcpu.software_interrupt(0x42)
    assert bed.vector(bed.go()) == 0x42
    assert bed.frame(1) == [CODE]


@pytest.mark.parametrize("vector", [-1, 256])
def test_vectors_have_eight_bits(guests: Guests, vector: int) -> None:
    with pytest.raises(ConfigError, match="0 to 255"):
        guests.load(64, "hlt").vcpu.software_interrupt(vector)


@pytest.mark.needs("exceptions_64")
def test_an_injected_page_fault_brings_its_address(guests: Guests) -> None:
    bed = guests.load(64, "nop\nhlt")
    bed.vcpu.raise_exception(PAGE_FAULT, 0x6, cr2=0x1234_5678)
    assert bed.vector(bed.go()) == PAGE_FAULT
    assert bed.frame(2) == [0x6, CODE]
    assert bed.vcpu.sregs.cr2 == 0x1234_5678


@pytest.mark.needs("interrupt")
def test_the_interrupt_window_opens_when_the_guest_takes_interrupts(guests: Guests) -> None:
    bed = guests.load(64, "out 0xf0, al\nsti\nnop\nagain: jmp again")
    assert isinstance(bed.go(), IoOut)
    assert not bed.vcpu.interruptible
    bed.vcpu.interrupt_window = True
    assert isinstance(bed.go(), IrqWindowOpen)
    assert bed.vcpu.interruptible
    bed.vcpu.interrupt_window = False
    bed.vcpu.interrupt(0x55)
    assert not bed.vcpu.interruptible  # one is queued, and another would take its place
    assert bed.vector(bed.go()) == 0x55


VMCALL, VMMCALL = bytes.fromhex("0f01c1"), bytes.fromhex("0f01d9")


def code_after_hypercall(accelerator: Accelerator, code: bytes, *, patch: bool) -> bytes:
    with Testbed(accelerator, 64, patch_hypercalls=patch) as bed:
        bed.load(code + b"\xf4")
        bed.go(0.2)
        return bed.memory.read(CODE, 3)


def test_hypercalls_are_patched_only_on_request(accelerator: Accelerator) -> None:
    """Intel's processors know VMCALL, AMD's VMMCALL; with the quirk KVM turns one into the other in guest memory."""
    for code in (VMCALL, VMMCALL):
        assert code_after_hypercall(accelerator, code, patch=False) == code
    patched = {code_after_hypercall(accelerator, code, patch=True) for code in (VMCALL, VMMCALL)}
    assert len(patched) == (1 if accelerator.name == "kvm" else 2)  # the software CPU takes both as they are


# KVM's own trouble

RUN_WITHOUT_WORKERS = """
import os, resource, sys
import kvmpy, kvmpy.accel.kvm_exits, kvmpy.machine.dispatch
from kvmpy.machine.machine import Machine

def limit(threads):
    os.setuid(54321)  # RLIMIT_NPROC does not bind root, and counts a user's threads
    resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))

with kvmpy.open_accelerator() as kvm:
    if sys.argv[1] == "vcpu":
        with kvmpy.Testbed(kvm, bits=16) as bed:
            bed.load(b"\\xf4")
            limit(1)
            print(bed.vcpu.run())
    else:
        with Machine(kvm, memory=1 << 20, irqchip=sys.argv[2]) as machine:
            machine.load(kvmpy.plan_image("hello.bin", memory=1 << 20))
            limit(int(sys.argv[3]))
            print(machine.run(timeout=10))
"""


def run_without_workers(*arguments: str) -> str:
    command = [sys.executable, "-c", RUN_WITHOUT_WORKERS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if "Hlt()" in done.stdout or "kind='halt'" in done.stdout:
        pytest.skip("this kernel makes KVM's workers without counting them")
    return done.stdout + done.stderr


BECOMING = pytest.mark.root("to become another user")


@needs_kvm
@BECOMING
def test_a_worker_that_kvm_cannot_make_is_an_error_and_no_wake_up() -> None:
    assert "KvmError: KVM_RUN on vCPU 0: EAGAIN" in run_without_workers("vcpu")


@needs_kvm
@BECOMING
@pytest.mark.parametrize("irqchip", ["none", "kernel"])
def test_a_machine_tells_of_it_at_once(irqchip: str) -> None:
    told = run_without_workers("machine", irqchip, "2")
    assert "StopKind.HOST_ERROR" in told
    assert "EAGAIN" in told
    assert "ulimit -u" in told


@needs_kvm
@BECOMING
def test_a_machine_that_gets_no_thread_says_so() -> None:
    assert "HostError: vCPU 0: the host gives no thread for it" in run_without_workers("machine", "none", "1")


# Guests that exit for ever, each in a way of its own; what they touch is answered with nothing.
RESTLESS = {
    "a port": "again: in al, 0xf0\njmp again",
    "a device": f"mov ebx, {DEVICE:#x}\nagain: mov eax, [ebx]\njmp again",
    "a port to a device": f"again: mov edi, {DEVICE:#x}\nmov edx, 0xf0\nmov ecx, -1\nrep insb\njmp again",
    "a device to a port": f"again: mov esi, {DEVICE:#x}\nmov edx, 0xf0\nmov ecx, -1\nrep outsb\njmp again",
    "a device to a device": f"again: mov esi, {DEVICE:#x}\nmov edi, {OTHER:#x}\nmov ecx, -1\nrep movsd\njmp again",
    "a device to read-only memory": f"again: mov esi, {DEVICE:#x}\nmov edi, {ROM:#x}\nmovsb\njmp again",
    "a port to read-only memory": f"again: mov edx, 0xf0\nmov edi, {ROM:#x}\ninsb\njmp again",
    "the end of read-only memory": f"again: mov edi, {ROM + 0xFFE:#x}\nmov dword ptr [edi], 1\njmp again",
    "nothing": "again: jmp again",
}
FEW = 40  # exits that may come before a kick is heard: those of one instruction


@pytest.mark.parametrize("what", RESTLESS)
def test_a_kick_is_heard_whatever_the_guest_does(guests: Guests, what: str) -> None:
    bed = guests.load(32, RESTLESS[what])
    bed.vm.close()
    bed.memory.add(ROM, 0x1000, readonly=True, name="rom")
    bed.vm = guests.accelerator.create_vm()
    bed.vm.add_memory(bed.memory)
    bed.vcpu = bed.vm.create_vcpu()
    state = bed.initial_state()
    bed.vcpu.regs, bed.vcpu.sregs = state.regs, state.sregs
    for _ in range(100 if what != "nothing" else 0):
        assert not isinstance(bed.go(), Interrupted)
    for _ in range(3):
        bed.vcpu.kick()
        assert any(isinstance(bed.vcpu.run(), Interrupted) for _ in range(FEW))


@pytest.mark.parametrize("what", [name for name in RESTLESS if "read-only" not in name])
def test_a_machine_stops_at_its_deadline_whatever_the_guest_does(accelerator: Accelerator, what: str) -> None:
    """The software CPU once took 11 s to hear of it."""
    with loaded(accelerator, RESTLESS[what], mode="protected") as machine:
        started = time.monotonic()
        assert machine.run(timeout=0.2).kind == StopKind.TIMEOUT
        assert time.monotonic() - started < 3


LESSONS = {
    "lessons/modes.bin": 23,
    "lessons/trap.bin": 5,
    "lessons/paging.bin": 7,
    "lessons/device.bin": 20,
}  # before HLT


def transcript(accelerator: Accelerator, lesson: str, steps: int) -> list[object]:
    """Step through a lesson: the address of each instruction, and the kind of exit that it causes."""
    seen: list[object] = []
    with Machine(accelerator, memory=MEMORY, irqchip="none") as machine:
        machine.load(kvmpy.plan_image(lesson, memory=MEMORY))
        vcpu = machine.vcpus[0]
        while len(seen) < steps:
            at = vcpu.sregs.cs.base + vcpu.regs.rip
            exit = vcpu.step()
            if isinstance(exit, Hlt):
                break
            if not isinstance(exit, Debug):
                seen.append((hex(at), type(exit).__name__))
                vcpu.complete()
            elif not seen or seen[-1] != hex(at):
                seen.append(hex(at))
    return seen


@needs_kvm
@pytest.mark.parametrize("lesson", LESSONS)
def test_steps_are_the_same_on_both(lesson: str) -> None:
    """The software CPU once reported steps that had not happened, in front of instructions that it watches."""
    with kvmpy.open_accelerator("kvm") as kvm, kvmpy.open_accelerator("soft") as soft:
        if not kvm.features.single_step:
            pytest.skip("this host does not have the feature 'single_step'")
        assert transcript(soft, lesson, LESSONS[lesson]) == transcript(kvm, lesson, LESSONS[lesson])


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_step_executes_an_instruction(accelerator: Accelerator, lesson: str) -> None:
    if not accelerator.features.single_step:
        pytest.skip("this host does not have the feature 'single_step'")
    with Machine(accelerator, memory=MEMORY, irqchip="none") as machine:
        machine.load(kvmpy.plan_image(lesson, memory=MEMORY))
        vcpu = machine.vcpus[0]
        for _ in range(LESSONS[lesson] - 1):
            at = vcpu.sregs.cs.base + vcpu.regs.rip
            if not isinstance(vcpu.step(), Debug):
                vcpu.complete()
            assert vcpu.sregs.cs.base + vcpu.regs.rip != at
