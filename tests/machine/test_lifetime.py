"""Closing at any time and from anywhere; what is closed says so; nothing is left, also when a constructor fails."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import resource
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from machines import MEMORY, loaded
from peers import needs_kvm

from kvmpy.accel.base import Accelerator
from kvmpy.accel.kvm import KvmAccelerator
from kvmpy.accel.testbed import Testbed
from kvmpy.devices.base import Device
from kvmpy.errors import ClosedError, ConfigError, HostError, KvmpyError
from kvmpy.kvm.vcpu import VcpuFd
from kvmpy.machine import machine as machine_module
from kvmpy.machine.machine import Machine
from kvmpy.machine.stop import Stop, StopKind
from kvmpy.memory import GuestMemory, Region

Trace = Callable[[FrameType, str, object], object]


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("kvm" in line for line in maps)


LOOP, EXITS, SLEEP = "again: jmp again", "again: in al, 0x99\njmp again", "sti\nagain: hlt\njmp again"


@pytest.mark.parametrize(
    ("source", "irqchip"), [(LOOP, "none"), (EXITS, "none"), (LOOP, "auto"), (EXITS, "auto"), (SLEEP, "auto")]
)
def test_closing_while_the_guest_runs(accelerator: Accelerator, irqchip: str, source: str) -> None:
    before = mappings()
    for _ in range(3):
        machine = loaded(accelerator, source, irqchip=irqchip)
        stops: list[Stop] = []
        runner = threading.Thread(target=lambda machine=machine, stops=stops: stops.append(machine.run(timeout=20)))
        runner.start()
        while runner.is_alive() and not machine.vcpus[0].entries:
            time.sleep(0)
        machine.close()
        runner.join()
        assert [stop.kind for stop in stops] == [StopKind.QUIT]
    assert mappings() == before


def test_two_threads_close_at_once(accelerator: Accelerator) -> None:
    machine = loaded(accelerator, "again: jmp again")
    threads = [threading.Thread(target=machine.run), *(threading.Thread(target=machine.close) for _ in range(3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_stopping_a_closed_machine_touches_nobody_s_descriptor(accelerator: Accelerator) -> None:
    machine = loaded(accelerator, "hlt")
    before = descriptors()
    machine.close()
    freed = before - descriptors()
    assert len(freed) >= 3
    reused = [os.eventfd(0, os.EFD_NONBLOCK) for _ in freed]
    try:
        assert {str(fd) for fd in reused} <= before
        machine.stop(Stop(StopKind.QUIT, "too late"))
        machine.close()
        for fd in reused:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd)
    finally:
        for fd in reused:
            os.close(fd)


USES_OF_A_MACHINE: dict[str, Callable[[Machine], object]] = {
    "run": lambda m: m.run(timeout=1),
    "send": lambda m: m.send(b"x"),
    "load": lambda m: m.load(None),  # type: ignore[arg-type]
    "registers": lambda m: m.vcpus[0].regs,
    "set registers": lambda m: setattr(m.vcpus[0], "sregs", None),
    "state": lambda m: m.vcpus[0].state,
    "run the vCPU": lambda m: m.vcpus[0].run(),
    "step": lambda m: m.vcpus[0].step(),
    "interrupt": lambda m: m.vcpus[0].interrupt(3),
    "window": lambda m: m.vcpus[0].interruptible,
    "breakpoints": lambda m: setattr(m.vcpus[0], "breakpoints", [1]),
    "mmio": lambda m: m.vcpus[0].mmio,
    "read memory": lambda m: m.memory.read(0, 1),
    "write memory": lambda m: m.memory.write(0, b"x"),
    "view memory": lambda m: m.memory.view(0, 1),
    "add memory": lambda m: m.memory.add(1 << 30, 4096),
    "irq": lambda m: m.vm.set_irq(1, 1),
    "vcpu": lambda m: m.vm.create_vcpu(7),
    "memory slot": lambda m: m.vm.add_memory(GuestMemory()) or m.vm.dirty_pages(),
    "msrs": lambda m: m.vm.exit_on_msrs([1]),
}


@pytest.mark.parametrize("use", USES_OF_A_MACHINE)
def test_a_closed_machine_says_so(accelerator: Accelerator, use: str) -> None:
    with loaded(accelerator, "hlt") as machine:
        machine.run(timeout=5)
    with pytest.raises(ClosedError, match=r"closed"):
        USES_OF_A_MACHINE[use](machine)


@pytest.mark.parametrize("use", [lambda a: a.create_vm(), lambda a: a.features.int3])
def test_a_closed_accelerator_says_so(accelerator: Accelerator, use: Callable[[Accelerator], object]) -> None:
    with type(accelerator)() as another:
        pass
    with pytest.raises(ClosedError):
        use(another)


class Slow(Device):
    """A device that does not answer until it is let go."""

    name = "slow"

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def read(self, offset: int, size: int) -> int:
        self.entered.set()
        self.let_go.wait(60)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def test_a_device_that_blocks_is_named_and_memory_stays(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "JOIN_SECONDS", 0.1)
    slow = Slow()
    machine = loaded(accelerator, "mov dx, 0x520\nin al, dx\nmov al, 3\nout 0xf4, al")
    machine.bus.ports.add(slow, 0x520, 1)
    with pytest.raises(HostError, match=r"vcpu0 is in .*Its memory stays mapped"):
        machine.run(timeout=0.1)
    assert slow.entered.is_set()
    with pytest.raises(HostError, match="vcpu0 is in"):
        machine.run(timeout=0.1)
    with pytest.raises(HostError, match="vcpu0 is in"):
        machine.close()
    assert machine.memory.read(0x7C00, 1) == b"\xba"
    slow.let_go.set()
    while not machine._threads[0].idle:
        time.sleep(0.001)
    assert machine.run(timeout=5).code == 3  # the machine is usable again
    machine.close()


def test_devices_are_closed_with_the_machine(accelerator: Accelerator) -> None:
    closed: list[str] = []

    class Closer(Slow):
        name = "closer"

        def close(self) -> None:
            closed.append(self.name)

    with loaded(accelerator, "hlt") as machine:
        device = Closer()
        machine.bus.ports.add(device, 0x520, 1)
        machine.bus.mmio.add(device, 0xD000_0000, 1)
        assert machine.devices["closer"] is device
        assert "uart16550" in machine.devices
    assert closed == ["closer"]


def test_two_devices_of_one_name_are_told_apart(accelerator: Accelerator) -> None:
    with loaded(accelerator, "hlt") as machine:
        first, second = Slow(), Slow()
        machine.bus.ports.add(first, 0x520, 1)
        machine.bus.ports.add(second, 0x530, 1)
        assert (machine.devices["slow"], machine.devices["slow#2"]) == (first, second)


# Constructors that fail


@pytest.fixture
def nothing_left() -> Iterator[None]:
    gc.collect()
    before, maps = descriptors(), mappings()
    yield
    gc.collect()
    assert (descriptors(), mappings()) == (before, maps)


@pytest.mark.usefixtures("nothing_left")
def test_a_region_that_is_refused_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Region.__init__
    count = 0

    def refuse_the_second(self: Region, *arguments: int, **options: str) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise ConfigError("no second region")
        made(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Region, "__init__", refuse_the_second)
    with pytest.raises(ConfigError, match="second"):
        GuestMemory(4 << 30)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("size", [4097, 1 << 62])
def test_memory_that_cannot_be_leaves_no_descriptor(size: int) -> None:
    with pytest.raises(ConfigError):
        GuestMemory(size)


@needs_kvm
@pytest.mark.usefixtures("nothing_left")
def test_a_vcpu_whose_page_cannot_be_mapped_leaves_no_descriptor() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(KvmpyError, match="mmap on vCPU 0"):
        VcpuFd(fd, 0, 12288, waits=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.usefixtures("nothing_left")
def test_every_number_of_descriptors_that_is_too_few_is_told(accelerator: Accelerator) -> None:
    """A machine needs some; with fewer than that each step of its making fails in turn."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(fd) for fd in descriptors()) + 20
    taken = []
    errors: list[str] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(12):
            try:
                Machine(accelerator, memory=MEMORY, irqchip="none").close()
            except KvmpyError as error:
                errors.append(str(error))
            os.close(taken.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert all("ulimit -n" in error for error in errors)
    steps = {"memory", "eventfd:"}
    if accelerator.name == "kvm":
        steps |= {"KVM_CREATE_VM", "KVM_CREATE_VCPU", "mmap"}
    assert {error.split(" ")[0] for error in errors} == steps


@pytest.mark.usefixtures("nothing_left")
def test_a_board_that_raises_leaves_nothing(accelerator: Accelerator) -> None:
    def board(_machine: Machine) -> object:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Machine(accelerator, memory=MEMORY, irqchip="none", board=board)  # type: ignore[arg-type]


# Dropped objects


@pytest.mark.parametrize(
    "make",
    [
        lambda a: loaded(a, "hlt"),
        lambda a: GuestMemory(4096),
        pytest.param(lambda _: KvmAccelerator(), marks=needs_kvm),
        lambda a: Testbed(a, 16),
    ],
    ids=["machine", "memory", "accelerator", "testbed"],
)
@pytest.mark.usefixtures("nothing_left")
def test_what_is_dropped_unclosed_warns_and_is_released(
    accelerator: Accelerator, make: Callable[[Accelerator], object]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dropped = make(accelerator)
        del dropped
        gc.collect()
    assert any(issubclass(w.category, ResourceWarning) and "without close()" in str(w.message) for w in caught)


def test_a_machine_that_ran_can_be_dropped(accelerator: Accelerator) -> None:
    """Its threads are kept, but they do not keep it."""
    before = set(threading.enumerate())
    machine = loaded(accelerator, "hlt")
    assert machine.run(timeout=5).kind == StopKind.HALT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del machine
        gc.collect()
    end = time.monotonic() + 30  # they were told to end, and may need a moment to
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0)
    assert set(threading.enumerate()) - before == set()


CLOSE_AT_ANY_MOMENT = """
import threading, time
import kvmpy
with kvmpy.open_accelerator() as kvm:
    for i in range(40):
        machine = kvmpy.Machine(kvm, memory=1 << 20, irqchip="none")
        machine.load(kvmpy.plan_code(b"\\xe4\\x99\\xeb\\xfc", memory=1 << 20))
        closer = threading.Timer(i * 0.0005, machine.close)
        closer.start()
        try:
            stop = machine.run(timeout=20)
            assert stop.kind == "quit", stop
        except kvmpy.ClosedError:
            pass
        closer.join()
print("alive")
"""


def test_closing_at_any_moment_of_a_run_does_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", CLOSE_AT_ANY_MOMENT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_constructor_interrupted_at_any_line_leaves_nothing(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's handler may raise between any two lines: what was half built goes quietly, with all it holds."""
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    open_before = descriptors()
    for stop_at in range(1_000):
        lines = itertools.count()

        def trace(
            frame: FrameType, event: str, _argument: object, lines: Iterator[int] = lines, stop_at: int = stop_at
        ) -> Trace | None:
            if frame.f_code is not Machine.__init__.__code__:
                return None
            if event == "line" and next(lines) == stop_at:
                raise KeyboardInterrupt
            return trace

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of what had no name yet
            others = sys.gettrace()  # that of a coverage measurement
            sys.settrace(trace)
            try:
                Machine(accelerator, memory=MEMORY, irqchip="none").close()
                break
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(others)
        assert descriptors() == open_before
    assert stop_at > 20  # it was traced
    gc.collect()
    assert complaints == []
