"""Many at once: how long they take to make, and what memory each takes.

What is owned is counted: pages resident in processes, and what the kernel has charged to control groups. What the host
as a whole misses stands beside it, where nothing else moved the host meanwhile.
"""

from __future__ import annotations

import os
import resource
import time
from contextlib import ExitStack, suppress

from kvmpy.compare.figures import Answer, Figure, Question, shown
from kvmpy.compare.measures import CLOSE, MORE, code_of
from kvmpy.compare.subjects import Contained, OtherRuntime, Process, Qemu, Subject, Virtual
from kvmpy.container import Container
from kvmpy.container.cgroup import find_hierarchies
from kvmpy.errors import HostError, KvmpyError
from kvmpy.record import asdict, field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvmpy.compare.measures import Effort

SETTLE = 0.3  # seconds in which the kernel counts what was freed
RESTS, AT_REST = 5, 1024.0  # so often is waited for the host to come to rest: until it moves by less than so many KiB
ENOUGH, MANY = 100, 1000  # of fewer the memory cannot be told from what else is done; so many are made once
DISTURBED = 0.2  # of what the host misses may be due to others
SPARE = 512 << 10  # KiB of memory that stay free, whatever is held
DESCRIPTORS = 12  # what one machine holds open, and a few
MODELS = (Process, Contained, Virtual)


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
