"""The questions that are answered by measuring: starting, holding many, entering the kernel, computing.

In each round every subject has its turn, so that what disturbs the machine disturbs all alike. A figure is a median
with its quartiles.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import time
from contextlib import ExitStack, suppress
from functools import partial
from inspect import getsource

from kvmpy.accel.exits import IoOut
from kvmpy.accel.testbed import Testbed, run_for
from kvmpy.boot.flat import plan_code
from kvmpy.compare import program
from kvmpy.compare.figures import Answer, Figure, Question, shown
from kvmpy.compare.subjects import DEADLINE, Contained, OtherRuntime, Process, Qemu, Subject, Virtual
from kvmpy.container import Container
from kvmpy.container.cgroup import find_hierarchies
from kvmpy.devices.base import Device
from kvmpy.errors import HostError, KvmpyError
from kvmpy.machine.machine import Machine
from kvmpy.record import asdict, field, record

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
SETTLE = 0.3  # seconds in which the kernel counts what was freed
RESTS, AT_REST = 5, 1024.0  # so often is waited for the host to come to rest: until it moves by less than so many KiB
ENOUGH, MANY = 100, 1000  # of fewer the memory cannot be told from what else is done; so many are made once
MORE = 3  # times as many samples are taken where the first ones lie far apart
CLOSE = 0.05  # half the distance between quartiles, in parts of the median: within 10 % of one another
DISTURBED = 0.2  # of what the host misses may be due to others
SPARE = 512 << 10  # KiB of memory that stay free, whatever is held
DESCRIPTORS = 12  # what one machine holds open, and a few
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
        "The smallest thing each can run: a program that exits (process, `kvmpy container run`, OCI runtimes with a "
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


def hold_many(subjects: list[Subject], effort: Effort, _folder: Path) -> Iterator[Question]:
    """Make many and keep them alive: how long, and what each takes."""
    ours = [subject for subject in subjects if not isinstance(subject, (OtherRuntime, Qemu))]
    allow_descriptors(effort.counts[-1] * DESCRIPTORS)
    for count in effort.counts:
        times = effort.holds if count < MANY else 1
        held = {subject.name: hold_often(subject, count, times) for subject in ours}
        for row in HOLDING if count >= ENOUGH else HOLDING[:1]:
            yield Question(
                "many", row.title.format(count), row.method, row.unit, note=row.note,
                code=code_of(hold, owned, memory_of_processes, own_kernel_memory, *(m.held for m in MODELS)),
                answers={name: row.answer(samples) for name, samples in held.items()},
            )  # fmt: skip


@record
class Memory:
    """What many take together, in KiB: resident in processes, in the kernel on their account, and shared pages."""

    resident: float = 0.0
    kernel: float = 0.0
    shared: float = 0.0

    def since(self, before: Memory, count: int) -> Memory:
        """Return what came to it, for each of `count`."""
        now, then = asdict(self), asdict(before)
        return Memory(**{name: (now[name] - then[name]) / count for name in now})


@record
class Held:
    """What it took to hold many: the time for all, the memory of each in KiB; or why it could not be done.

    `host` is how much less the host has for each, and `drift` how much that moved in a time in which nothing was made.
    """

    milliseconds: float = 0.0
    memory: Memory = field(default_factory=Memory)
    host: float = 0.0
    drift: float = 0.0
    missing: str = ""

    @property
    def owned(self) -> float:
        """All that is counted as theirs."""
        return self.memory.resident + self.memory.kernel


@record
class Row:
    """A row about those that are held: what of each sample it shows."""

    value: Callable[[Held], float]
    title: str
    unit: str
    method: str
    note: str = ""

    def answer(self, samples: list[Held]) -> Answer:
        """Return the figure of these samples."""
        lacking = next((held.missing for held in samples if held.missing), "")
        return Answer(missing=lacking) if lacking else Answer(figure=Figure.of([self.value(held) for held in samples]))


class HostRow(Row):
    """The row of the host's own count, which everything else on the host moves, too."""

    def answer(self, samples: list[Held]) -> Answer:
        """Return the figure, or by how much the host moved meanwhile, where that is no small part of it."""
        found = super().answer(samples)
        if found.figure is None:
            return found
        drift = Figure.of([abs(held.drift) for held in samples]).median
        most = abs(found.figure.median)
        if drift > DISTURBED * most or found.figure.spread > DISTURBED or found.figure.median <= 0:
            moved = max(drift, (found.figure.upper - found.figure.lower) / 2)
            return Answer(missing=f"not measurable: the host moved by {shown(moved, 'KiB')} meanwhile")
        return found


HOLDING = (
    Row(
        lambda held: held.milliseconds, "{} made", "ms",
        "Made one after the other by one process, all alive together.",
    ),
    Row(
        lambda held: held.owned, "memory of each of {}", "KiB",
        "What is counted as theirs: pages resident in processes, and what the kernel has charged for them to control "
        "groups, that of a container and that of this process, in which all others are made.",
        "Not all of the kernel's is charged to anyone; the last row is what the host itself misses.",
    ),
    Row(
        lambda held: held.memory.resident, "of it resident in processes, each of {}", "KiB",
        "The proportional set size (/proc/PID/smaps_rollup, Pss): a page shared by n processes counts a nth in each.",
    ),
    Row(
        lambda held: held.memory.kernel, "of it in the kernel, each of {}", "KiB",
        "Kernel memory by the control groups' own count, page tables in it (memory.kmem.usage_in_bytes; memory.stat, "
        "kernel); where no group tells, page tables alone (/proc/PID/status, VmPTE).",
    ),
    Row(
        lambda held: held.memory.shared, "pages shared with others, each of {}", "KiB",
        "Shared_Clean and Shared_Dirty of /proc/PID/smaps_rollup: the program's own pages, once for all.",
        "A machine of this process has no process of its own: what it shares is counted once.",
    ),
    HostRow(
        lambda held: held.host, "what the host misses, each of {}", "KiB",
        "How much less memory the host has available (/proc/meminfo, MemAvailable) with all alive. As long before, "
        "nothing was made: what that moved the host by is held against it.",
        "Namespaces, KVM's own tables and caches show here and nowhere else.",
    ),
)  # fmt: skip


def hold_often(subject: Subject, count: int, times: int) -> list[Held]:
    """Hold `count` of a subject, as often as is asked, and again until what is theirs is known closely."""
    samples = [hold(subject, count)]
    while not samples[-1].missing and len(samples) < times * MORE:
        owned = [held.owned for held in samples]
        if len(samples) >= times and (times == 1 or Figure.of(owned).spread <= CLOSE):
            break
        samples.append(hold(subject, count))
    return samples


def hold(subject: Subject, count: int) -> Held:
    """Hold `count` of a subject, and measure."""
    if subject.missing:
        return Held(missing=subject.missing)
    settle = SETTLE if count >= ENOUGH else 0.0
    drift = come_to_rest(settle)
    host, before = available(), owned([])
    with ExitStack() as stack:
        try:
            start = time.perf_counter()
            held: list[object] = []
            for number in range(count):
                held.append(stack.enter_context(subject.held()))
                if number % 50 == 0 and available() < SPARE:
                    raise HostError(f"after {number} the host has less than {SPARE >> 10} MiB left")
            passed = (time.perf_counter() - start) * 1e3
            time.sleep(settle)
            misses, memory = (host - available()) / count, owned(held).since(before, count)
        except (KvmpyError, OSError) as error:
            return Held(missing=str(error))
    return Held(passed, memory, misses, drift / count)


def come_to_rest(settle: float) -> float:
    """Wait until what was freed before is counted, for a while; return by how many KiB the host still moves."""
    moved, last = 0.0, available()
    for _ in range(RESTS):
        time.sleep(settle)
        moved, last = last - (now := available()), now
        if abs(moved) < AT_REST:
            break
    return moved


def available() -> float:
    """Return the KiB of memory that are available to new programs (proc(5), meminfo, MemAvailable)."""
    with open("/proc/meminfo") as file:
        return next(float(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def owned(held: list[object]) -> Memory:
    """Return what is counted as this process's and those that are held."""
    boxes = [each for each in held if isinstance(each, Container)]
    memory = memory_of_processes([os.getpid(), *(each for each in held if isinstance(each, int)), *pids_of(boxes)])
    charged = own_kernel_memory()
    if charged is not None:
        memory.kernel = charged
        if os.geteuid() == 0:  # others' containers have no groups of their own
            memory.kernel += sum(float(box.stats()["memory"]["kernel"]["usage"]) for box in boxes) / 1024
    return memory


def pids_of(boxes: list[Container]) -> list[int]:
    """Return the first process of each container."""
    return [box.pid for box in boxes]


def memory_of_processes(pids: list[int]) -> Memory:
    """Return the proportional set size of processes, their page tables, and what they share."""
    found = Memory()
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup, open(f"/proc/{pid}/status") as status:
            lines = dict(line.split()[:2] for line in (*rollup, *status) if line.endswith("kB\n"))
            found.resident += float(lines["Pss:"])
            found.shared += float(lines["Shared_Clean:"]) + float(lines["Shared_Dirty:"])
            found.kernel += float(lines["VmPTE:"])
    return found


def own_kernel_memory() -> float | None:
    """Return the KiB of kernel memory charged to the control group of this process; None where that is not told."""
    for hierarchy in find_hierarchies():
        folder = hierarchy.mounted + hierarchy.place.removeprefix(hierarchy.root.rstrip("/"))
        with suppress(OSError):
            if hierarchy.version == 2:
                with open(f"{folder}/memory.stat") as file:
                    return next(float(line.split()[1]) / 1024 for line in file if line.startswith("kernel "))
            if "memory" in hierarchy.controllers.split(","):
                with open(f"{folder}/memory.kmem.usage_in_bytes") as file:
                    return float(file.read()) / 1024
    return None


def allow_descriptors(wanted: int) -> None:
    """Raise the soft limit of open files as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


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


MODELS = (Process, Contained, Virtual)


def code_of(*functions: object) -> str:
    """Return the source of functions, to stand beside the figures that they took."""
    return "\n".join(getsource(function) for function in functions)  # type: ignore[arg-type]


MEASURES = (start_cold, start_warm, hold_many, enter_kernel, compute)
