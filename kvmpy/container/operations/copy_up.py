"""tmpcopyup: a new tmpfs that begins with what the image has in its place."""

from __future__ import annotations

import posix

from kvmpy.container import kernel as k
from kvmpy.container.operations.filesystem import FilesystemMount, finish_mount, new_filesystem
from kvmpy.container.operations.paths import open_directory, put_tree, set_attributes
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.tape import Tape

MOST_ENTRIES = 10_000
KINDS = {0o040000: "directory", 0o100000: "file", 0o120000: "link"}


class Entry:
    """A file, directory or symbolic link to copy: its path below the directory, rights, owner, and size or target."""

    __slots__ = ("gid", "kind", "mode", "path", "size", "target", "uid")

    def __init__(self, path: str, status: posix.stat_result, target: str) -> None:
        self.path = path
        self.kind = KINDS.get(status.st_mode & 0o170000, "")
        self.mode = status.st_mode & 0o7777
        self.uid = status.st_uid
        self.gid = status.st_gid
        self.size = status.st_size
        self.target = target


class CopyUp(FilesystemMount):
    """A new tmpfs, and in it copies of what it covers.

    The entries are those found when the plan was made; what they hold is read in the container, and no path leads out.
    """

    entries: list[Entry]

    def describe(self) -> str:
        """Say what the operation does."""
        return f"{super().describe()}, with the {len(self.entries)} entries that the image has there"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        fds = tape.fds
        source = fds.another("source")
        open_directory(tape, self.target, self.missing)
        tape.call("dup3", fds.directory, source, k.O_CLOEXEC)
        wanted = self.options.attributes[0]
        new_filesystem(tape, self.kind, self.source, self.options.data, wanted & ~k.RDONLY, fds.tree)
        for entry in self.entries:
            self._copy(tape, entry, source)
        set_attributes(tape, fds.tree, wanted)
        put_tree(tape, source)
        tape.call("close", source)
        finish_mount(tape, self.options)

    def _copy(self, tape: Tape, entry: Entry, source: int) -> None:
        fds = tape.fds
        if entry.kind == "link":
            tape.call("symlinkat", entry.target, fds.tree, entry.path)
        elif entry.kind == "directory":
            tape.call("mkdirat", fds.tree, entry.path, 0o700)
        else:
            how = k.open_how(k.O_RDONLY | k.O_CLOEXEC, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS)
            tape.call("openat2", source, entry.path, how, 24, keep=fds.file)
            flags = k.O_WRONLY | k.O_CREAT | k.O_EXCL | k.O_CLOEXEC
            tape.call("openat", fds.tree, entry.path, flags, 0o600, keep=fds.directory)
            tape.call("sendfile", fds.directory, fds.file, 0, entry.size)
        tape.call("fchownat", fds.tree, entry.path, entry.uid, entry.gid, k.AT_SYMLINK_NOFOLLOW)
        if entry.kind != "link":
            tape.call("fchmodat", fds.tree, entry.path, entry.mode)


def copy_up(root: str, mount: FilesystemMount) -> CopyUp:
    """Return the operation that mounts and fills, for one that only mounts."""
    entries: list[Entry] = []
    _collect(f"{root}{mount.missing}", "", entries)
    return CopyUp(mount.kind, mount.source, mount.target, mount.missing, mount.options, entries)


def _collect(directory: str, below: str, entries: list[Entry]) -> None:
    try:
        found = sorted(posix.scandir(directory), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in found:
        path = f"{below}{item.name}"
        entry = Entry(path, item.stat(follow_symlinks=False), posix.readlink(item.path) if item.is_symlink() else "")
        if not entry.kind:
            continue  # a device, socket or pipe of the image is not copied
        if len(entries) == MOST_ENTRIES:
            raise ContainerError(f"tmpcopyup: {directory} has more than {MOST_ENTRIES} entries; leave the option out")
        entries.append(entry)
        if entry.kind == "directory":
            _collect(item.path, f"{path}/", entries)
