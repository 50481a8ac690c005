"""The whole comparison, from asking everyone to a report."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from kvmpy import __version__
from kvmpy.compare.figures import Report
from kvmpy.compare.holding import hold_many
from kvmpy.compare.isolation import ISOLATION
from kvmpy.compare.measures import SPEEDS, STARTS, Effort
from kvmpy.compare.subjects import Virtual, gather
from kvmpy.undisturbed import Undisturbed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.compare.subjects import Subject

# The groups of questions, in the order of the report, and what each is about.
GROUPS = {
    "start": "Starting one",
    "many": "Many at once",
    "kernel": "Entering the kernel",
    "compute": "Computing",
    "sees": "What it sees",
    "reaches": "What it can reach",
    "crash": "What a crash does",
}
ASKED = (*STARTS, hold_many, *SPEEDS, *ISOLATION)


def compare(quick: bool, tell: Callable[[str, int, int], None]) -> Report:
    """Ask all questions of everyone who is there. `tell` hears what is being done, how far it is, and of how much."""
    start = time.monotonic()
    total = len(ASKED) + 1
    tell("preparing a process, a container, machines", 0, total)
    with Undisturbed() as stack:
        folder = Path(stack.enter_made(lambda: tempfile.TemporaryDirectory(prefix="kvmpy-compare-")))
        subjects = gather(stack, folder)
        report = Report(
            machine=describe_machine() | describe_accelerators(subjects),
            subjects={subject.name: subject.what for subject in subjects},
            beside={subject.name: subject.beside for subject in subjects if subject.beside},
            missing={subject.name: subject.missing for subject in subjects if subject.missing},
            questions=[],
        )
        for number, ask in enumerate(ASKED, 1):
            tell((ask.__doc__ or "").partition("\n")[0].rstrip("."), number, total)
            report.questions += ask(subjects, Effort(quick), folder)
        tell("done", total, total)
    report.machine["load"] += f", {os.getloadavg()[0]:.1f} at the end"
    report.seconds = time.monotonic() - start
    return report


def describe_machine() -> dict[str, str]:
    """Return what the figures were taken on."""
    groups = "none"
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        groups = "version 2"
    elif os.path.isdir("/sys/fs/cgroup/memory"):
        groups = "version 1"
    return {
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} CPUs",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()} ({os.path.basename(os.path.realpath(sys.executable))})",
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
        "control groups": groups,
        "load": f"{os.getloadavg()[0]:.1f} at the beginning",
        "kvmpy": __version__,
    }


def describe_accelerators(subjects: list[Subject]) -> dict[str, str]:
    """Return what the accelerators lack here, of what is tried (`kvmpy info` explains each)."""
    lacks = {}
    for subject in subjects:
        if isinstance(subject, Virtual) and subject.accelerator:
            features = subject.accelerator.features
            names = [name for name in features.names() if not getattr(features, name)]
            lacks[f"{subject.name} lacks"] = ", ".join(names) or "nothing that is tried"
    return lacks


def processor() -> str:
    """Return the processor's name, as it gives it (proc(5), cpuinfo)."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names and names[0] else platform.machine()
