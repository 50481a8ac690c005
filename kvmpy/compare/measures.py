"""The questions that are answered by measuring: starting, holding many, entering the kernel, computing.

In each round every subject has its turn, so that what disturbs the machine disturbs all alike. A figure is a median
with its quartiles.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from functools import partial
from inspect import getsource

from kvmpy.accel.exits import IoOut
from kvmpy.accel.testbed import Testbed, run_for
from kvmpy.boot.flat import plan_code
from kvmpy.compare import program
from kvmpy.compare.figures import Answer, Figure, Question
from kvmpy.compare.subjects import DEADLINE, Contained, OtherRuntime, Process, Qemu, Subject, Virtual
from kvmpy.devices.base import Device
from kvmpy.errors import HostError, KvmpyError
from kvmpy.machine.machine import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CALLS = 200_000
LOOP = 240_000_000
SOFT_LOOP = LOOP // 16
EXITS = 2_000
WARM_UP = 200
EXIT_MEMORY = 16 << 20
PATIENCE = 3.0  # seconds for one subject's samples of one question
MORE = 3  # times as many samples are taken where the first ones lie far apart
CLOSE = 0.05  # half the distance between quartiles, in parts of the median: within 10 % of one another
PORT, MMIO = 0xE9, 0xE000_0000

# Guests that exit for ever, each in its own way, in 32-bit protected mode.
OUT_FOREVER = bytes.fromhex("e6e9 ebfc")  # out 0xe9, al; jmp
MMIO_FOREVER = bytes.fromhex("a2000000e0 ebf9")  # mov [0xe0000000], al; jmp
# mov esi, count; again: xor eax, eax; cpuid; dec esi; jnz again; out 0xe9, al; jmp again
CPUID_MANY = 1000
CPUID_LOOP = bytes.fromhex("be") + CPUID_MANY.to_bytes(4, "little") + bytes.fromhex("31c0 0fa2 4e 75f9 e6e9 ebee")


class Effort:
    """How much is measured: rounds of what is slow and of what is quick, and how many are held."""

    def __init__(self, quick: bool) -> None:
        self.cold = 5 if quick else 15
        self.warm = 15 if quick else 50
        self.rounds = 5 if quick else 9
        self.holds = 3 if quick else 5
        self.counts = (10, 100) if quick else (10, 100, 1000)


def sampled(subjects: list[Subject], rounds: int, sample: Callable[[Subject], float]) -> dict[str, Answer]:
    """Take a sample of each subject in every round, and more where their quartiles lie too far apart.

    One that fails is left out from then on, with the reason; a slow one is asked a few times, and not for ever.
    """
    values: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    spent = dict.fromkeys(values, 0.0)
    missing = {subject.name: subject.missing for subject in subjects if subject.missing}
    for number in range(rounds * MORE):
        for subject in subjects:
            name = subject.name
            if name in missing or has_enough(values[name], number >= rounds, spent[name]):
                continue
            start = time.perf_counter()
            try:
                values[name].append(sample(subject))
            except KvmpyError as error:
                missing[name] = str(error)
            spent[name] += time.perf_counter() - start
    return {
        name: Answer(missing=missing[name]) if name in missing else Answer(figure=Figure.of(values[name]))
        for name in values
    }


def has_enough(values: list[float], asked_enough: bool, seconds: float) -> bool:
    """Whether more samples would tell no more, or take too long: one of the slowest is enough, three of the slow."""
    if values and seconds > PATIENCE:
        return len(values) >= (1 if seconds / len(values) > PATIENCE else 3)
    return asked_enough and (len(values) < 2 or Figure.of(values).spread <= CLOSE)


def timed(do: Callable[[], object]) -> float:
    """Return how many milliseconds something takes."""
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) * 1e3


def start_cold(subjects: list[Subject], effort: Effort, _folder: Path) -> Iterator[Question]:
    """Run the smallest thing there is, by a command, and wait for its end."""
    yield Question(
        "start", "from a command to its end",
        "The smallest thing each can run: a program that exits (process, `kvmpy container`, OCI runtimes with a "
        "bundle), a guest that prints a line and halts (`kvmpy boot`), a kernel that boots and switches off (QEMU).",
        "ms", code=code_of(Process.cold, Contained.cold, Virtual.cold, OtherRuntime.cold, Qemu.cold),
        note="Container and machine are started by the same kind of command, kvmpy's own: both pay for a Python "
        "interpreter and what it imports; see the next row.",
        answers=sampled(subjects, effort.cold, lambda subject: timed(subject.cold)),
    )  # fmt: skip


def start_warm(subjects: list[Subject], effort: Effort, _folder: Path) -> Iterator[Question]:
    """Do the same from a process that has done it before."""
    ours = [subject for subject in subjects if not isinstance(subject, (OtherRuntime, Qemu))]
    yield Question(
        "start", "from a process that is warm",
        "The same from this process, which has everything loaded: made, run to its end, and removed.",
        "ms", code=code_of(Process.warm, Contained.warm, Virtual.warm),
        answers=sampled(ours, effort.warm, lambda subject: timed(subject.warm)),
    )  # fmt: skip


def enter_kernel(subjects: list[Subject], effort: Effort, folder: Path) -> Iterator[Question]:
    """A system call, and the exits of a guest."""
    inside: list[Subject] = [subject for subject in subjects if isinstance(subject, (Process, Contained))]

    def call_cost(subject: Subject) -> float:
        return (running(subject, folder, "calls", CALLS) - running(subject, folder, "true", 1)) / CALLS * 1e9

    yield Question(
        "kernel", "a system call",
        f"getppid, {CALLS} times in machine code; the time of a program that only exits is taken off it.",
        "ns", code=program.source("calls", CALLS) + "\n" + code_of(running),
        note="In a container a filter looks at each call first. A VM's guest has a kernel of its own: its system calls "
        "do not leave it.",
        answers=sampled(inside, effort.rounds, call_cost),
    )  # fmt: skip
    machines: list[Subject] = [subject for subject in subjects if isinstance(subject, Virtual)]
    for title, code, per_exit, note in (
        (
            "OUT to a device",
            OUT_FOREVER,
            1,
            "The whole way: processor, KVM, run loop, bus, device, and back.",
        ),
        ("MMIO write to a device", MMIO_FOREVER, 1, "As above; KVM decodes the instruction, too."),
        ("CPUID, without Python", CPUID_LOOP, CPUID_MANY, "KVM answers in the kernel: the exit alone."),
    ):
        yield Question(
            "kernel", f"an exit: {title}",
            f"A guest does nothing else; {EXITS // per_exit or 1} turns after {WARM_UP // per_exit or 1} that do not "
            "count.", "ns", code=code_of(exit_cost), note=note,
            answers=sampled(machines, effort.rounds, partial(exit_cost, code=code, per_exit=per_exit)),
        )  # fmt: skip


def running(subject: Subject, folder: Path, name: str, count: int) -> float:
    """Return how many seconds a program runs, as a process or from `start` to the end of its container."""
    if isinstance(subject, Contained):
        path = program.write(subject.root, name, count)
        with subject.box(path.removeprefix(str(subject.root))) as box:
            start = time.perf_counter()
            box.start()
            assert box.wait(DEADLINE) == 0
            return time.perf_counter() - start
    path = program.write(folder, name, count)
    start = time.perf_counter()
    pid = os.posix_spawn(path, [path], {})
    assert os.waitpid(pid, 0)[1] == 0
    return time.perf_counter() - start


class Sink(Device):
    """Takes what it gets."""

    name = "sink"

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing to keep."""


def exit_cost(subject: Subject, code: bytes, per_exit: int) -> float:
    """Return nanoseconds for one turn of a guest that exits once in `per_exit` turns."""
    assert isinstance(subject, Virtual)
    assert subject.accelerator
    with Machine(subject.accelerator, memory=EXIT_MEMORY, irqchip="none", coalesce=False) as machine:
        machine.load(plan_code(code, mode="protected", memory=EXIT_MEMORY))
        machine.bus.ports.replace(PORT, Sink())
        machine.bus.mmio.add(Sink(), MMIO, 4096)
        machine.run(max_exits=WARM_UP // per_exit or 1, timeout=DEADLINE)
        exits = EXITS // per_exit or 1
        start = time.perf_counter()
        machine.run(max_exits=exits, timeout=DEADLINE)
        return (time.perf_counter() - start) / (exits * per_exit) * 1e9


def compute(subjects: list[Subject], effort: Effort, folder: Path) -> Iterator[Question]:
    """The same arithmetic under each model, against the same code called by this process."""
    ours = [subject for subject in subjects if not isinstance(subject, (OtherRuntime, Qemu))]
    yield Question(
        "compute", "speed of arithmetic / native",
        f"{LOOP} turns of a loop ({SOFT_LOOP} on the software CPU) in ring 3, against the same machine code called as "
        "a function by this process just before and after.",
        "x", code=program.source("compute", LOOP) + "\n" + code_of(speed, native, guest), more_is_better=True,
        note="As long as a guest touches only what is its own, the processor runs it as it runs everything.",
        answers=sampled(ours, effort.rounds, lambda subject: speed(subject, folder)),
    )  # fmt: skip


def speed(subject: Subject, folder: Path) -> float:
    """Return how fast the loop is, 1.0 being this process's own speed."""
    count = SOFT_LOOP if subject.name == "software CPU" else LOOP
    before = native(count)
    if isinstance(subject, Virtual):
        passed = guest(subject, count)
    else:
        passed = running(subject, folder, "compute", count) - running(subject, folder, "true", 1)
    return (before + native(count)) / 2 / passed


def native(count: int) -> float:
    """Return how many seconds the loop takes as a function of this process."""
    from kvmpy.asm import assemble

    text = "    push rbx\n" + program.LOOP.replace("COUNT", str(count)) + "    pop rbx\n    ret\n"
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(assemble(text, bits=64).code)
    function = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def guest(subject: Virtual, count: int) -> float:
    """Return how many seconds it takes in a guest's ring 3, from one OUT to the next."""
    assert subject.accelerator
    with Testbed(subject.accelerator, 64) as bed:
        bed.load(program.guest_loop(count), ring=3)
        first = run_for(bed.vcpu, DEADLINE)
        start = time.perf_counter()
        last = run_for(bed.vcpu, DEADLINE)
        passed = time.perf_counter() - start
    if not isinstance(first, IoOut) or not isinstance(last, IoOut) or last.port != program.END_PORT:
        raise HostError(f"the guest's loop ended with {last!r}")
    return passed


def code_of(*functions: object) -> str:
    """Return the source of functions, to stand beside the figures that they took."""
    return "\n".join(getsource(function) for function in functions)  # type: ignore[arg-type]


STARTS, SPEEDS = (start_cold, start_warm), (enter_kernel, compute)
