"""The questions that are answered in words: what each sees of the host, what it can reach, and what its crash does.

Every answer is what came of asking or trying, there and then.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
from contextlib import ExitStack

from kvmpy.boot.flat import plan_code
from kvmpy.compare import program
from kvmpy.compare.figures import Answer, Question
from kvmpy.compare.measures import code_of
from kvmpy.compare.subjects import (
    DEADLINE,
    KERNEL,
    SMALL,
    Contained,
    OtherRuntime,
    Process,
    Qemu,
    Subject,
    Virtual,
    run,
)
from kvmpy.container import Container, Wish
from kvmpy.container.small_root import find_python, small_root
from kvmpy.errors import HostError, KvmpyError
from kvmpy.machine.stop import StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvmpy.compare.measures import Effort
    from kvmpy.container import Finished

    Looks = dict[str, str]

MEMORY = 16 << 20
UD2 = b"\x0f\x0b"
# Runs as a process and in a container, by the same interpreter. Arguments: a file, a pid and a port of the host's.
LOOK = """
import json, os, socket, sys

def attempt(do):
    try:
        do()
    except OSError as error:
        return "no: " + os.strerror(error.errno or 0).lower()
    return "yes"

def connect():
    with socket.socket() as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", int(sys.argv[3])))

total = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal"))
print(json.dumps({
    "kernel": " ".join(os.uname()[i] for i in (0, 2)),
    "processes": f"{sum(name.isdigit() for name in os.listdir('/proc'))}; it is number {os.getpid()}",
    "CPUs": str(len(os.sched_getaffinity(0))),
    "memory": f"{total // 1024} MiB",
    "devices": f"{len(os.listdir('/dev'))} names in /dev",
    "mounts": str(len(open("/proc/self/mounts").readlines())),
    "network": ", ".join(name for _, name in socket.if_nameindex()),
    "file": attempt(lambda: open(sys.argv[1]).close()),
    "process": attempt(lambda: os.kill(int(sys.argv[2]), 0)),
    "port": attempt(connect),
}))
"""
SEES = {
    "kernel": "which kernel it runs on",
    "processes": "processes it sees",
    "CPUs": "processors it sees",
    "memory": "memory it sees",
    "devices": "devices it sees",
    "mounts": "file systems it sees",
    "network": "network interfaces it sees",
}
REACHES = {
    "file": "can it read a file of the host's?",
    "process": "can it signal a process of the host's?",
    "port": "can it reach a server on the host's 127.0.0.1?",
}
NOTES = {
    "kernel": "The same line for a process and a container is the whole difference between the models.",
    "memory": "/proc/meminfo knows no control groups: a container sees the host's memory, though it may not use it.",
    "mounts": "A container mounts its own proc, dev and sys, and hides what is not for it: each mask is a mount, too.",
    "CPUs": "As for memory: a limit in processor time changes nothing of what is seen.",
}


def sees(subjects: list[Subject], _effort: Effort, folder: Path) -> Iterator[Question]:
    """Ask each what it sees, and let it try what it should not."""
    looks: dict[str, Looks | KvmpyError] = {}
    for subject in speakers(subjects):
        try:
            looks[subject.name] = look(subject, folder)
        except KvmpyError as error:
            looks[subject.name] = error
    for group, table in (("sees", SEES), ("reaches", REACHES)):
        for name, title in table.items():
            answers = {}
            for subject in speakers(subjects):
                seen = looks[subject.name]
                answers[subject.name] = (
                    Answer(missing=str(seen)) if isinstance(seen, KvmpyError) else Answer(words=seen[name])
                )
            yield Question(
                group, title, "Asked inside: a process and a container by one program, a VM's guest by its monitor.",
                code=LOOK + "\n" + code_of(look_from_guest), note=NOTES.get(name, ""), answers=answers,
            )  # fmt: skip


def speakers(subjects: list[Subject]) -> list[Subject]:
    """Return those who can answer: this project's own."""
    return [subject for subject in subjects if not isinstance(subject, (OtherRuntime, Qemu))]


def look(subject: Subject, folder: Path) -> Looks:
    """Return what a subject sees and reaches."""
    if subject.missing:
        raise HostError(subject.missing)
    if isinstance(subject, Virtual):
        return look_from_guest(subject)
    secret = folder / "secret"
    secret.touch()
    with socket.create_server(("127.0.0.1", 0)) as server, Process(folder).held() as pid:
        arguments = ["-I", "-S", "-c", LOOK, str(secret), str(pid), str(server.getsockname()[1])]
        if isinstance(subject, Process):
            output = run([find_python()[0], *arguments])
        else:
            output = in_container(folder, arguments).stdout
    found: Looks = json.loads(output)
    return found


def in_container(folder: Path, arguments: list[str]) -> Finished:
    """Run Python in a container whose root directory is made of the host's programs."""
    root = folder / "host-root"
    root.mkdir()
    python, volumes = find_python()
    with Container.from_wish(Wish(str(root), ["sleep", "1000"], volumes=small_root(root) + volumes)) as box:
        box.start()
        done = box.exec([python, *arguments], timeout=DEADLINE)
    if done.code:
        raise HostError(f"in the container: {done.stderr.decode(errors='replace').strip().rpartition(chr(10))[2]}")
    return done


def look_from_guest(subject: Virtual) -> Looks:
    """Ask the bundled kernel's monitor, and the machine for what the guest can find."""
    printed = bytearray()
    with subject.machine(KERNEL, MEMORY) as machine:
        machine.output = printed.extend
        machine.send(b"mem\nps\nhalt\n")
        stop = machine.run(timeout=DEADLINE)
        devices = ", ".join(sorted(machine.devices))
        processors = len(machine.vcpus)
    text = printed.decode(errors="replace")
    tasks = re.findall(r"^[A-Z] (?:exited|killed|ready|running|waiting)", text, re.MULTILINE)
    memory = re.search(r"memory +(\d+) KiB", text)
    if not stop.clean or not memory:
        raise HostError(f"the guest did not answer: {stop.detail}")
    return {
        "kernel": text.split("\n")[1].strip() + ", its own",
        "processes": f"{len(tasks)}, its own",
        "CPUs": str(processors),
        "memory": f"{int(memory[1]) // 1024} MiB",
        "devices": devices,
        "mounts": "none: it has no file system",
        "network": "none was plugged in",
        "file": "no: it knows ports and memory, not files",
        "process": "no: it knows no processes but its own",
        "port": "no: no network was plugged in",
    }


def crashes(subjects: list[Subject], _effort: Effort, folder: Path) -> Iterator[Question]:
    """Let one of two crash, and look at the other."""
    ours = speakers(subjects)
    yield Question(
        "crash", "one of two executes an undefined instruction", "Two are alive; one executes UD2.",
        code=program.source("crash") + "\n" + code_of(crash_process, crash_container, crash_machine),
        answers={subject.name: tried(subject, lambda s: CRASHES[type(s)](s, folder)) for subject in ours},
    )  # fmt: skip
    yield Question(
        "crash", "its kernel panics", "A guest's monitor panics on purpose while another guest is alive.",
        code=code_of(panic), note="Kernels crash by drivers and file systems; who shares the kernel shares the crash.",
        answers={subject.name: tried(subject, panic) for subject in ours},
    )  # fmt: skip
    yield Question(
        "crash", "can it run another kernel?", "The kernel's name inside, against the host's.",
        code=code_of(other_kernel), answers={subject.name: tried(subject, other_kernel) for subject in ours},
    )  # fmt: skip


def tried(subject: Subject, attempt: Callable[[Subject], str]) -> Answer:
    """Return what came of an attempt in words, or why it could not be made."""
    if subject.missing:
        return Answer(missing=subject.missing)
    try:
        return Answer(words=attempt(subject))
    except KvmpyError as error:
        return Answer(missing=str(error))


def crash_process(subject: Subject, folder: Path) -> str:
    """Crash one of two processes."""
    path = program.write(folder, "crash")
    with subject.held() as other:
        assert isinstance(other, int)
        status = os.waitpid(os.posix_spawn(path, [path], {}), 0)[1]
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "nothing"
        lives = os.waitpid(other, os.WNOHANG) == (0, 0)
    return outcome(f"killed by {name}", lives)


def crash_container(subject: Subject, _folder: Path) -> str:
    """Crash one of two containers."""
    assert isinstance(subject, Contained)
    program.write(subject.root, "crash")
    with ExitStack() as stack:
        other = stack.enter_context(subject.held())
        box = stack.enter_context(subject.box("/crash"))
        box.start()
        number = box.wait(DEADLINE) - 128
        assert isinstance(other, Container)
        return outcome(f"killed by {signal.Signals(number).name}", other.status == "running")


def crash_machine(subject: Subject, _folder: Path) -> str:
    """Crash one of two guests, and run the other on."""
    assert isinstance(subject, Virtual)
    with subject.machine() as other, subject.machine() as first:
        first.load(plan_code(UD2, mode="long", memory=SMALL, load=0x8000))  # with no table of handlers
        stop = first.run(timeout=DEADLINE)
        return outcome(stop.kind, other.run(timeout=DEADLINE).kind == StopKind.HALT)


CRASHES: dict[type, Callable[[Subject, Path], str]] = {
    Process: crash_process,
    Contained: crash_container,
    Virtual: crash_machine,
}


def outcome(ended: str, lives: bool) -> str:
    """Say how the first ended, and whether the other goes on."""
    return f"{ended}; the other {'goes on' if lives else 'ended too'}"


def panic(subject: Subject) -> str:
    """Let a guest's kernel panic; for the others there is nothing to try."""
    if not isinstance(subject, Virtual):
        return "not tried: it is the host's kernel, and everything would end"
    printed = bytearray()
    with subject.machine(KERNEL, MEMORY) as first, subject.machine() as other:
        first.output = printed.extend
        first.send(b"panic\n")
        first.run(timeout=DEADLINE)
        said = next((line for line in printed.decode(errors="replace").split("\n") if "kernel panic" in line), "")
        if not said:
            raise HostError("the guest did not panic")
        return outcome(f"'{said.partition(',')[0]}'", other.run(timeout=DEADLINE).kind == StopKind.HALT)


def other_kernel(subject: Subject) -> str:
    """Say which kernel answers, and whether it is the host's."""
    if isinstance(subject, Virtual):
        return f"yes: '{look_from_guest(subject)['kernel']}', beside the host's {platform.system()}"
    return f"no: it asks {platform.system()} {platform.release()}, like everyone here"


ISOLATION = (sees, crashes)
