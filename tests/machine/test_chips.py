"""Interrupt chips, and who sleeps for good."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
from machines import load, loaded, on_second_cpu

from kvmpy.accel.base import Accelerator, Vcpu
from kvmpy.accel.exits import IoOut
from kvmpy.boot.image import plan_image
from kvmpy.errors import ConfigError
from kvmpy.kvm.vcpu import kick_signals
from kvmpy.machine.chips import Sleepers
from kvmpy.machine.machine import TICK, Machine
from kvmpy.machine.stop import Stop, StopKind

PROMPT = b"\n> "
GUEST_MEMORY = 64 << 20


def test_a_second_cpu_that_runs_keeps_a_machine_alive_whose_first_sleeps(accelerator: Accelerator) -> None:
    """The second was asleep once: before its SIPI. It runs without exits until the host lets it go on."""
    first = "wait: cmp byte ptr [0x9000], 0x5a\njne wait\nout 0x91, al\ncli\nhlt"
    second = "mov byte ptr [0x9000], 0x5a\nspin: cmp byte ptr [0x9001], 1\njne spin\nmov al, 7\nout 0xf4, al"
    with loaded(accelerator, on_second_cpu(first, second), mode="protected", cpus=2, irqchip="auto") as machine:

        def let_go() -> None:
            machine.memory.write(0x9001, b"\1")

        machine.events.call_at(time.monotonic() + 10 * TICK, let_go)
        stop = machine.run(timeout=20)
    assert (stop.kind, stop.code) == (StopKind.EXIT, 7)


def test_a_machine_halts_when_the_second_cpu_sleeps_too(accelerator: Accelerator) -> None:
    first = "wait: cmp byte ptr [0x9000], 0x5a\njne wait\ncli\nhlt"
    second = "mov byte ptr [0x9000], 0x5a\ncli\nhlt"
    with loaded(accelerator, on_second_cpu(first, second), mode="protected", cpus=2, irqchip="auto") as machine:
        assert machine.run(timeout=20).kind == StopKind.HALT


# The count of sleepers, alone


class Held:
    """Notes who holds."""

    def __init__(self) -> None:
        self.holds: list[str] = []
        self.sleepers = Sleepers(3, self.holds.append, lambda who: self.holds.remove(who))


def test_one_answer_each_is_not_enough() -> None:
    held = Held()
    assert not any(held.sleepers.report(cpu, asleep=True) for cpu in range(3))
    assert held.holds  # the third answer holds them for the count
    assert not held.sleepers.report(0, asleep=True)
    assert held.sleepers.report(1, asleep=True)


def test_who_woke_up_meanwhile_ends_the_count() -> None:
    held = Held()
    for cpu in range(3):
        held.sleepers.report(cpu, asleep=True)
    assert not held.sleepers.report(0, asleep=False)
    assert not held.holds
    assert not held.sleepers.report(1, asleep=True)
    assert not held.holds  # the first has not said again that it sleeps


def test_a_single_cpu_needs_no_count() -> None:
    holds: list[str] = []
    assert Sleepers(1, holds.append, holds.remove).report(0, asleep=True)
    assert not holds


# Kicks and wake-ups


def until_prompt(machine: Machine, line: bytes) -> bool:
    """Run until the monitor asks for a command; send `line` first. False when it did not in time."""
    seen = bytearray()

    def output(data: bytes) -> None:
        seen.extend(data)
        if PROMPT in seen:
            machine.stop(Stop(StopKind.QUIT, "prompt"))

    machine.output = output
    if line:
        machine.send(line)
    return machine.run(timeout=10).detail == "prompt"


def test_a_guest_that_runs_again_and_again_does_not_stall(accelerator: Accelerator) -> None:
    """The flag that `stop()` raises must be down for the next run: else the loop spins and kicks for ever."""
    for _ in range(3):
        with Machine(accelerator, memory=GUEST_MEMORY) as machine:
            machine.load(plan_image("guest.bin", memory=GUEST_MEMORY))
            assert all(until_prompt(machine, line) for line in (b"", b"ps\n", b"trap 13\n", b"mem\n", b"ticks\n"))


def test_nothing_spins_while_the_guest_idles(accelerator: Accelerator) -> None:
    """In half a second of an idle guest.bin, run anew several times, the loop wakes up for its ticks, hardly more."""
    seconds, runs = 0.1, 5
    with Machine(accelerator, memory=GUEST_MEMORY) as machine:
        machine.load(plan_image("guest.bin", memory=GUEST_MEMORY))
        assert until_prompt(machine, b"")
        machine.output = lambda _data: None
        wakeups, signals, entries = machine.events.wakeups, kick_signals(), machine.vcpus[0].entries
        for _ in range(runs):
            assert machine.run(timeout=seconds).kind == StopKind.TIMEOUT
        ticks = seconds / TICK + 10  # the first ticks come faster
        if not machine.chips.sleeps_inside:
            ticks += 100 * seconds
        assert machine.events.wakeups - wakeups <= 3 * runs * ticks
        assert kick_signals() - signals <= 2 * runs * ticks
        # Python chips exit for each of the guest's own ticks too: 100 a second, a handful of exits each.
        exits = 0 if machine.chips.sleeps_inside else 10 * 100 * seconds * runs
        assert machine.vcpus[0].entries - entries <= 3 * runs * ticks + exits


# Eventfds


def test_a_write_can_signal_instead_of_exiting(accelerator: Accelerator) -> None:
    source = (
        "mov dx, 0x520\nmov al, 5\nout dx, al\nmov al, 6\nout dx, al\nagain: cmp byte ptr [0x9000], 1\njne again\nhlt"
    )
    with loaded(accelerator, source) as machine:
        rung: list[int] = []

        def ring() -> None:
            rung.append(machine.vcpus[0].entries)
            machine.memory.write(0x9000, b"\1")

        if not machine.eventfds.on_write(0x520, 1, ring, port=True, match=6):
            pytest.skip("the accelerator has no ioeventfd")
        assert machine.run(timeout=10).kind == StopKind.HALT
        assert machine.bus.ports.unclaimed == {("write", 0x520, 1): 1}  # the 5 did not match, and exited
    assert len(rung) == 1


IRQ3_TO_VECTOR_0X0B = """
        xor ax, ax
        mov ss, ax
        mov word ptr [0x2c], arrived        ; vector 8 + 3 of the real-mode table
        mov word ptr [0x2e], ax
        mov al, 0x11
        out 0x20, al
        mov al, 8
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xf7
        out 0x21, al
        out 0x91, al
    wait: sti
        hlt
        jmp wait
    arrived: mov al, 0x2a
        out 0xf4, al
"""


def when_ready(machine: Machine, action: Callable[[], None]) -> None:
    """Let the loop call `action` once the guest has set up its chips and says so at port 0x91."""
    own = machine.handlers[IoOut]

    def watch(vcpu: Vcpu, exit: IoOut) -> Stop | None:
        if exit.port == 0x91:
            machine.events.call_at(time.monotonic(), action)
        return own(vcpu, exit)

    machine.handlers[IoOut] = watch


def test_an_eventfd_interrupts_from_any_thread(accelerator: Accelerator) -> None:
    with loaded(accelerator, IRQ3_TO_VECTOR_0X0B, irqchip="auto") as machine:
        fd = machine.eventfds.interrupt(3)
        signaller = threading.Thread(target=os.eventfd_write, args=(fd, 1))
        when_ready(machine, signaller.start)
        stop = machine.run(timeout=10)
        signaller.join()
    assert (stop.kind, stop.code) == (StopKind.EXIT, 0x2A)


def test_a_timer_of_a_device_interrupts(accelerator: Accelerator) -> None:
    with loaded(accelerator, IRQ3_TO_VECTOR_0X0B, irqchip="auto") as machine:

        def alarm() -> None:
            machine.chips.set_line(3, 1)
            machine.chips.set_line(3, 0)

        when_ready(machine, alarm)
        assert machine.run(timeout=10).code == 0x2A


# The APICs, the same whoever implements them


IDT = """
        mov eax, {handler}                  ; vector 0x40: an interrupt gate
        mov word ptr [0x2200], ax
        mov word ptr [0x2202], 8
        mov word ptr [0x2204], 0x8e00
        shr eax, 16
        mov word ptr [0x2206], ax
        lidt [table]
        mov esi, 0xfee000f0
        mov dword ptr [esi], 0x1ff          ; the local APIC on
        mov al, 0xff                        ; and the PICs off: some chips let them through after reset
        out 0x21, al
        out 0xa1, al
"""
IDT_TABLE = "table: .word 0x7ff\n.long 0x2000"
chips = pytest.mark.parametrize("chips", ["auto", "python"])


@chips
@pytest.mark.needs("exceptions_32")
def test_the_local_timer_interrupts_a_halted_guest(accelerator: Accelerator, chips: str) -> None:
    """One shot; the handler leaves, so that no IRET is needed."""
    source = f"""
        {IDT.format(handler="arrived")}
        mov esi, 0xfee00320
        mov dword ptr [esi], 0x40           ; one shot, vector 0x40
        mov esi, 0xfee003e0
        mov dword ptr [esi], 0xb            ; divide by 1
        mov esi, 0xfee00380
        mov dword ptr [esi], 5000000
        sti
    again: hlt
        jmp again
    arrived: mov al, 0x21
        out 0xf4, al
    {IDT_TABLE}
    """
    with loaded(accelerator, source, mode="protected", irqchip=chips) as machine:
        assert machine.run(timeout=10).code == 0x21


@chips
@pytest.mark.needs("exceptions_32")
def test_a_line_through_the_io_apic(accelerator: Accelerator, chips: str) -> None:
    source = f"""
        {IDT.format(handler="arrived")}
        mov esi, 0xfec00000
        mov dword ptr [esi], 0x10 + 2 * 9 + 1
        mov edi, 0xfec00010
        mov dword ptr [edi], 0
        mov dword ptr [esi], 0x10 + 2 * 9
        mov dword ptr [edi], 0x40           ; pin 9, edge, to vector 0x40 of processor 0
        out 0x91, al
        sti
    again: hlt
        jmp again
    arrived: mov al, 0x22
        out 0xf4, al
    {IDT_TABLE}
    """
    with loaded(accelerator, source, mode="protected", irqchip=chips) as machine:

        def pulse() -> None:
            machine.chips.set_line(9, 1)
            machine.chips.set_line(9, 0)

        when_ready(machine, pulse)
        assert machine.run(timeout=10).code == 0x22


@chips
@pytest.mark.needs("exceptions_32")
def test_one_cpu_interrupts_another(accelerator: Accelerator, chips: str) -> None:
    """The second sends vector 0x40 to the first, which sleeps."""
    first = f"""
        {IDT.format(handler="arrived")}
        mov ebx, 0x9001
        mov byte ptr [ebx], 1
        sti
    again: hlt
        jmp again
    arrived: mov al, 0x23
        out 0xf4, al
    {IDT_TABLE}
    """
    second = """
    wait: cmp byte ptr [0x9001], 1
        jne wait
        mov ax, 0xffff                      ; the APIC is out of reach in real mode: through a flat segment
        cli
        lgdt [0x9100]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, 8
        mov ds, bx
        mov esi, 0xfee00300
        mov dword ptr [esi], 0x00004040     ; fixed, vector 0x40, to the processor in ICR's upper half: 0
        hlt
    """
    with loaded(accelerator, on_second_cpu(first, second), mode="protected", cpus=2, irqchip=chips) as machine:
        machine.memory.write(0x9100, b"\x0f\0" + (0x9110).to_bytes(4, "little"))
        machine.memory.write_int(0x9118, 8, 0x00CF93000000FFFF)
        assert machine.run(timeout=10).code == 0x23


@chips
def test_a_second_cpu_with_either_chips(accelerator: Accelerator, chips: str) -> None:
    first = "wait: cmp byte ptr [0x9000], 0x5a\njne wait\nmov al, 3\nout 0xf4, al"
    source = on_second_cpu(first, "mov byte ptr [0x9000], 0x5a\ncli\nhlt")
    with loaded(accelerator, source, mode="protected", cpus=2, irqchip=chips) as machine:
        assert machine.run(timeout=10).code == 3


@pytest.mark.needs("chips")
def test_memory_comes_before_the_chips(accelerator: Accelerator) -> None:
    """A slot made after the in-kernel chips costs milliseconds; so the order of the calls is kept by the machine."""
    order: list[str] = []

    class Watched:
        """The accelerator, with the calls on its VMs noted."""

        name = accelerator.name

        def create_vm(self, **options: bool) -> object:
            vm = accelerator.create_vm(**options)
            for name in ("add_memory", "create_chips", "create_vcpu"):
                setattr(vm, name, self._noted(name, getattr(vm, name)))
            return vm

        def _noted(self, name, call):  # type: ignore[no-untyped-def]
            def noted(*arguments: object, **options: object) -> object:
                order.append(name)
                return call(*arguments, **options)

            return noted

    with Machine(Watched(), memory=1 << 20) as machine:  # type: ignore[arg-type]
        load(machine, "cli\nhlt")
    assert order == ["add_memory", "create_chips", "create_vcpu"]


@pytest.mark.parametrize("name", ["both", "", "KERNEL"])
def test_chips_that_there_are_not(accelerator: Accelerator, name: str) -> None:
    with pytest.raises(ConfigError, match="choose one of auto, kernel, python, none"):
        Machine(accelerator, memory=1 << 20, irqchip=name)
