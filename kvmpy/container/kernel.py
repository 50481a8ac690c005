"""The kernel's interface by name: system calls (x86-64), flags, and the structs that calls take.

Flags are numbers that know their names, so that a tape can be printed the way strace(1) prints a program.
"""

from __future__ import annotations

from _struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# <asm/unistd_64.h>
SYSTEM_CALLS = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "ioctl": 16, "sendfile": 40, "socket": 41,
    "sendmsg": 46, "execve": 59, "fchdir": 81, "chdir": 80, "getcwd": 79, "unlink": 87, "rmdir": 84, "umask": 95,
    "setsid": 112, "setgroups": 116, "setresuid": 117, "setresgid": 119, "capset": 126, "personality": 135,
    "pivot_root": 155, "prctl": 157, "chroot": 161, "mount": 165, "umount2": 166, "sethostname": 170,
    "setdomainname": 171, "keyctl": 250, "ioprio_set": 251, "openat": 257, "mkdirat": 258, "mknodat": 259,
    "fchownat": 260, "symlinkat": 266, "fchmodat": 268, "newfstatat": 262, "faccessat": 269, "unshare": 272,
    "dup3": 292, "prlimit64": 302, "setns": 308, "sched_setattr": 314, "seccomp": 317, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "pidfd_open": 434, "close_range": 436,
    "openat2": 437, "mount_setattr": 442, "CHECK": 2000, "FORK": 2001,
}  # fmt: skip


class Named(int):
    """A number of the kernel's interface that prints as the kernel's name for it."""

    name: str

    def __new__(cls, value: int, name: str) -> Self:
        """Make it of both."""
        number = super().__new__(cls, value)
        number.name = name
        return number

    def __or__(self, other: int) -> Named:
        if not other:
            return self
        name = other.name if isinstance(other, Named) else hex(other)
        return Named(int(self) | int(other), f"{self.name}|{name}" if self else name)

    def __str__(self) -> str:
        return self.name


class Struct:
    """A struct in memory: its fields in order, packed as `layout` says (see the module struct)."""

    def __init__(self, layout: str, **fields: int | bytes) -> None:
        self.fields = fields
        self.data = pack(layout, *fields.values())

    def __str__(self) -> str:
        return "{" + ", ".join(f"{name}={value!s}" for name, value in self.fields.items()) + "}"


def _named(**values: int) -> list[Named]:
    return [Named(value, name) for name, value in values.items()]


NONE = Named(0, "0")
(AT_FDCWD,) = _named(AT_FDCWD=-100)
AT_EMPTY_PATH, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW = _named(
    AT_EMPTY_PATH=0x1000, AT_RECURSIVE=0x8000, AT_SYMLINK_NOFOLLOW=0x100
)
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_NOCTTY, O_NONBLOCK = _named(
    O_RDONLY=0, O_WRONLY=1, O_RDWR=2, O_CREAT=0o100, O_EXCL=0o200, O_NOCTTY=0o400, O_NONBLOCK=0o4000
)
O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC, O_PATH = _named(
    O_DIRECTORY=0o200000, O_NOFOLLOW=0o400000, O_CLOEXEC=0o2000000, O_PATH=0o10000000
)
RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS = _named(RESOLVE_IN_ROOT=0x10, RESOLVE_NO_SYMLINKS=0x04)

OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = _named(
    OPEN_TREE_CLONE=1, MOVE_MOUNT_F_EMPTY_PATH=0x04, MOVE_MOUNT_T_EMPTY_PATH=0x40
)
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = _named(
    FSCONFIG_SET_FLAG=0, FSCONFIG_SET_STRING=1, FSCONFIG_CMD_CREATE=6
)
MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE = _named(
    MS_PRIVATE=1 << 18, MS_SLAVE=1 << 19, MS_SHARED=1 << 20, MS_UNBINDABLE=1 << 17
)
(MNT_DETACH,) = _named(MNT_DETACH=2)

# <linux/mount.h>, MOUNT_ATTR_*; the atime ones are values of one field.
RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, STRICTATIME, ATIME, NODIRATIME, NOSYMFOLLOW, IDMAP = _named(
    RDONLY=0x1, NOSUID=0x2, NODEV=0x4, NOEXEC=0x8, NOATIME=0x10, STRICTATIME=0x20, ATIME=0x70, NODIRATIME=0x80,
    NOSYMFOLLOW=0x200000, IDMAP=0x100000,
)  # fmt: skip

# The namespaces as runtime-spec names them (config-linux, Namespaces), in the order in which they are joined: the user
# namespace first, since it gives the rights to join the others.
NAMESPACES = {
    "user": Named(0x10000000, "CLONE_NEWUSER"),
    "cgroup": Named(0x02000000, "CLONE_NEWCGROUP"),
    "ipc": Named(0x08000000, "CLONE_NEWIPC"),
    "uts": Named(0x04000000, "CLONE_NEWUTS"),
    "network": Named(0x40000000, "CLONE_NEWNET"),
    "pid": Named(0x20000000, "CLONE_NEWPID"),
    "time": Named(0x00000080, "CLONE_NEWTIME"),
    "mount": Named(0x00020000, "CLONE_NEWNS"),
}
CLONE_PARENT, CLONE_INTO_CGROUP = _named(CLONE_PARENT=0x8000, CLONE_INTO_CGROUP=0x200000000)

S_IFCHR, S_IFBLK, S_IFIFO, S_IFREG, S_IFMT = _named(
    S_IFCHR=0o020000, S_IFBLK=0o060000, S_IFIFO=0o010000, S_IFREG=0o100000, S_IFMT=0o170000
)
EPERM, ENOENT, ESRCH, EACCES, EEXIST, ENOTDIR, EINVAL, ENOSYS, ELOOP = 1, 2, 3, 13, 17, 20, 22, 38, 40

PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = _named(
    PR_SET_DUMPABLE=4, PR_SET_KEEPCAPS=8, PR_CAPBSET_DROP=24, PR_SET_NO_NEW_PRIVS=38, PR_CAP_AMBIENT=47
)
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = _named(PR_CAP_AMBIENT_RAISE=2, PR_CAP_AMBIENT_CLEAR_ALL=4)
(KEYCTL_JOIN_SESSION_KEYRING,) = _named(KEYCTL_JOIN_SESSION_KEYRING=1)
SIOCSIFFLAGS, TIOCSCTTY, TIOCSPTLCK, TIOCGPTPEER, TIOCSWINSZ = _named(
    SIOCSIFFLAGS=0x8914, TIOCSCTTY=0x540E, TIOCSPTLCK=0x40045431, TIOCGPTPEER=0x5441, TIOCSWINSZ=0x5414
)
(CLOSE_RANGE_CLOEXEC,) = _named(CLOSE_RANGE_CLOEXEC=4)


def makedev(major: int, minor: int) -> Named:
    """Return a device number as the kernel's calls take it."""
    number = (major & 0xFFF) << 8 | (minor & 0xFF) | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32
    return Named(number, f"makedev({major}, {minor})")


_open_hows: dict[tuple[int, int], Struct] = {}  # a tape has a hundred, of a few kinds


def open_how(flags: int, resolve: int = RESOLVE_IN_ROOT) -> Struct:
    """Return openat2's struct open_how: by default nothing leads out of the directory it starts from."""
    known = _open_hows.get((flags, resolve))
    if known is None:
        known = _open_hows[flags, resolve] = Struct("<QQQ", flags=flags, mode=0, resolve=resolve)
    return known


def mount_attr(set: int = 0, clear: int = 0, propagation: int = 0, userns_fd: int = 0) -> Struct:
    """Return mount_setattr's struct mount_attr."""
    return Struct("<QQQQ", attr_set=set, attr_clr=clear, propagation=propagation, userns_fd=userns_fd)
