"""Ways to a path inside the container that cannot lead out of it, whatever the image's symbolic links say."""

from __future__ import annotations

from kvmpy.container import kernel as k
from kvmpy.container.tape import Label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.tape import Tape

DIRECTORY = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
ANY = k.O_PATH | k.O_CLOEXEC


def open_inside(
    tape: Tape,
    path: str,
    keep: int,
    flags: int = ANY,
    resolve: int = k.RESOLVE_IN_ROOT,
    accept: tuple[int, ...] = (),
    otherwise: Label | None = None,
    then: Label | None = None,
) -> None:
    """Open what is there, with the container's root as the root of all it goes through (openat2(2))."""
    how = k.open_how(flags, resolve)
    tape.call("openat2", tape.fds.root, path, how, 24, keep=keep, accept=accept, otherwise=otherwise, then=then)


def open_directory(tape: Tape, path: str, missing: str = "", symlinks: bool = True) -> None:
    """Open a directory as DIRECTORY, and make it first where it is missing.

    `missing` is the path to make, if `path` leads there by symbolic links (see rootfs.resolve). Without `symlinks`
    any link on the way is an error (CVE-2019-19921, CVE-2023-27561: a /proc that leads elsewhere).
    """
    keep = tape.fds.directory
    resolve = k.RESOLVE_IN_ROOT if symlinks else k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS
    make, done = Label(), Label()
    open_inside(tape, path, keep, DIRECTORY, resolve, accept=(k.ENOENT,), otherwise=make, then=done)
    tape.place(make)
    make_directories(tape, missing or path, resolve)
    tape.place(done)


def make_directories(tape: Tape, path: str, resolve: int = k.RESOLVE_IN_ROOT) -> None:
    """Make what is missing of a path, one directory after the other; the last is open as DIRECTORY."""
    keep = tape.fds.directory
    open_inside(tape, ".", keep, DIRECTORY)
    names = [name for name in path.split("/") if name not in ("", ".")]
    for count, name in enumerate(names, 1):
        tape.call("mkdirat", keep, name, 0o755, accept=(k.EEXIST,))
        open_inside(tape, "/".join(names[:count]), keep, DIRECTORY, resolve)


def open_file(tape: Tape, path: str, missing: str = "", symlinks: bool = True) -> None:
    """Open a file as FILE, and make an empty one first where it is missing."""
    resolve = k.RESOLVE_IN_ROOT if symlinks else k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS
    make, done = Label(), Label()
    open_inside(tape, path, tape.fds.file, ANY, resolve, accept=(k.ENOENT,), otherwise=make, then=done)
    tape.place(make)
    parent, _, name = (missing or path).rpartition("/")
    make_directories(tape, parent, resolve)
    tape.call("mknodat", tape.fds.directory, name, k.S_IFREG | 0o644, 0, accept=(k.EEXIST,))
    open_inside(tape, missing or path, tape.fds.file, ANY, resolve)
    tape.place(done)


def put_tree(tape: Tape, onto: int, tree: int | None = None, then: Label | None = None) -> None:
    """Give the mount TREE its place on an open file or directory."""
    both = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
    tape.call("move_mount", tape.fds.tree if tree is None else tree, "", onto, "", both, then=then)


def clone_tree(tape: Tape, fd: int, path: str, recursive: bool = False) -> None:
    """Take a copy of a mount, or of a part of one, as TREE (open_tree(2))."""
    flags = (
        k.OPEN_TREE_CLONE | k.O_CLOEXEC | (k.AT_EMPTY_PATH if not path else 0) | (k.AT_RECURSIVE if recursive else 0)
    )
    tape.call("open_tree", fd, path, flags, keep=tape.fds.tree)


def set_attributes(
    tape: Tape, fd: int, set: int = 0, clear: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of an open mount, and of all below it (mount_setattr(2))."""
    flags = k.AT_EMPTY_PATH | (k.AT_RECURSIVE if recursive else 0)
    tape.call("mount_setattr", fd, "", flags, k.mount_attr(set, clear, propagation, userns), 32)
