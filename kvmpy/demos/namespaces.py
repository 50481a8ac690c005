"""namespaces: each kind by itself. What is one for all of Linux becomes one's own."""

from __future__ import annotations

import os
import socket
import time
from functools import partial

from kvmpy.container.cgroup import open_cgroup
from kvmpy.container.host import write_file
from kvmpy.demos.host import PR_SET_DUMPABLE, apart, call
from kvmpy.errors import ContainerError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from kvmpy.demos.scene import Scene

CHECK = (
    "lsns                                    every namespace of this host",
    "ls -l /proc/self/ns                     those of a process; the number is the namespace",
    "unshare --user --map-root-user id       one by hand, with util-linux",
    "kvmpy container run --dry-run ROOTFS    all eight together",
)
KEY = 0x4B564D50  # of a System V message queue
IPC_CREAT, IPC_RMID = 0o1000, 0
DAY = 86400
NOBODY = 65534


def run(scene: Scene) -> None:
    """Show all eight, each before, inside and after."""
    for show in (uts, pid, mount, network, ipc, user, cgroup, time_):
        try:
            show(scene)
        except HostError as error:
            scene.missing(f"{error}; this kernel, or a setting of it, does not allow it")


def uts(scene: Scene) -> None:
    """The host's name."""
    scene.step("UTS: the names of the host. A child with its own changes them.")
    outside = socket.gethostname()
    inside = apart(partial(rename, "apart"), "uts")
    scene.saw(f"before {outside!r}, inside {inside!r}, outside afterwards {socket.gethostname()!r}")
    scene.claim("The name changed inside, and nowhere else.", inside == "apart" and socket.gethostname() == outside)


def rename(name: str) -> str:
    """Change the host's name; return what it is then."""
    socket.sethostname(name)
    return socket.gethostname()


def pid(scene: Scene) -> None:
    """The numbers of processes."""
    scene.step("PID: the numbers of processes. The first child in a new one is number 1.")
    inside = apart(lambda: [os.getpid(), os.getppid()], "pid")
    scene.saw(f"outside this process is {os.getpid()}; inside, the child is {inside[0]} and its parent {inside[1]}")
    scene.claim("It is number 1, and its parent is out of sight: number 0.", inside == [1, 0])
    scene.why("Number 1 adopts orphans, and when it ends the kernel kills the rest (pid_namespaces(7)).")


def mount(scene: Scene) -> None:
    """What is mounted."""
    scene.step("Mount: what lies where. A child mounts a new file system over an empty directory.")
    place = scene.folder / "mnt"
    place.mkdir()
    inside = apart(partial(mount_and_look, place), "mount")
    scene.saw(f"inside the directory holds {inside}, outside {os.listdir(place)}")
    scene.claim("The same path shows two different directories.", inside == ["secret"] and os.listdir(place) == [])


def mount_and_look(place: Path) -> list[str]:
    """Mount a tmpfs, make a file in it, and list it."""
    call("mount", b"none", bytes(place), b"tmpfs", 0, None)
    (place / "secret").touch()
    return sorted(os.listdir(place))


def network(scene: Scene) -> None:
    """Interfaces, addresses, ports."""
    scene.step("Network: interfaces, addresses, ports. A program listens on 127.0.0.1; a child tries to reach it.")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        names, reached = apart(partial(reach, address), "network")
        reached_outside = reach(address)[1]
    scene.saw(f"outside {[name for _, name in socket.if_nameindex()]}, inside {names}")
    scene.saw(f"connecting to port {address[1]}: outside {reached_outside}, inside {reached}")
    scene.claim(
        "Inside there is a loopback of its own, switched off, and nobody on it.",
        names == ["lo"] and reached_outside == "connected" and reached != "connected",
    )


def reach(address: tuple[str, int]) -> list[object]:
    """Return the names of the interfaces, and what came of connecting to an address."""
    names = [name for _, name in socket.if_nameindex()]
    try:
        with socket.socket() as client:
            client.settimeout(5)
            client.connect(address)
    except OSError as error:
        return [names, os.strerror(error.errno or 0).lower()]
    return [names, "connected"]


def ipc(scene: Scene) -> None:
    """System V queues, semaphores and shared memory."""
    scene.step(f"IPC: queues and memory that processes share by a number. A child makes queue {KEY:#x}.")
    inside = apart(lambda: [find_queue(IPC_CREAT | 0o600), find_queue(0)], "ipc")
    outside = find_queue(0)
    scene.saw(f"inside: made {inside[0]}, found {inside[1]}; outside: found {outside}")
    scene.claim("Inside the number leads to a queue, outside to nothing.", inside == [True, True] and not outside)
    scene.why("With the namespace's last process everything in it went too (ipc_namespaces(7)).")


def find_queue(flags: int) -> bool:
    """Whether there is, or could be made, a message queue of that number (msgget(2))."""
    try:
        call("msgget", KEY, flags)
    except OSError:
        return False
    return True


def user(scene: Scene) -> None:
    """Who one is."""
    start = NOBODY if os.geteuid() == 0 else os.geteuid()
    scene.step(f"User: who one is. A child of user {start}, who may do nothing, makes a namespace and is root in it.")
    scene.folder.chmod(0o777)
    inside = apart(partial(as_user, start, scene.folder / "made-inside"))
    owner = (scene.folder / "made-inside").stat().st_uid
    scene.saw(
        f"before: {inside['before']}", f"inside: {inside['inside']}", f"its file belongs, outside, to user {owner}"
    )
    scene.claim(
        "Inside it is user 0 with every capability; to the rest of the system it is who it was.",
        inside["inside"]["uid"] == 0 and owner == start
        and inside["inside"]["capabilities"] > inside["before"]["capabilities"],
    )  # fmt: skip
    scene.why("A capability counts in its own user namespace, and for what belongs to it (user_namespaces(7)).")


def as_user(uid: int, file: Path) -> dict[str, dict[str, int]]:
    """Become a user without rights, then root of a new user namespace; make a file there."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self belongs to root since the change
    before = rights()
    inside = apart(partial(look_and_make, file), "user")
    return {"before": before, "inside": inside}


def look_and_make(file: Path) -> dict[str, int]:
    """Make a file; return who one is."""
    file.touch()
    return rights()


def rights() -> dict[str, int]:
    """Return the user id, and how many capabilities are effective (proc(5), status, CapEff)."""
    with open("/proc/self/status") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    return {"uid": os.getuid(), "capabilities": mask.bit_count()}


def cgroup(scene: Scene) -> None:
    """Where in the tree of control groups one is."""
    scene.step("Cgroup: where one is in the tree of control groups.")
    if os.geteuid() != 0:
        inside = apart(places, "cgroup")
        scene.saw(f"outside {sorted(places())}, inside {inside}")
        scene.claim("Inside, one's own group is the root of the tree.", inside == ["/"])
        return
    name = f"/kvmpy-demo-{os.getpid()}"
    try:
        group = open_cgroup(name)
        scene.at_end(group.remove)
        group.create()
    except ContainerError as error:
        raise HostError(str(error)) from None
    seen = apart(partial(join_and_look, group.join_files()))
    scene.saw(f"in the group {name}: before {seen['before']}, inside {seen['inside']}")
    scene.claim(
        f"Outside the group is called {name}; inside, the same group is called /.",
        name in seen["before"] and seen["inside"] == ["/"],
    )


def join_and_look(files: list[str]) -> dict[str, list[str]]:
    """Join a group; return how it is called, before and in a new namespace."""
    for file in files:
        write_file(file, "0")
    return {"before": places(), "inside": apart(places, "cgroup")}


def places() -> list[str]:
    """Return this process's groups, as it sees them (cgroups(7), /proc/PID/cgroup)."""
    with open("/proc/self/cgroup") as lines:
        return sorted({line.rstrip("\n").split(":", 2)[2] for line in lines})


def time_(scene: Scene) -> None:
    """How long the system has been up."""
    scene.step("Time: the clocks that count since boot. A child sets its own a day ahead.")
    outside = time.clock_gettime(time.CLOCK_BOOTTIME)
    inside = apart(lambda: time.clock_gettime(time.CLOCK_BOOTTIME), "time", before=a_day_ahead)
    scene.saw(f"outside {outside:.0f} s since boot, inside {inside:.0f} s")
    scene.claim("Inside, the system has been up for a day longer.", DAY - 1 < inside - outside < DAY + 60)
    scene.why("It is for containers that move to another host: their clocks must not jump (time_namespaces(7)).")


def a_day_ahead() -> None:
    """Set the offset for the children that come."""
    with open("/proc/self/timens_offsets", "w") as file:
        file.write(f"boottime {DAY} 0\n")
