"""Who is asked: a process, a container, a virtual machine on KVM and one on the software CPU; and other runtimes.

Each can be started in three ways: cold, as a command from nothing to its end; warm, by this process, which has all
loaded that it needs; and held, alive until it is let go.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kvmpy.accel.choose import open_accelerator
from kvmpy.boot.image import bundled_guests, plan_image
from kvmpy.compare import program
from kvmpy.container import Container, Wish
from kvmpy.container.command_line import NAME as RUNTIME
from kvmpy.container.launch import NATIVE
from kvmpy.container.simple import configuration
from kvmpy.errors import DeadlineError, HostError, KvmpyError, NoAcceleratorError
from kvmpy.machine.machine import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import ClassVar

    from kvmpy.accel.base import Accelerator
    from kvmpy.boot.plan import BootPlan
    from kvmpy.container.host import Json

HELLO, KERNEL = "hello.bin", "guest.bin"
GREETING = b"Hello from real mode\n"
SMALL = 1 << 20
DEADLINE = 60.0
QEMU_SECONDS = 20.0
HYBRID = "/sys/fs/cgroup/unified"  # where a host with both versions of control groups has the second
CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, 0x44000


class Subject:
    """One column of the report: a name, what it is, and why it cannot be asked, if it cannot."""

    name: str
    what: str
    beside = ""  # another runtime stands beside the subject of this name

    def __init__(self) -> None:
        self.missing = ""

    def cold(self) -> None:
        """Run the smallest thing by a command, from nothing to its end."""
        raise NotImplementedError

    def warm(self) -> None:
        """Run it from this process, to its end."""
        raise NotImplementedError

    def held(self) -> AbstractContextManager[object]:
        """Hold one that is alive."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what was prepared."""


class Process(Subject):
    """A plain process of a static program."""

    name = "process"
    what = "a plain process: the kernel's own unit of isolation"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._true, self._wait = program.write(folder, "true"), program.write(folder, "wait")

    def cold(self) -> None:
        """Start the program and wait for its end."""
        run([self._true])

    def warm(self) -> None:
        """Do the same: a process has nothing that could be warm."""
        self.cold()

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold a process that waits; gives its pid."""
        pid = os.posix_spawn(self._wait, [self._wait], {})
        try:
            yield pid
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


class Contained(Subject):
    """A container of this project, in a root directory that holds two programs."""

    name = "container"
    what = "a container of kvmpy: eight namespaces, control groups, a filter of system calls"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.root = folder / "root"
        self.root.mkdir()
        program.write(self.root, "true")
        program.write(self.root, "wait")
        self.bundle = folder
        self._count = 0
        try:
            (folder / "config.json").write_text(json.dumps(older(configuration(Wish(str(self.root), ["/true"])))))
            self.warm()
        except KvmpyError as error:
            self.missing = f"no container can be made here: {error}"

    def cold(self) -> None:
        """Run the program by the command line."""
        run([sys.executable, "-m", "kvmpy", "container", "run", str(self.root), "--", "/true"])

    def warm(self) -> None:
        """Create, start, wait, delete."""
        with self.box("/true") as box:
            box.start()
            box.wait(DEADLINE)

    def box(self, command: str) -> Container:
        """Return a container that waits to be started."""
        return Container.from_wish(Wish(str(self.root), [command]))

    @contextmanager
    def held(self) -> Iterator[Container]:
        """Hold a container whose program waits."""
        with self.box("/wait") as box:
            box.start()
            yield box


class Virtual(Subject):
    """A virtual machine of this project on one accelerator, with a guest of 39 bytes."""

    def __init__(self, accelerator: str) -> None:
        super().__init__()
        self.accelerator: Accelerator | None = None
        self._plans: dict[tuple[str, int], BootPlan] = {}
        self.name = "vm" if accelerator == "kvm" else "software CPU"
        self._choice = accelerator
        self.what = {
            "kvm": "a virtual machine of kvmpy on KVM",
            "soft": "the same machine on the software CPU (Unicorn), which needs no KVM",
        }[accelerator]
        try:
            self.accelerator = open_accelerator(accelerator)
        except NoAcceleratorError as error:
            self.missing = str(error)

    def cold(self) -> None:
        """Boot the guest by the command line."""
        command = [sys.executable, "-m", "kvmpy", "boot", "--accel", self._choice, "--memory", "1M", HELLO]
        assert run(command) == GREETING

    def warm(self) -> None:
        """Make a machine, run the guest to its end, close it."""
        with self.machine() as machine:
            machine.run(timeout=DEADLINE)

    def machine(self, image: str = HELLO, memory: int = SMALL) -> Machine:
        """Return a machine with a guest loaded."""
        assert self.accelerator
        plan = self._plans.get((image, memory))
        if plan is None:  # the file is read once: a warm process has it
            plan = self._plans[image, memory] = plan_image(image, memory=memory)
        machine = Machine(self.accelerator, memory=memory, irqchip="none" if image == HELLO else "auto")
        machine.load(plan)
        return machine

    @contextmanager
    def held(self) -> Iterator[Machine]:
        """Hold a machine whose guest has printed its line and halted: memory, vCPU and thread are all there."""
        with self.machine() as machine:
            machine.run(timeout=DEADLINE)
            yield machine

    def close(self) -> None:
        """Close the accelerator."""
        if self.accelerator:
            self.accelerator.close()


class OtherRuntime(Subject):
    """An OCI runtime with a bundle: kvmpy's own, runc or crun."""

    beside = "container"

    def __init__(self, name: str, ours: Contained) -> None:
        super().__init__()
        self.name = name
        self.what = f"the same container as a bundle, by {name}"
        self._bundle = ours.bundle
        path = f"{NATIVE}/{RUNTIME}" if name == RUNTIME else shutil.which(name)
        self._path = path or ""
        self.missing = ours.missing or ("" if path else f"{name} is not installed; apt install {name}")
        if not self.missing and os.geteuid() != 0:
            self.missing = f"{name} is measured as root only: its bundle has control groups"
        if not self.missing:
            try:
                self.cold()
            except HostError as error:
                self.missing = str(error)

    def cold(self) -> None:
        """Let it run the bundle."""
        runtime_run(self._path, self._bundle)


class Qemu(Subject):
    """QEMU with one of its accelerators, which boots the same kernel that guest.bin is, after its firmware."""

    beside = "vm"
    PROGRAM = "qemu-system-x86_64"
    ACCELERATORS: ClassVar = {"tcg": "QEMU (TCG)", "kvm": "QEMU (KVM)"}

    def __init__(self, accelerator: str) -> None:
        super().__init__()
        self.name = self.ACCELERATORS[accelerator]
        path = shutil.which(self.PROGRAM)
        self.missing = "" if path else f"{self.PROGRAM} is not installed; apt install qemu-system-x86"
        if path and accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.missing = "there is no /dev/kvm that this user may open"
        self._command = [path or "", "-m", "64", "-display", "none", "-serial", "stdio", "-monitor", "none"]
        self._command += ["-no-reboot", "-kernel", bundled_guests().get(KERNEL, KERNEL), "-accel", accelerator]
        self.what = f"QEMU (-accel {accelerator}): its firmware, then guest.bin, until that switches off"

    def cold(self) -> None:
        """Boot, tell the guest's monitor to halt, wait for the end; some hosts' KVM does not suit it: then it hangs."""
        converse(self._command, b"> ", b"halt\n", QEMU_SECONDS)


def older(config: Json) -> Json:
    """Return a configuration that older runtimes understand too."""
    config["ociVersion"] = "1.0.2"
    config["annotations"] = {}
    namespaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [entry for entry in namespaces if entry["type"] not in ("time", "user")]
    for name in ("uidMappings", "gidMappings"):
        config["linux"].pop(name, None)
    return config


def runtime_run(path: str, bundle: Path) -> None:
    """Run a bundle by an OCI runtime, in a mount namespace in which a hybrid host's second hierarchy is not mounted.

    crun refuses a host that has both versions of control groups; for the sake of fairness all runtimes get this.
    """
    name = f"compare-{os.getpid()}"
    command = [path, "--root", f"{bundle}/{os.path.basename(path)}"]
    prepare = hide_hybrid if os.path.ismount(HYBRID) else None
    try:
        run([*command, "run", "--bundle", str(bundle), name], prepare=prepare)
    except BaseException:  # it was killed, and has not tidied up
        with suppress(KvmpyError):
            run([*command, "delete", "--force", name], prepare=prepare)
        raise


def hide_hybrid() -> None:
    """In the child: unmount it where nobody else sees."""
    libc = ctypes.CDLL(None)
    libc.unshare(CLONE_NEWNS)
    libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None)
    libc.umount2(HYBRID.encode(), 2)


def run(command: list[str], *, input: bytes = b"", prepare: object = None) -> bytes:
    """Run a command to its end and return its output; HostError with what it said when it fails."""
    try:
        done = subprocess.run(command, input=input, capture_output=True, timeout=DEADLINE, preexec_fn=prepare)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{os.path.basename(command[0])} did not end within {DEADLINE:.0f} s") from None
    except OSError as error:
        raise HostError(f"{command[0]}: {os.strerror(error.errno or 0).lower()}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise HostError(f"{os.path.basename(command[0])}: {said[-1] if said else f'code {done.returncode}'}")
    output: bytes = done.stdout
    return output


def converse(command: list[str], until: bytes, answer: bytes, limit: float) -> bytes:
    """Run a command, send it an answer once it has written something, and return all it wrote."""
    output = bytearray()
    end = time.monotonic() + limit
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin
        assert process.stdout
        fd = process.stdout.fileno()
        try:
            while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                data = os.read(fd, 4096)
                output += data
                if not data:
                    break
                if until in output and answer:
                    process.stdin.write(answer)
                    process.stdin.flush()
                    answer = b""
            code = process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"{os.path.basename(command[0])} did not end within {limit:.0f} s") from None
        finally:
            process.kill()  # nothing, if it has ended
    if code:
        raise HostError(f"{os.path.basename(command[0])}: code {code}")
    return bytes(output)


def gather(stack: ExitStack, folder: Path) -> list[Subject]:
    """Return everyone who can be asked, and those who cannot, with the reason; `stack` closes them."""
    (folder / "bundle").mkdir()
    ours = Contained(folder / "bundle")
    subjects: list[Subject] = [
        Process(folder), ours, Virtual("kvm"), Virtual("soft"),
        *(OtherRuntime(name, ours) for name in (RUNTIME, "crun", "runc")), *map(Qemu, Qemu.ACCELERATORS),
    ]  # fmt: skip
    for subject in subjects:
        stack.callback(subject.close)
    return subjects
