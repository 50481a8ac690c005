"""chroot: what it is not, and what containers use instead."""

from __future__ import annotations

import os
from functools import partial

from kvmpy.demos.host import MS_BIND, MS_REC, apart, call
from kvmpy.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvmpy.demos.scene import Scene

CHECK = (
    "man 2 chroot                                 it says so itself",
    "man 2 pivot_root                             and how it is done with '.', under NOTES",
    "kvmpy container run --dry-run -v ROOTFS      the operation that enters the root directory",
)
MNT_DETACH = 2
FAR_UP = 64


def run(scene: Scene) -> None:
    """Break out of a chroot, and fail to break out of a mount namespace."""
    jail = scene.folder / "jail"
    jail.mkdir()
    (jail / "inside").touch()
    secret = scene.folder / "secret"
    secret.touch()

    try:
        chrooted = apart(partial(attempt, enter_by_chroot, jail, secret), "mount")
    except HostError as error:
        scene.missing(f"{error}; run it as root, or allow user namespaces")
        return
    scene.step("A process with root's rights calls chroot(2) on a directory. What is / now?")
    scene.saw(f"/ holds {chrooted['root']}", f"{secret}: {found(chrooted['secret'])}")
    scene.claim("Only the directory is left of the world.", chrooted["root"] == ["inside"] and not chrooted["secret"])

    scene.step("It makes a directory, calls chroot on that one too without going there, and climbs: chdir('..').")
    scene.saw(f"/ holds {chrooted['root_after'][:6]} …", f"{secret}: {found(chrooted['secret_after'])}")
    scene.claim("It is out: it reads the host's files again.", chrooted["secret_after"])
    scene.why(
        "'..' stops at the process's root directory, but this process was never below its new root, so it never meets "
        "it on the way up. chroot changes where names begin. It is no wall."
    )

    pivoted = apart(partial(attempt, enter_by_pivot, jail, secret), "mount")
    scene.step("The same in a mount namespace whose root was exchanged by pivot_root(2), and the old one unmounted.")
    scene.saw(f"/ holds {pivoted['root']}", f"after the same climb {pivoted['root_after']}")
    scene.saw(f"{secret}: {found(pivoted['secret_after'])}")
    scene.claim(
        "It got nowhere: it is where it was.",
        pivoted["root_after"] == ["deeper", "inside"] and not pivoted["secret_after"],
    )
    scene.why(
        "There is nothing above: the host's tree is not mounted in this namespace any more, so no path leads there."
    )


def found(is_there: bool) -> str:
    """Say whether the secret can be reached."""
    return "there" if is_there else "not there"


def enter_by_chroot(jail: Path) -> None:
    """Make a directory the root of names."""
    os.chroot(jail)
    os.chdir("/")


def enter_by_pivot(jail: Path) -> None:
    """Make a directory the root of the mount namespace (pivot_root(2), NOTES)."""
    call("mount", bytes(jail), bytes(jail), None, MS_BIND | MS_REC, None)  # it must be a mount point
    os.chdir(jail)
    call("syscall", 155, b".", b".")  # pivot_root: the old root lies on top of the new one now
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def attempt(enter: Callable[[Path], None], jail: Path, secret: Path) -> dict[str, object]:
    """Enter a directory, look, break out, and look again."""
    enter(jail)
    seen: dict[str, object] = {"root": sorted(os.listdir("/")), "secret": secret.exists()}
    os.mkdir("deeper")
    os.chroot("deeper")
    for _ in range(FAR_UP):
        os.chdir("..")
    os.chroot(".")
    seen |= {"root_after": sorted(os.listdir("/")), "secret_after": secret.exists()}
    if secret.exists():
        os.rmdir(jail / "deeper")
    return seen
