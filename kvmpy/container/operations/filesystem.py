"""Operations that make the container's tree of mounts, from its root to what it must not see."""

from __future__ import annotations

from kvmpy.container import kernel as k
from kvmpy.container.mount_options import shown
from kvmpy.container.operations.base import Operation
from kvmpy.container.operations.paths import (
    DIRECTORY,
    clone_tree,
    open_directory,
    open_file,
    open_inside,
    put_tree,
    set_attributes,
)
from kvmpy.container.tape import Label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.mount_options import MountOptions
    from kvmpy.container.tape import Tape

# Where a link would make the runtime write into a false /proc or /sys, or on the host.
REAL_DIRECTORIES = ("/proc", "/sys", "/dev")
LONGEST_VALUE = 255  # of a parameter of fsconfig(2), without its zero


class Propagation(Operation):
    """Cut the new mount namespace off from the host's, so that no mount made here appears there."""

    kind: int

    def describe(self) -> str:
        """Say what the operation does."""
        return f"cut all mounts off from the host's ({self.kind})"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("mount_setattr", k.AT_FDCWD, "/", k.AT_RECURSIVE, k.mount_attr(propagation=self.kind), 32)


class Root(Operation):
    """Mount the root directory on itself: pivot_root(2) wants a mount; from here on all paths begin at ROOT."""

    path: str

    def describe(self) -> str:
        """Say what the operation does."""
        return f"take {self.path} as the root"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        root, directory = tape.fds.root, tape.fds.directory
        tape.call("openat", k.AT_FDCWD, self.path, DIRECTORY, keep=directory)
        flags = k.OPEN_TREE_CLONE | k.O_CLOEXEC | k.AT_EMPTY_PATH | k.AT_RECURSIVE
        tape.call("open_tree", directory, "", flags, keep=root)
        set_attributes(tape, root, propagation=k.MS_PRIVATE, recursive=True)
        put_tree(tape, directory, root)
        tape.call("umask", 0)


class OpenRoot(Operation):
    """The root of a mount namespace that was joined is the container's root."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "take the root of the mount namespace as the root"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("openat", k.AT_FDCWD, "/", DIRECTORY, keep=tape.fds.root)


class OverlayRoot(Operation):
    """The root is an overlay: `lower` stays as it is, what is written goes to a layer of the container's own.

    `layer` is a directory that keeps it (in upper/; work/ is overlayfs's own), or "": memory, gone with the container.
    One that is made here is its owner's alone: in it may lie programs that are root's to whoever starts them (setuid).
    The overlay is mounted in the container's mount namespace: with a thousand of them in the host's, one more is slow.
    """

    lower: str
    layer: str
    user_namespace: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return f"take an overlay as the root: {self.lower}, written to in {self.layer or 'memory'}"

    def write(self, tape: Tape) -> None:
        """Append the calls. Paths are given by descriptors: a path's own colons and commas would part the options."""
        root, lower, layer = tape.fds.root, tape.fds.directory, tape.fds.tree
        tape.call("openat", k.AT_FDCWD, self.lower, DIRECTORY, keep=lower)
        if self.layer:
            tape.call("mkdirat", k.AT_FDCWD, self.layer, 0o700, accept=(k.EEXIST,))
            tape.call("openat", k.AT_FDCWD, self.layer, DIRECTORY, keep=layer)
        else:
            new_filesystem(tape, "tmpfs", "layer", [("mode", "700")], 0, layer)
            put_tree(tape, lower, layer)
        for name in ("upper", "work"):
            tape.call("mkdirat", layer, name, 0o755, accept=(k.EEXIST,))
        paths = (("lowerdir", lower, ""), ("upperdir", layer, "/upper"), ("workdir", layer, "/work"))
        data: list[tuple[str, str | None]] = [(name, f"/proc/self/fd/{int(fd)}{below}") for name, fd, below in paths]
        if self.user_namespace:
            data.append(("userxattr", None))
        new_filesystem(tape, "overlay", "overlay", data, 0, root)
        put_tree(tape, lower if self.layer else layer, root)
        tape.call("umask", 0)


def new_filesystem(
    tape: Tape, kind: str, source: str, data: list[tuple[str, str | None]], attributes: int, keep: int
) -> None:
    """Make a new instance of a filesystem, without a place yet (fsopen(2))."""
    context = tape.fds.file
    tape.call("fsopen", kind, 1, keep=context)  # FSOPEN_CLOEXEC
    for name, value in [("source", source), *data] if source else data:
        if value is None:
            tape.call("fsconfig", context, k.FSCONFIG_SET_FLAG, name, 0, 0)
        else:
            tape.call("fsconfig", context, k.FSCONFIG_SET_STRING, name, value, 0)
    tape.call("fsconfig", context, k.FSCONFIG_CMD_CREATE, 0, 0, 0)
    tape.call("fsmount", context, 1, attributes, keep=keep)  # FSMOUNT_CLOEXEC


class FilesystemMount(Operation):
    """A new filesystem somewhere in the container."""

    kind: str
    source: str
    target: str
    missing: str
    options: MountOptions

    def describe(self) -> str:
        """Say what the operation does."""
        data = "".join(f", {name}" if value is None else f", {name}={value}" for name, value in self.options.data)
        return f"mount {self.kind} on {self.target}{shown(self.options.attributes[0])}{data}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        open_directory(tape, self.target, self.missing, symlinks=self.target not in REAL_DIRECTORIES)
        if any(value and len(value.encode()) > LONGEST_VALUE for _, value in self.options.data):
            return self._write_at_once(tape)
        new_filesystem(tape, self.kind, self.source, self.options.data, self.options.attributes[0], tape.fds.tree)
        put_tree(tape, tape.fds.directory)
        return finish_mount(tape, self.options)

    def _write_at_once(self, tape: Tape) -> None:
        """A value that fsconfig(2) has no room for goes the old way, by mount(2) on the current directory."""
        data = ",".join(name if value is None else f"{name}={value}" for name, value in self.options.data)
        tape.call("fchdir", tape.fds.directory)
        tape.call("mount", self.source, ".", self.kind, 0, data)
        open_inside(tape, self.target, tape.fds.tree, DIRECTORY)
        set_attributes(tape, tape.fds.tree, self.options.attributes[0])
        finish_mount(tape, self.options)


def finish_mount(tape: Tape, options: MountOptions) -> None:
    """Apply to TREE, which has its place, what holds for all below it, and how it shares mounts with others."""
    if any(options.recursive):
        set_attributes(tape, tape.fds.tree, *options.recursive, recursive=True)
    for kind, recursive in options.propagation:
        set_attributes(tape, tape.fds.tree, propagation=kind, recursive=recursive)


class OpenTree(Operation):
    """Take a directory or file of the host while the process still has the rights of the host's namespaces.

    `userns` is a descriptor of the user namespace by whose map its owners appear (an idmapped mount), or 0.
    """

    source: str
    recursive: bool
    userns: int
    map_all: bool
    keep: int

    def describe(self) -> str:
        """Say what the operation does."""
        return f"take {self.source} from the host" + (", its owners mapped" if self.userns else "")

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        clone_tree(tape, k.AT_FDCWD, self.source, self.recursive)
        set_attributes(tape, tape.fds.tree, propagation=k.MS_PRIVATE, recursive=True)
        if self.userns:
            set_attributes(tape, tape.fds.tree, k.IDMAP, userns=self.userns, recursive=self.map_all)
        tape.call("dup3", tape.fds.tree, self.keep, k.O_CLOEXEC)


class BindMount(Operation):
    """A directory or file of the host's, seen in the container; `tree` is where OpenTree left it, or 0."""

    source: str
    target: str
    missing: str
    directory: bool
    options: MountOptions
    tree: int

    def describe(self) -> str:
        """Say what the operation does."""
        return f"bind {self.source} to {self.target}{shown(self.options.attributes[0])}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        options, symlinks = self.options, self.target not in REAL_DIRECTORIES
        if self.tree:
            tape.call("dup3", self.tree, tape.fds.tree, k.O_CLOEXEC)
        else:
            clone_tree(tape, k.AT_FDCWD, self.source, options.bind_all)
            set_attributes(tape, tape.fds.tree, propagation=k.MS_PRIVATE, recursive=True)
        if any(options.attributes):
            set_attributes(tape, tape.fds.tree, *options.attributes)
        if self.directory:
            open_directory(tape, self.target, self.missing, symlinks)
        else:
            open_file(tape, self.target, self.missing, symlinks)
        put_tree(tape, tape.fds.directory if self.directory else tape.fds.file)
        finish_mount(tape, options)


class Remount(Operation):
    """Other attributes for a mount that is there."""

    target: str
    options: MountOptions

    def describe(self) -> str:
        """Say what the operation does."""
        return f"change the mount on {self.target}{shown(self.options.attributes[0])}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        open_inside(tape, self.target, tape.fds.tree)
        set_attributes(tape, tape.fds.tree, *self.options.attributes)
        finish_mount(tape, self.options)


class CgroupMount(Operation):
    """The container's own control groups at /sys/fs/cgroup, one directory for each hierarchy of version 1.

    They are binds: a fresh mount in a new cgroup namespace makes a superblock for each container and hierarchy.
    """

    target: str
    missing: str
    groups: list[tuple[str, str]]
    links: list[tuple[str, str]]
    options: MountOptions

    def describe(self) -> str:
        """Say what the operation does."""
        return f"bind the container's control groups to {self.target}{shown(self.options.attributes[0])}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        fds = tape.fds
        top = fds.another("cgroups")
        open_directory(tape, self.target, self.missing)
        attributes = self.options.attributes[0]
        new_filesystem(tape, "tmpfs", "cgroup", [("mode", "755"), ("size", "64k")], attributes & ~k.RDONLY, top)
        put_tree(tape, fds.directory, top)
        for name, path in self.groups:
            tape.call("mkdirat", top, name, 0o755)
            tape.call("openat", top, name, DIRECTORY, keep=fds.file)
            clone_tree(tape, k.AT_FDCWD, path)
            put_tree(tape, fds.file)
        for name, target in self.links:
            tape.call("symlinkat", target, top, name)
        set_attributes(tape, top, attributes, propagation=k.MS_PRIVATE, recursive=True)


class ReadonlyPaths(Operation):
    """Parts of the container that can be read only; where one is missing nothing is done."""

    paths: list[str]

    def describe(self) -> str:
        """Say what the operation does."""
        return f"make read-only: {', '.join(self.paths)}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        for path in self.paths:
            absent = Label()
            open_inside(tape, path, tape.fds.directory, accept=(k.ENOENT, k.ENOTDIR), otherwise=absent)
            clone_tree(tape, tape.fds.directory, "", recursive=True)
            set_attributes(tape, tape.fds.tree, k.RDONLY)
            put_tree(tape, tape.fds.directory)
            tape.place(absent)


class MaskedPaths(Operation):
    """Parts of the container that must not be read: an empty directory or /dev/null lies over each."""

    paths: list[str]

    def describe(self) -> str:
        """Say what the operation does."""
        return f"hide {', '.join(self.paths)}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        open_null(tape, tape.fds.null)
        for path in self.paths:
            self._hide(tape, path)

    def _hide(self, tape: Tape, path: str) -> None:
        fds, file, done = tape.fds, Label(), Label()
        open_inside(tape, path, fds.directory, DIRECTORY, accept=(k.ENOTDIR, k.ENOENT), otherwise=file)
        new_filesystem(tape, "tmpfs", "", [("size", "0k")], k.RDONLY, fds.tree)
        put_tree(tape, fds.directory, then=done)
        tape.place(file)
        open_inside(tape, path, fds.directory, accept=(k.ENOENT, k.ENOTDIR), otherwise=done)
        clone_tree(tape, fds.null, "")
        put_tree(tape, fds.directory)
        tape.place(done)


def open_null(tape: Tape, keep: int) -> None:
    """Open the container's /dev/null, and make sure that it is (CVE-2025-31133: the image put something else there)."""
    open_inside(tape, "/dev/null", keep, resolve=k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS)
    check_device(tape, keep, k.S_IFCHR, 1, 3)


def check_device(tape: Tape, fd: int, kind: int, major: int, minor: int) -> None:
    """Fail unless an open file is this device (fstat(2): st_mode at 24, st_rdev at 40)."""
    buffer = tape.put(bytes(144))
    tape.call("fstat", fd, k.Named(buffer, "stat"))
    tape.call("CHECK", k.Named(buffer + 24, "st_mode"), k.S_IFMT, kind, k.ELOOP)
    tape.call("CHECK", k.Named(buffer + 40, "st_rdev"), (1 << 64) - 1, k.makedev(major, minor), k.ELOOP)


class ReadonlyRoot(Operation):
    """The root can be read only."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "make the root read-only"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        set_attributes(tape, tape.fds.root, k.RDONLY)


class RootPropagation(Operation):
    """How the container's root shares mounts with its master or peers."""

    kind: int
    recursive: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return f"share the root's mounts: {self.kind}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        set_attributes(tape, tape.fds.root, propagation=self.kind, recursive=self.recursive)


class PivotRoot(Operation):
    """Make ROOT the root of the mount namespace and let go of the host's: no `..` and no chroot(2) leads back."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "pivot to the root, and unmount the host's"

    def write(self, tape: Tape) -> None:
        """Append the calls.

        The old root comes to lie over the new one, both at "." (pivot_root(2), Notes); then it is unmounted.
        """
        tape.call("fchdir", tape.fds.root)
        tape.call("pivot_root", ".", ".")
        tape.call("umount2", ".", k.MNT_DETACH)
        tape.call("chdir", "/")


class MoveRoot(Operation):
    """For a root that is a ramdisk, which pivot_root(2) refuses: move the mount over / (runc's --no-pivot)."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "move the root over the host's, and change to it"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("move_mount", tape.fds.root, "", k.AT_FDCWD, "/", k.MOVE_MOUNT_F_EMPTY_PATH)
        tape.call("fchdir", tape.fds.root)
        tape.call("chroot", ".")
        tape.call("chdir", "/")
