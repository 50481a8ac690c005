"""Operations that come before a process is inside: its control groups, its namespaces, the ids it has there."""

from __future__ import annotations

import posix

from kvmpy.container import kernel as k
from kvmpy.container.host import write_file
from kvmpy.container.operations.base import Operation
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.launch import Launch
    from kvmpy.container.tape import Tape

IdMap = list[tuple[int, int, int]]


class OpenCgroups(Operation):
    """Open what a process joins a control group by, with the rights of the host's namespaces.

    Each of `groups` is (path, the descriptor number to keep). In version 1 the path is of the file `tasks`: a process
    of one thread that moves itself by it need not wait, as it must (12 ms) for the lock that `cgroup.procs` takes. In
    version 2 it is the directory that Fork wants (`directories`).
    """

    groups: list[tuple[str, int]]
    directories: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return f"open the control groups, as {self.groups[0][0].removesuffix('/tasks')}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        flags = k.O_PATH | k.O_DIRECTORY if self.directories else k.O_WRONLY
        for path, keep in self.groups:
            tape.call("openat", k.AT_FDCWD, path, flags | k.O_CLOEXEC, keep=keep)


class JoinCgroups(Operation):
    """Join the control groups that OpenCgroups opened, and see no others where there is a cgroup namespace."""

    groups: list[int]
    namespace: bool

    def describe(self) -> str:
        """Say what the operation does."""
        if not self.groups:
            return "see no control groups above one's own"
        return "join the control groups" + (", and see no others" if self.namespace else "")

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        for fd in self.groups:
            tape.call("write", fd, "0", 1)
        if self.namespace:
            tape.call("unshare", k.NAMESPACES["cgroup"])


class OpenNamespaces(Operation):
    """Open namespaces to join, each (kind, path, the descriptor number to keep), while their paths can be reached."""

    namespaces: list[tuple[str, str, int]]

    def describe(self) -> str:
        """Say what the operation does."""
        return "open namespaces: " + ", ".join(path for _, path, _ in self.namespaces)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        for _, path, keep in self.namespaces:
            tape.call("openat", k.AT_FDCWD, path, k.O_RDONLY | k.O_CLOEXEC, keep=keep)


class JoinNamespaces(Operation):
    """Join the namespaces that OpenNamespaces opened."""

    namespaces: list[tuple[str, str, int]]

    def describe(self) -> str:
        """Say what the operation does."""
        return "join namespaces: " + ", ".join(kind for kind, _, _ in self.namespaces)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        for kind, _, fd in self.namespaces:
            tape.call("setns", fd, k.NAMESPACES[kind])
            tape.call("close", fd)
            if kind == "user":
                become_root(tape)


class JoinProcess(Operation):
    """Join the namespaces of a process, all at once (setns(2) of a pidfd)."""

    kinds: list[str]
    pidfd: int

    def describe(self) -> str:
        """Say what the operation does."""
        return "join the container's namespaces: " + ", ".join(self.kinds)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        flags: int = k.NONE
        for kind in self.kinds:
            flags = k.NAMESPACES[kind] | flags
        tape.call("setns", self.pidfd, flags)
        if "user" in self.kinds:
            become_root(tape)


class TimeOffsets(Operation):
    """A new time namespace whose clocks are ahead (time_namespaces(7)); processes to come are in it, not this one."""

    offsets: dict[str, tuple[int, int]]

    def describe(self) -> str:
        """Say what the operation does."""
        return "shift clocks: " + ", ".join(f"{clock} by {s}.{ns:09} s" for clock, (s, ns) in self.offsets.items())

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("unshare", k.NAMESPACES["time"])
        tape.call("openat", k.AT_FDCWD, "/proc/self/timens_offsets", k.O_WRONLY | k.O_CLOEXEC, keep=tape.fds.file)
        for clock, (seconds, nanoseconds) in self.offsets.items():
            line = f"{clock} {seconds} {nanoseconds}\n"
            tape.call("write", tape.fds.file, line, len(line))


class Fork(Operation):
    """The process that will become the container's: in new namespaces, its parent the runtime; this one ends.

    `cgroup` is a descriptor of the version 2 control group to start in, or 0.
    """

    kinds: list[str]
    cgroup: int

    def describe(self) -> str:
        """Say what the operation does."""
        return "start a process" + (f" in new namespaces: {', '.join(self.kinds)}" if self.kinds else "")

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        flags: int = k.CLONE_PARENT
        for kind in self.kinds:
            flags = flags | k.NAMESPACES[kind]
        if self.cgroup:
            flags = flags | k.CLONE_INTO_CGROUP
        # struct clone_args of <linux/sched.h>; the signal at its end is the parent's own, SIGCHLD
        tape.call("FORK", k.Struct("<Q72xQ", flags=flags, cgroup=self.cgroup), 88)


class MapIds(Operation):
    """Say which ids of the host the ids in the new user namespace are (user_namespaces(7)), and become its root."""

    uids: IdMap
    gids: IdMap
    privileged: bool

    def describe(self) -> str:
        """Say what the operation does."""
        maps = (("user", self.uids), ("group", self.gids))
        text = [f"{kind} ids {c}+{size} are {h}+{size}" for kind, ids in maps for c, h, size in ids]
        return "map " + ", ".join(text)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.ask()
        become_root(tape)

    def answer(self, launch: Launch) -> None:
        """Write the maps: a privileged runtime itself, another by newuidmap(1) if it wants more than its own id."""
        if not self.privileged:
            if self._own_id_only():
                write_file(f"/proc/{launch.pid}/setgroups", "deny")
            else:
                return self._by_helpers(launch.pid)
        for name, ids in (("gid_map", self.gids), ("uid_map", self.uids)):
            write_file(f"/proc/{launch.pid}/{name}", "".join(f"{c} {h} {size}\n" for c, h, size in ids))
        return None

    def _own_id_only(self) -> bool:
        mapped = [ids[0][1:] for ids in (self.uids, self.gids) if len(ids) == 1]
        return mapped == [(posix.geteuid(), 1), (posix.getegid(), 1)]

    def _by_helpers(self, pid: int) -> None:
        for helper, ids in (("newgidmap", self.gids), ("newuidmap", self.uids)):
            arguments = [helper, str(pid), *[str(number) for entry in ids for number in entry]]
            for directory in ("/usr/bin", "/bin", "/usr/local/bin"):
                try:
                    child = posix.posix_spawn(f"{directory}/{helper}", arguments, {})
                    break
                except FileNotFoundError:
                    continue
            else:
                raise ContainerError(
                    f"{self.describe()}: {helper} is missing; install it (uidmap), or map only your own id"
                )
            if posix.waitpid(child, 0)[1]:
                raise ContainerError(f"{self.describe()}: {helper} refused; see /etc/subuid and /etc/subgid")


def become_root(tape: Tape) -> None:
    """Become the root of a user namespace, if it has one: what it makes would belong to nobody else."""
    tape.call("setresgid", 0, 0, 0, accept=(k.EINVAL,))
    tape.call("setresuid", 0, 0, 0, accept=(k.EINVAL,))


class NewSession(Operation):
    """A session of its own, so that the program cannot reach the caller's terminal; and a session keyring."""

    name: str
    keyring: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return "start a new session" + (f" with a keyring, {self.name}" if self.keyring else "")

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("setsid")
        if self.keyring:
            tape.call("keyctl", k.KEYCTL_JOIN_SESSION_KEYRING, self.name, accept=(k.ENOSYS, k.EPERM))


class Loopback(Operation):
    """The only interface of a new network namespace is `lo`; it is down until someone sets it up."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "set the interface lo up"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("socket", 2, 2 | int(k.O_CLOEXEC), 0, keep=tape.fds.file)  # AF_INET, SOCK_DGRAM
        request = k.Struct("<16sh14x", ifr_name=b"lo", ifr_flags=0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        tape.call("ioctl", tape.fds.file, k.SIOCSIFFLAGS, request)


class HostNames(Operation):
    """The names of the new UTS namespace."""

    host: str
    domain: str

    def describe(self) -> str:
        """Say what the operation does."""
        names = (("host", self.host), ("domain", self.domain))
        return "name the " + " and the ".join(f"{what} {name}" for what, name in names if name)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        for call, name in (("sethostname", self.host), ("setdomainname", self.domain)):
            if name:
                tape.call(call, name, len(name.encode()))


class OpenProc(Operation):
    """A proc of the stage's own, which no mount of the image can stand in for (CVE-2025-52881)."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "open a proc of our own"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("fsopen", "proc", 1, keep=tape.fds.file)
        tape.call("fsconfig", tape.fds.file, k.FSCONFIG_CMD_CREATE, 0, 0, 0)
        tape.call("fsmount", tape.fds.file, 1, 0, keep=tape.fds.procfs)


class WriteProc(Operation):
    """Write a value below the stage's own proc: a sysctl, a security label."""

    path: str
    value: str

    def describe(self) -> str:
        """Say what the operation does."""
        return f"write {self.value!r} to /proc/{self.path}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("openat", tape.fds.procfs, self.path, k.O_WRONLY | k.O_CLOEXEC, keep=tape.fds.file)
        tape.call("write", tape.fds.file, self.value, len(self.value.encode()))
