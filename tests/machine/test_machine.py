"""The machine: it runs until its guest stops, says why, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
import time

import pytest

from kvmpy.accel.base import Accelerator
from kvmpy.accel.kvm import KvmAccelerator
from kvmpy.asm import assemble
from kvmpy.boot.flat import plan_flat
from kvmpy.boot.sidecar import Sidecar
from kvmpy.devices.base import Device
from kvmpy.errors import ConfigError
from kvmpy.machine.machine import Machine
from kvmpy.machine.stop import Stop, StopKind

MEMORY = 1 << 20


def boot(
    accelerator: Accelerator, source: str, *, mode: str = "real", seconds: float = 10, **options: object
) -> tuple[Stop, bytes, Machine]:
    """Run 16-bit (or other) source in a machine; return the stop reason, the output, and the closed machine."""
    output = bytearray()
    bits = {"real": 16, "protected": 32, "long": 64}[mode]
    run = {name: options.pop(name) for name in ("max_exits",) if name in options}
    with Machine(accelerator, memory=MEMORY * 4, output=output.extend, **options) as machine:  # type: ignore[arg-type]
        code = assemble(source, bits=bits, origin=0x7C00 if bits == 16 else 0x100000).code
        machine.load(plan_flat("test", code, Sidecar(mode=mode), memory=machine.memory.size))
        stop = machine.run(timeout=seconds, **run)  # type: ignore[arg-type]
        return stop, bytes(output), machine


@pytest.fixture(params=["none", "auto", "python"])
def irqchip(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("hlt", StopKind.HALT),
        ("mov al, 0\nout 0xf4, al", StopKind.EXIT),
        ("mov dx, 0x604\nmov ax, 0x2000\nout dx, ax\nhlt", StopKind.POWER_OFF),
        ("mov al, 0xfe\nout 0x64, al\nhlt", StopKind.RESET),
        ("mov dx, 0xcf9\nmov al, 6\nout dx, al\nhlt", StopKind.RESET),
    ],
)
def test_the_guest_s_own_ends(accelerator: Accelerator, irqchip: str, source: str, kind: str) -> None:
    stop, _, _ = boot(accelerator, source, irqchip=irqchip)
    assert stop.kind == kind
    assert stop.clean
    assert not stop.crashed


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_exit_code_is_the_guest_s(accelerator: Accelerator, code: int) -> None:
    stop, _, _ = boot(accelerator, f"mov al, {code}\nout 0xf4, al", irqchip="none")
    assert (stop.kind, stop.code) == (StopKind.EXIT, code)


def test_a_triple_fault(accelerator: Accelerator, irqchip: str) -> None:
    stop, _, _ = boot(accelerator, "ud2", mode="long", irqchip=irqchip)
    assert (stop.kind, stop.crashed) == (StopKind.TRIPLE_FAULT, True)


def test_a_loop_is_stopped_at_the_deadline(accelerator: Accelerator, irqchip: str) -> None:
    began = time.monotonic()
    stop, _, _ = boot(accelerator, "again: jmp again", irqchip=irqchip, seconds=0.2)
    assert stop.kind == StopKind.TIMEOUT
    assert time.monotonic() - began < 5


def test_a_limit_of_exits(accelerator: Accelerator) -> None:
    stop, _, machine = boot(accelerator, "again: in al, 0x99\njmp again", irqchip="none", max_exits=100)
    assert stop.kind == StopKind.EXIT_LIMIT
    assert sum(machine.bus.ports.unclaimed.values()) == 100


def test_strict_stops_at_an_access_to_nothing(accelerator: Accelerator) -> None:
    stop, _, _ = boot(accelerator, "mov dx, 0x1234\nin ax, dx\nhlt", strict=True, irqchip="none")
    assert stop.kind == StopKind.UNCLAIMED
    assert "0x1234" in stop.detail


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("port", ["0x3f8", "0xe9"])
def test_output_keeps_its_order(accelerator: Accelerator, irqchip: str, port: str, coalesce: bool) -> None:
    """More than is printed before bytes are collected, more than the ring holds, and an exit in between."""
    source = f"""
        mov dx, {port}
        mov cx, 4000
    again:
        mov al, cl
        out dx, al
        dec cx
        jnz again
        in al, 0x80
        mov al, '!'
        out dx, al
        hlt
    """
    stop, output, machine = boot(accelerator, source, irqchip=irqchip, coalesce=coalesce)
    assert stop.kind == StopKind.HALT
    if not coalesce:
        assert machine.vcpus[0].entries > 4000
    elif isinstance(accelerator, KvmAccelerator) and accelerator.kvm.capability("KVM_CAP_COALESCED_PIO"):
        assert machine.vcpus[0].entries < 2000
    assert output == bytes(n & 0xFF for n in range(4000, 0, -1)) + b"!"


def test_output_of_a_guest_that_does_not_exit_still_arrives(accelerator: Accelerator) -> None:
    """With coalescing the bytes lie in a ring; the machine looks there from time to time."""
    seen = threading.Event()
    with Machine(accelerator, memory=MEMORY, irqchip="none", output=lambda _data: seen.set()) as machine:
        code = assemble("mov al, 'x'\nout 0xe9, al\nagain: jmp again", bits=16, origin=0x7C00).code
        machine.load(plan_flat("test", code, Sidecar(), memory=MEMORY))

        def quit_when_seen() -> None:
            if seen.wait(10):
                machine.stop(Stop(StopKind.QUIT, "seen"))

        waiter = threading.Thread(target=quit_when_seen)
        waiter.start()
        stop = machine.run(timeout=10)
        waiter.join()
    assert (stop.kind, stop.detail) == (StopKind.QUIT, "seen")


def test_input_waits_until_the_guest_takes_it(accelerator: Accelerator) -> None:
    text = bytes(range(256)) * 4
    output = bytearray()
    source = f"""
        mov cx, {len(text)}
    wait: mov dx, 0x3fd
        in al, dx
        test al, 1
        jz wait
        mov dx, 0x3f8
        in al, dx
        out 0xe9, al
        loop wait
        hlt
    """
    with Machine(accelerator, memory=MEMORY, irqchip="none", output=output.extend) as machine:
        machine.send(text)
        machine.load(plan_flat("t", assemble(source, bits=16, origin=0x7C00).code, Sidecar(), memory=MEMORY))
        assert machine.run(timeout=20).kind == StopKind.HALT
    assert bytes(output) == text


@pytest.mark.parametrize("chips", ["auto", "python"])
def test_a_timer_interrupt_wakes_a_halted_guest(accelerator: Accelerator, chips: str) -> None:
    """The PIT's channel 0 through the PIC, in real mode: vector 8 after ICW2 = 8."""
    source = """
        xor ax, ax
        mov ss, ax
        mov word ptr [0x20], tick
        mov word ptr [0x22], ax
        mov al, 0x11
        out 0x20, al
        mov al, 8
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 0xa9
        out 0x40, al
        mov al, 4
        out 0x40, al
        xor cx, cx
    wait: sti
        hlt
        cli
        cmp cx, 5
        jb wait
        mov al, cl
        out 0xf4, al
    tick: inc cx
        mov al, 0x20
        out 0x20, al
        iret
    """
    stop, _, _ = boot(accelerator, source, irqchip=chips)
    assert stop.kind == StopKind.EXIT
    assert 5 <= stop.code < 50  # a tick that is late may arrive together with the next, before CLI


def test_halt_with_interrupts_off_ends_a_machine_with_a_chip(accelerator: Accelerator) -> None:
    stop, _, _ = boot(accelerator, "cli\nhlt", irqchip="auto")
    assert stop.kind == StopKind.HALT


START_SECOND = """
        mov esi, 0xfee00300
        mov dword ptr [esi], 0x000c4500     ; INIT to all but self (SDM vol. 3, 10.6.1)
        mov dword ptr [esi], 0x000c4608     ; SIPI: start at 0x8000
"""


def test_a_second_cpu_starts_by_init_and_sipi(accelerator: Accelerator) -> None:
    source = f"""
        mov edi, 0x8000
        mov esi, second_code
        mov ecx, 16
        rep movsb
        {START_SECOND}
    wait:
        mov ebx, 0x9000
        cmp byte ptr [ebx], 0x5a
        jne wait
        mov al, 3
        out 0xf4, al
    second_code:
    .code16
        xor ax, ax
        mov ds, ax
        mov byte ptr [0x9000], 0x5a
        hlt
    """
    stop, _, _ = boot(accelerator, source, mode="protected", cpus=2)
    assert (stop.kind, stop.code) == (StopKind.EXIT, 3)


def test_a_machine_with_two_cpus_halts_when_both_sleep(accelerator: Accelerator) -> None:
    stop, _, _ = boot(accelerator, "cli\nhlt", cpus=2)  # the second was never started
    assert stop.kind == StopKind.HALT


def test_a_machine_can_run_again(accelerator: Accelerator) -> None:
    with Machine(accelerator, memory=MEMORY, irqchip="none") as machine:
        code = assemble("mov al, 1\nout 0xf4, al\nmov al, 2\nout 0xf4, al", bits=16, origin=0x7C00).code
        machine.load(plan_flat("test", code, Sidecar(), memory=MEMORY))
        assert machine.run(timeout=5).code == 1
        assert machine.run(timeout=5).code == 2


def test_an_exception_in_a_device_reaches_the_caller(accelerator: Accelerator) -> None:
    def broken(_data: bytes) -> None:
        raise RuntimeError("no paper")

    with Machine(accelerator, memory=MEMORY, irqchip="none", coalesce=False, output=broken) as machine:
        code = assemble("out 0xe9, al\nhlt", bits=16, origin=0x7C00).code
        machine.load(plan_flat("test", code, Sidecar(), memory=MEMORY))
        with pytest.raises(RuntimeError, match="no paper"):
            machine.run(timeout=5)


class Counter(Device):
    """Answers every read with how many there were, in every byte."""

    name = "counter"

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return self.reads * 0x0101_0101

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError("nobody writes here")


@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax")])
def test_a_port_is_asked_anew_at_each_read(accelerator: Accelerator, size: int, register: str) -> None:
    """The machine keeps who answers a port, not the answer."""
    counter = Counter()
    with Machine(accelerator, memory=MEMORY, irqchip="none") as machine:
        machine.bus.ports.add(counter, 0x520, 4)
        source = f"mov dx, 0x520\nin {register}, dx\nin {register}, dx\nin {register}, dx\nout 0xf4, al"
        machine.load(plan_flat("t", assemble(source, bits=16, origin=0x7C00).code, Sidecar(), memory=MEMORY))
        assert machine.run(timeout=10).code == 3
        assert machine.vcpus[0].regs.rax & (1 << 8 * size) - 1 == 0x0303_0303 & (1 << 8 * size) - 1


@pytest.mark.parametrize(("cpus", "irqchip"), [(0, "auto"), (65, "auto"), (2, "none"), (1, "both")])
def test_machines_that_cannot_be_are_refused(accelerator: Accelerator, cpus: int, irqchip: str) -> None:
    with pytest.raises(ConfigError):
        Machine(accelerator, memory=MEMORY, cpus=cpus, irqchip=irqchip)


@pytest.mark.parametrize("memory", [1, 4095, 1 << 60])
def test_memory_that_cannot_be_is_refused(accelerator: Accelerator, memory: int) -> None:
    with pytest.raises(ConfigError):
        Machine(accelerator, memory=memory)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("kvm" in line for line in maps)


def test_nothing_is_left_behind(accelerator: Accelerator) -> None:
    boot(accelerator, "hlt", irqchip="none")
    before = descriptors(), mappings(), threading.active_count()
    for source in ("hlt", "mov al, 1\nout 0xf4, al", "ud2", "in al, 0x99\nhlt"):
        for _ in range(5):
            boot(accelerator, source, irqchip="none", mode="protected")
    with pytest.raises(ConfigError):
        Machine(accelerator, memory=MEMORY, cpus=99)
    assert (descriptors(), mappings(), threading.active_count()) == before


SWEEP_PORTS = """
        xor dx, dx
    again:
        in al, dx
        in ax, dx
        in eax, dx
        mov cx, dx                          ; in groups of 8: 0x60, 0xf0, 0x600, 0xcf8
        and cl, 0xf8
        cmp cx, 0x60
        je skip
        cmp cx, 0xf0
        je skip
        cmp cx, 0x600
        je skip
        cmp cx, 0xcf8
        je skip
        mov eax, edx
        out dx, al
        out dx, ax
    skip:
        inc dx
        jnz again
        hlt
"""


def test_a_sweep_over_all_ports_does_no_harm(accelerator: Accelerator) -> None:
    """Every port is read in three sizes and written in two; those that switch the machine off are only read."""
    stop, _, machine = boot(accelerator, SWEEP_PORTS, irqchip="none", seconds=60)
    assert stop.kind == StopKind.HALT
    assert len(machine.bus.ports.unclaimed) == 4096


def test_a_sweep_over_unmapped_addresses_does_no_harm(accelerator: Accelerator) -> None:
    source = """
        mov ebx, 0x500000
    again:
        mov eax, [ebx]
        mov [ebx + 4], eax
        add ebx, 0x7fff8
        cmp ebx, 0xfe000000
        jb again
        hlt
    """
    stop, _, machine = boot(accelerator, source, mode="protected", irqchip="none", seconds=60)
    assert stop.kind == StopKind.HALT
    assert machine.bus.mmio.unclaimed
