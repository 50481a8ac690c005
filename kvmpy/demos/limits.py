"""limits: what control groups do to a program that wants too much."""

from __future__ import annotations

import contextlib
import json
import os

from kvmpy.container import Container, Wish
from kvmpy.container.small_root import find_python, small_root
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container import Finished
    from kvmpy.demos.scene import Scene

CHECK = (
    "kvmpy container run --memory 32M ROOTFS -- sh    and fill a variable",
    "kvmpy container run --pids 5 ROOTFS -- sh        and start six programs",
    "kvmpy container run --cpus 0.2 ROOTFS -- sh      and run top outside",
)
MEMORY, PROCESSES, CPUS = 32 << 20, 6, 0.2
KILLED = 128 + 9
SECONDS = 1.0
DEADLINE = 30.0
# sudo(8) has a PATH of its own, without a virtual environment's.
AS_ROOT = 'sudo "$(command -v kvmpy)" demo limits'
# What runs inside, by the host's own Python.
TAKE_MEMORY = "x = []\nfor n in range(1, 200):\n    x.append(b'x' * (1 << 20))\n    print(n, flush=True)"
TAKE_PROCESSES = """
import os, signal
children = []
try:
    while len(children) < 100:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
    print(len(children), "no end")
except OSError as error:
    print(len(children), error.strerror)
for pid in children:
    os.kill(pid, 9)
"""
TAKE_TIME = f"""
import json, time
start, used = time.monotonic(), time.process_time()
while time.monotonic() < start + {SECONDS}:
    pass
print(json.dumps([time.monotonic() - start, time.process_time() - used]))
"""


def run(scene: Scene) -> None:
    """Exceed three limits on purpose."""
    if os.geteuid() != 0:
        scene.missing("limits need root: control groups belong to it; run this:")
        scene.saw(AS_ROOT)
        return
    root = scene.folder / "root"
    root.mkdir()
    volumes = small_root(root) + find_python()[1]
    wish = Wish(str(root), ["sleep", "1000"], memory=MEMORY, pids=PROCESSES, cpus=CPUS, volumes=volumes)
    try:
        box = scene.hold(Container.from_wish(wish))
    except ContainerError as error:
        scene.missing(f"no container can be made here: {error}")
        return
    box.start()
    with contextlib.suppress(ContainerError):  # the kernel may not count swap space
        box.update({"memory": {"limit": MEMORY, "swap": MEMORY}})
    scene.step(f"A container with {MEMORY >> 20} MiB, {PROCESSES} processes and {CPUS} of a processor.")
    scene.saw(f"{box.name}: {box.status}, its first process is {box.pid} outside")

    scene.step("A program in it takes memory, one MiB after the other, up to 199.")
    taken = python(box, TAKE_MEMORY)
    got = int(taken.stdout.split()[-1])
    scene.saw(f"it got {got} MiB and ended with code {taken.code}")
    scene.claim("The kernel killed it (128 + SIGKILL) before it had 32.", taken.code == KILLED and 0 < got < 32)
    scene.claim("The container's first process lives on.", box.status == "running")
    scene.why("No page is refused to a program; the group's out-of-memory killer ends one (cgroup-v1/memory.rst, 10).")

    scene.step("Another starts children until it cannot, up to a hundred.")
    forked = python(box, TAKE_PROCESSES)
    count, _, reason = forked.stdout.decode().strip().partition(" ")
    scene.saw(f"it got {count}, then fork(2) failed: {reason}")
    wanted = PROCESSES - 2  # sleep and the program itself
    scene.claim(
        f"{wanted} children and no more (EAGAIN): with the container's first process and itself that is {PROCESSES}.",
        (int(count), reason) == (wanted, os.strerror(11)),
    )

    scene.step(f"A third keeps a processor busy for {SECONDS:.0f} s.")
    passed, used = json.loads(python(box, TAKE_TIME).stdout)
    stopped = box.stats()["cpu"]["throttling"]["throttledPeriods"]
    scene.saw(f"in {passed:.2f} s it had {used:.2f} s of processor time; it was stopped in {stopped} periods")
    scene.claim(
        f"It was stopped again and again, and had {CPUS:.0%} of the time, or not much more.",
        used < 2 * CPUS * passed and stopped > 0,
    )
    scene.why("In every tenth of a second the group has 20 ms; then its processes wait (sched-bwc.rst).")


def python(box: Container, program: str) -> Finished:
    """Run a program inside."""
    return box.exec([find_python()[0], "-I", "-S", "-c", program], timeout=DEADLINE)
