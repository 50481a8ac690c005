"""Operations that fill the container's /dev."""

from __future__ import annotations

from kvmpy.container import kernel as k
from kvmpy.container.operations.base import Operation
from kvmpy.container.operations.filesystem import check_device
from kvmpy.container.operations.paths import clone_tree, make_directories, open_file, open_inside, put_tree
from kvmpy.container.tape import Label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.tape import Tape


class Device:
    """A device node: where, what kind (S_IFCHR, S_IFBLK, S_IFIFO), its number, its rights and owner."""

    __slots__ = ("gid", "kind", "major", "minor", "mode", "path", "uid")

    def __init__(self, path: str, kind: int, major: int, minor: int, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.path = path
        self.kind = kind
        self.major = major
        self.minor = minor
        self.mode = mode
        self.uid = uid
        self.gid = gid


# config-linux, Default Devices
DEFAULT_DEVICES = [
    Device(f"/dev/{name}", k.S_IFCHR, major, minor, 0o666)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
]
# runtime-linux, Dev symbolic links; and the multiplexer of the container's own terminals
DEVICE_LINKS = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
]


class MakeDevices(Operation):
    """Device nodes; a process in a user namespace may not make any, and binds the host's instead."""

    devices: list[Device]
    bind: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return ("bind" if self.bind else "make") + " devices: " + ", ".join(device.path for device in self.devices)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        parent = None
        for device in self.devices:
            if self.bind:
                clone_tree(tape, k.AT_FDCWD, device.path)
                open_file(tape, device.path)
                put_tree(tape, tape.fds.file)
                continue
            directory, _, name = device.path.rpartition("/")
            if directory != parent:
                make_directories(tape, directory)
                parent = directory
            self._make(tape, device, name)

    def _make(self, tape: Tape, device: Device, name: str) -> None:
        """A node of that name may be there already; but it must be this device."""
        fds, exists, done = tape.fds, Label(), Label()
        number = k.makedev(device.major, device.minor)
        mode = device.kind | device.mode
        owned = bool(device.uid or device.gid)
        then = None if owned else done
        tape.call("mknodat", fds.directory, name, mode, number, accept=(k.EEXIST,), otherwise=exists, then=then)
        if owned:
            tape.call("fchownat", fds.directory, name, device.uid, device.gid, k.AT_SYMLINK_NOFOLLOW, then=done)
        tape.place(exists)
        open_inside(tape, device.path, fds.file, resolve=k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS)
        check_device(tape, fds.file, device.kind, device.major, device.minor)
        tape.place(done)


class LinkDevices(Operation):
    """The symbolic links that programs expect in /dev."""

    links: list[tuple[str, str]]

    def describe(self) -> str:
        """Say what the operation does."""
        return "link " + ", ".join(f"/dev/{name} to {target}" for name, target in self.links)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        make_directories(tape, "/dev")
        for name, target in self.links:
            tape.call("symlinkat", target, tape.fds.directory, name, accept=(k.EEXIST,))


class Console(Operation):
    """A terminal of the container's own for its standard input, output and error.

    Its other end goes to the socket CONSOLE as one message: a name, and the descriptor (runc's --console-socket). The
    slave is opened by its master, never by a path of the image's, and bound to /dev/console (CVE-2025-52565).
    """

    rows: int
    columns: int
    device: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return "make a terminal, and send it to who waits for it"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        fds = tape.fds
        open_inside(tape, "/dev/pts/ptmx", fds.file, k.O_RDWR | k.O_NOCTTY | k.O_CLOEXEC)
        tape.call("ioctl", fds.file, k.TIOCSPTLCK, k.Struct("<i", locked=0))
        tape.call("ioctl", fds.file, k.TIOCGPTPEER, k.O_RDWR | k.O_NOCTTY | k.O_CLOEXEC, keep=fds.terminal)
        if self.rows or self.columns:
            size = k.Struct("<HHxxxx", rows=self.rows, columns=self.columns)
            tape.call("ioctl", fds.file, k.TIOCSWINSZ, size)
        tape.send(fds.console, b"/dev/ptmx", fds.file)
        tape.call("close", fds.console)
        if self.device:
            open_file(tape, "/dev/console", symlinks=False)
            clone_tree(tape, fds.terminal, "")
            put_tree(tape, fds.file)


class UseConsole(Operation):
    """The terminal becomes standard input, output and error, and controls the session."""

    uid: int

    def describe(self) -> str:
        """Say what the operation does."""
        return "use the terminal"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        terminal = tape.fds.terminal
        tape.call("fchownat", terminal, "", self.uid, WORD32, k.AT_EMPTY_PATH)
        tape.call("ioctl", terminal, k.TIOCSCTTY, 0)
        for standard in (0, 1, 2):
            tape.call("dup3", terminal, standard, 0)
        tape.call("close", terminal)


WORD32 = k.Named(0xFFFFFFFF, "-1")
