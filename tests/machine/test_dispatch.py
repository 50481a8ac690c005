"""Serving: exits find their handlers, handlers can be replaced, and running goes on exactly where it stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Guests
from machines import loaded

from kvmpy.accel import packed
from kvmpy.accel.base import Accelerator, Vcpu
from kvmpy.accel.exits import (
    Debug,
    Exit,
    Hypercall,
    InternalError,
    Interrupted,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Rdmsr,
    Shutdown,
    SystemEvent,
    UnknownExit,
    Wrmsr,
)
from kvmpy.devices.base import Device
from kvmpy.errors import ConfigError
from kvmpy.machine.dispatch import KEPT, kind_of
from kvmpy.machine.machine import Machine
from kvmpy.machine.stop import Stop, StopKind

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MISC_ENABLE = 0x1A0
BROKEN = "ud2"  # without an interrupt table: a triple fault


class Counter(Device):
    """Answers every read with how many there were."""

    name = "counter"

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return self.reads

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError("nobody writes here")


# Limits of exits


def test_a_read_at_the_limit_gets_the_device_s_answer_when_the_machine_runs_again(accelerator: Accelerator) -> None:
    with loaded(accelerator, "mov dx, 0x520\nin al, dx\nmov bl, al\nin al, dx\nmov bh, al\nhlt") as machine:
        machine.bus.ports.add(Counter(), 0x520, 1)
        for _ in range(2):
            assert machine.run(max_exits=1, timeout=5).kind == StopKind.EXIT_LIMIT
        assert machine.run(timeout=5).kind == StopKind.HALT
        assert machine.vcpus[0].regs.rbx & 0xFFFF == 0x0201


def test_one_exit_a_run_gets_a_machine_on(accelerator: Accelerator) -> None:
    output = bytearray()
    source = "mov cx, 5\nagain: mov al, cl\nout 0xe9, al\nloop again\nmov al, 7\nout 0xf4, al"
    with loaded(accelerator, source, output=output.extend, coalesce=False) as machine:
        stops = [machine.run(max_exits=1, timeout=5).kind for _ in range(5)]
        assert stops == [StopKind.EXIT_LIMIT] * 5
        assert machine.run(max_exits=1, timeout=5) == Stop(machine.stop_reason.kind, machine.stop_reason.detail, code=7)
    assert output == bytes((5, 4, 3, 2, 1))


def test_kicks_are_no_exits(accelerator: Accelerator) -> None:
    """A guest that never exits is kicked every 20 ms to see whether it sleeps."""
    with loaded(accelerator, "again: jmp again") as machine:
        assert machine.run(max_exits=10, timeout=0.6).kind == StopKind.TIMEOUT
        assert machine.vcpus[0].entries > 10


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_a_limit_is_kept_to_the_exit(accelerator: Accelerator, limit: int) -> None:
    with loaded(accelerator, "again: in al, 0x99\njmp again") as machine:
        assert machine.run(max_exits=limit, timeout=10).kind == StopKind.EXIT_LIMIT
        assert sum(machine.bus.ports.unclaimed.values()) == limit


# Going on by another way


@pytest.mark.needs("single_step")
def test_a_step_behind_a_run_is_one_instruction(accelerator: Accelerator) -> None:
    with loaded(accelerator, "out 0x80, al\nmov al, 1\nmov al, 2\nmov al, 3\nhlt") as machine:
        assert machine.run(max_exits=1, timeout=5).kind == StopKind.EXIT_LIMIT
        vcpu = machine.vcpus[0]
        vcpu.complete()
        for expected in (0x7C04, 0x7C06):
            exit = vcpu.step()
            assert isinstance(exit, Debug)
            assert exit.pc == expected
        assert machine.run(timeout=5).kind == StopKind.HALT


@pytest.mark.needs("breakpoint")
def test_a_breakpoint_stops_the_machine_each_time_it_is_reached(accelerator: Accelerator) -> None:
    with loaded(accelerator, "mov cl, 4\nagain: nop\ndec cl\njnz again\nhlt") as machine:
        machine.vcpus[0].breakpoints = [0x7C02]
        counts = []
        while (stop := machine.run(timeout=5)).kind == StopKind.DEBUG:
            assert isinstance(stop.exit, Debug)
            assert stop.exit.pc == 0x7C02
            counts.append(machine.vcpus[0].regs.rcx & 0xFF)
        assert (stop.kind, counts) == (StopKind.HALT, [4, 3, 2, 1])


@pytest.mark.needs("breakpoint")
def test_a_handler_can_watch_a_breakpoint_without_stopping(accelerator: Accelerator) -> None:
    counts = []
    with loaded(accelerator, "mov cl, 4\nagain: nop\ndec cl\njnz again\nhlt") as machine:
        machine.vcpus[0].breakpoints = [0x7C02]
        machine.handlers[Debug] = lambda vcpu, _exit: counts.append(vcpu.regs.rcx & 0xFF)
        assert machine.run(timeout=5).kind == StopKind.HALT
    assert counts == [4, 3, 2, 1]


def test_registers_assigned_at_half_of_a_write_do_not_lose_the_rest(accelerator: Accelerator) -> None:
    """One write begins in memory and ends behind it; another crosses from one page of nothing to the next."""
    source = "mov eax, 0x11223344\nmov [0x3ffffe], eax\nmov [0x400ffe], eax\nhlt"
    with loaded(accelerator, source, mode="protected") as m:
        seen: list[tuple[int, int, int]] = []

        def note(vcpu: Vcpu, exit: MmioWrite) -> None:
            seen.append((exit.gpa, exit.size, exit.value))
            regs = vcpu.regs
            regs.rdx = len(seen)
            vcpu.regs = regs

        m.handlers[MmioWrite] = note
        assert m.run(timeout=5).kind == StopKind.HALT
        assert seen == [(0x400000, 2, 0x1122), (0x400FFE, 2, 0x3344), (0x401000, 2, 0x1122)]
        assert m.vcpus[0].regs.rdx == 3
        assert m.memory.read(0x3FFFFE, 2) == b"\x44\x33"


# Handlers


def test_what_stopped_the_machine_is_told_as_an_exit(accelerator: Accelerator) -> None:
    with loaded(accelerator, BROKEN, mode="long") as machine:
        assert isinstance(machine.run(timeout=5).exit, Shutdown)
    with loaded(accelerator, "mov dx, 0x1234\nin ax, dx\nhlt", strict=True) as machine:
        exit = machine.run(timeout=5).exit
        assert isinstance(exit, IoIn)
        assert (exit.port, exit.size) == (0x1234, 2)


@pytest.mark.needs("msr_exit")
def test_msrs_have_handlers(accelerator: Accelerator) -> None:
    source = f"mov ecx, {MISC_ENABLE}\nrdmsr\nadd eax, 1\nmov edx, 3\nwrmsr\nout 0xf4, al"
    written = []
    with loaded(accelerator, source, mode="long") as machine:
        machine.vm.exit_on_msrs([MISC_ENABLE])

        def read(_vcpu: Vcpu, exit: Rdmsr) -> None:
            exit.value = 41

        machine.handlers[Rdmsr] = read
        machine.handlers[Wrmsr] = lambda _vcpu, exit: written.append((exit.index, exit.value))
        assert machine.run(timeout=5).code == 42
    assert written == [(MISC_ENABLE, 3 << 32 | 42)]


@pytest.mark.needs("msr_exit", "exceptions_64")
def test_an_msr_without_a_handler_is_a_general_protection_fault(accelerator: Accelerator) -> None:
    with loaded(accelerator, f"mov ecx, {MISC_ENABLE}\nrdmsr\nhlt", mode="long") as machine:
        machine.vm.exit_on_msrs([MISC_ENABLE])
        assert machine.run(timeout=5).kind == StopKind.TRIPLE_FAULT  # there is no interrupt table
        assert machine.own_handlers.unclaimed_msrs == {("read", MISC_ENABLE): 1}


@pytest.mark.needs("msr_exit")
def test_what_is_filled_into_the_exit_of_a_stop_is_the_answer(accelerator: Accelerator) -> None:
    with loaded(accelerator, f"mov ecx, {MISC_ENABLE}\nrdmsr\nout 0xf4, al", mode="long") as machine:
        machine.vm.exit_on_msrs([MISC_ENABLE])
        machine.handlers[Rdmsr] = lambda vcpu, _exit: Stop(StopKind.QUIT, "let me think", vcpu=vcpu.id)
        stop = machine.run(timeout=5)
        assert isinstance(stop.exit, Rdmsr)
        stop.exit.value = 77
        assert machine.run(timeout=5).code == 77


def test_accesses_can_be_handled_and_passed_on(accelerator: Accelerator) -> None:
    seen: list[Exit] = []
    with loaded(accelerator, "in al, 0x90\nout 0x91, al\nmov al, 9\nout 0xf4, al") as machine:
        own = machine.handlers[IoOut]

        def answer(_vcpu: Vcpu, exit: IoIn) -> None:
            exit.data = b"\x5a"

        def watch(vcpu: Vcpu, exit: IoOut) -> Stop | None:
            seen.append(exit)
            return own(vcpu, exit)

        machine.handlers[IoIn] = answer
        machine.handlers[IoOut] = watch
        assert machine.run(timeout=5).code == 9
    assert seen == [IoOut(0x91, 1, b"\x5a"), IoOut(0xF4, 1, b"\x09")]


def test_handlers_and_devices_can_change_while_the_guest_runs(accelerator: Accelerator) -> None:
    """What a port led to is kept after its first use, and must be forgotten then."""
    with loaded(accelerator, "again: mov dx, 0x520\nin al, dx\nout 0x91, al\njmp again") as machine:
        first, second = Counter(), Counter()
        machine.bus.ports.add(first, 0x520, 1)
        values: list[int] = []

        def note(_vcpu: Vcpu, exit: IoOut) -> Stop | None:
            values.append(exit.value)
            if len(values) == 3:
                machine.bus.ports.replace(0x520, second)
            if len(values) == 5:
                machine.handlers[IoIn] = lambda _vcpu, exit: setattr(exit, "data", b"\x99")
            if len(values) == 7:
                del machine.handlers[IoIn]
                assert machine.bus.ports.remove(0x520) is second
            return Stop(StopKind.QUIT, "enough") if len(values) == 8 else None

        machine.handlers[IoOut] = note
        assert machine.run(timeout=10).detail == "enough"
    assert values == [1, 2, 3, 1, 2, 0x99, 0x99, 0xFF]


@pytest.mark.needs("single_step")
def test_a_handler_may_step_the_guest_and_still_be_stopped(accelerator: Accelerator) -> None:
    """Its steps may meet the kick that was meant for the machine."""

    def step_on(vcpu: Vcpu, _exit: IoOut) -> None:
        for _ in range(50):
            vcpu.step()

    with loaded(accelerator, "again: out 0x91, al\nnop\nnop\njmp again") as machine:
        machine.handlers[IoOut] = step_on
        assert machine.run(timeout=0.3).kind == StopKind.TIMEOUT


@pytest.mark.parametrize("kind", [Interrupted, int, "IoIn"])
def test_what_is_no_exit_cannot_be_handled(accelerator: Accelerator, kind: object) -> None:
    with loaded(accelerator, "hlt") as machine, pytest.raises(ConfigError, match="there are IoIn, IoOut"):
        machine.handlers[kind] = lambda _vcpu, _exit: None  # type: ignore[index]


def test_a_handler_must_be_callable(accelerator: Accelerator) -> None:
    with loaded(accelerator, "hlt") as machine, pytest.raises(ConfigError, match="give a function"):
        machine.handlers[IoIn] = 5  # type: ignore[assignment]


@pytest.mark.parametrize("answer", [0, "stop", True, StopKind.QUIT])
def test_a_handler_that_returns_something_else_is_told(accelerator: Accelerator, answer: object) -> None:
    with loaded(accelerator, "in al, 0x90\nhlt") as machine:
        machine.handlers[IoIn] = lambda _vcpu, _exit: answer  # type: ignore[assignment,return-value]
        with pytest.raises(ConfigError, match="IoIn returned"):
            machine.run(timeout=5)
        del machine.handlers[IoIn]
        assert machine.run(timeout=5).kind == StopKind.HALT


@pytest.mark.parametrize("data", [None, 5, "x", [1]])
def test_an_answer_of_another_type_is_told(accelerator: Accelerator, data: object) -> None:
    with loaded(accelerator, "in al, 0x90\nhlt") as machine:
        machine.handlers[IoIn] = lambda _vcpu, exit: setattr(exit, "data", data)
        with pytest.raises(ConfigError, match="must be bytes"):
            machine.run(timeout=5)


class Odd(Device):
    """A device that answers with no number."""

    name = "odd"

    def read(self, offset: int, size: int) -> int:
        return None  # type: ignore[return-value]

    def write(self, offset: int, size: int, value: int) -> None:
        pass


@pytest.mark.parametrize("source", ["mov dx, 0x520\nin al, dx\nhlt", "mov dx, 0x520\nmov cx, 2\nrep insb\nhlt"])
def test_a_device_that_answers_with_no_number_is_told(accelerator: Accelerator, source: str) -> None:
    with loaded(accelerator, source) as machine:
        machine.bus.ports.add(Odd(), 0x520, 1)
        with pytest.raises(ConfigError, match="odd answered a read"):
            machine.run(timeout=5)


def test_an_exception_in_a_handler_reaches_the_caller_and_the_machine_goes_on(accelerator: Accelerator) -> None:
    with loaded(accelerator, "in al, 0x90\nmov al, 4\nout 0xf4, al") as machine:

        def broken(_vcpu: Vcpu, _exit: IoIn) -> None:
            raise ZeroDivisionError("my own mistake")

        machine.handlers[IoIn] = broken
        with pytest.raises(ZeroDivisionError, match="my own mistake"):
            machine.run(timeout=5)
        assert machine.run(timeout=5).code == 4


@pytest.mark.parametrize("act", [lambda m: m.stop(Stop(StopKind.QUIT, "from the handler")), lambda m: m.close()])
def test_a_handler_may_stop_or_close_the_machine(accelerator: Accelerator, act: Callable[[Machine], None]) -> None:
    with loaded(accelerator, "in al, 0x90\nagain: jmp again") as machine:
        machine.handlers[IoIn] = lambda _vcpu, _exit: act(machine)
        assert machine.run(timeout=5).kind == StopKind.QUIT


def test_a_handler_may_not_run_the_machine(accelerator: Accelerator) -> None:
    with loaded(accelerator, "in al, 0x90\nhlt") as machine:
        machine.handlers[IoIn] = lambda _vcpu, _exit: machine.run()
        with pytest.raises(ConfigError, match="runs already"):
            machine.run(timeout=5)


# What no host here provokes: the table itself


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (packed.IO, IoIn),
        (packed.IO | packed.OUT, IoOut),
        (packed.MMIO, MmioRead),
        (packed.MMIO | packed.OUT, MmioWrite),
        (packed.HYPERCALL, Hypercall),
        (packed.SYSTEM_EVENT, SystemEvent),
        (packed.INTERNAL_ERROR, InternalError),
        (99, UnknownExit),
    ],
)
def test_the_kind_of_a_packed_exit(code: int, kind: type[Exit]) -> None:
    assert kind_of(code) is kind


def test_the_machine_s_own_answers(accelerator: Accelerator, guests: Guests) -> None:
    """An unknown hypercall returns -KVM_ENOSYS (Documentation/virt/kvm/x86/hypercalls.rst)."""
    with loaded(accelerator, "hlt") as machine:
        vcpu = machine.vcpus[0]
        call = Hypercall(12)
        assert machine.handlers[Hypercall](vcpu, call) is None
        assert call.result == (1 << 64) - 1000
        for event, kind in ((1, StopKind.POWER_OFF), (2, StopKind.RESET), (3, StopKind.INTERNAL_ERROR)):
            stop = machine.handlers[SystemEvent](vcpu, SystemEvent(event))
            assert stop is not None
            assert stop.kind == kind


def run_on(accelerator: Accelerator, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script that opens an accelerator without naming one."""
    environment = {**os.environ, "KVMPY_ACCEL": accelerator.name}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=30, env=environment)


def test_the_example_finishes_an_instruction_that_kvm_refuses(accelerator: Accelerator) -> None:
    script = EXAMPLES / "finish_refused.py"
    assert len(script.read_text().splitlines()) <= 45
    done = run_on(accelerator, str(script))
    lines = [] if accelerator.features.popcnt else ["finished: popcnt eax, ebx"]
    assert done.stdout.splitlines() == [*lines, "exit, code 13"]  # 0x00ff0f01 has 13 ones


def test_int3_is_finished_by_the_same_example(accelerator: Accelerator) -> None:
    """With INT3 in the guest, and a handler for vector 3 that leaves with code 3."""
    guest = """
        mov eax, handler                    ; an interrupt gate (Intel SDM vol. 3, figure 6-2)
        mov word ptr [0x2018], ax
        mov word ptr [0x201a], 8
        mov word ptr [0x201c], 0x8e00
        shr eax, 16
        mov word ptr [0x201e], ax
        lidt [table]
        int3
        hlt
    handler: mov al, 3
        out 0xf4, al
    table: .word 0x7ff
        .long 0x2000
    """
    text = (EXAMPLES / "finish_refused.py").read_text()
    before, _, rest = text.partition('GUEST = """')
    script = f'{before}GUEST = """{guest}{rest[rest.index(chr(34) * 3) :]}'
    done = run_on(accelerator, "-c", script)
    assert done.stdout.splitlines()[-1:] == ["exit, code 3"], done.stdout + done.stderr


def test_a_second_run_starts_soon(accelerator: Accelerator) -> None:
    """The threads are kept: the best of many runs shows no thread being made (the bench has the figure)."""
    with loaded(accelerator, "again: in al, 0x99\njmp again") as machine:
        machine.run(max_exits=1, timeout=5)
        names = {thread.name for thread in machine._threads}
        first = list(machine._threads)
        best = 1.0
        for _ in range(50):
            start = time.perf_counter()
            machine.run(max_exits=1, timeout=5)
            best = min(best, time.perf_counter() - start)
        assert list(machine._threads) == first
        assert names == {"vcpu0"}
        assert best < 0.05


EVERY_VALUE_TO_MANY_PORTS = """
    mov edx, 0x1000
    xor eax, eax
next:
    out dx, al
    inc al
    jnz next
    inc edx
    cmp edx, 0x1080
    jb next
    hlt
"""


@pytest.mark.parametrize("who", ["handler", "device"])
def test_what_was_found_once_is_not_kept_for_ever(accelerator: Accelerator, who: str) -> None:
    """A guest chooses port and value: 65,536 times 256 of them would be 4.5 GB of the host's."""
    written = bytearray()

    class Sink(Device):
        name = "sink"

        def read(self, offset: int, size: int) -> int:
            return 0

        def write(self, offset: int, size: int, value: int) -> None:
            written.append(value)

    with loaded(accelerator, EVERY_VALUE_TO_MANY_PORTS) as machine:
        if who == "device":
            machine.bus.ports.add(Sink(), 0x1000, 0x1000)
        else:
            machine.handlers[IoOut] = lambda _vcpu, exit: written.extend(exit.data)
        assert machine.run(timeout=30).kind == StopKind.HALT
        assert len(written) == 128 * 256
        assert bytes(written[:256]) == bytes(range(256))
        assert len(machine.dispatches[0]) <= KEPT
