"""Operations that give up what the container's program must not have, and at last become it."""

from __future__ import annotations

from posix import strerror

from kvmpy.container import kernel as k
from kvmpy.container.operations.base import Operation
from kvmpy.container.operations.paths import make_directories
from kvmpy.container.tape import READY, Label
from kvmpy.errors import ContainerError, ExecutableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.launch import Launch
    from kvmpy.container.tape import Tape

LAST_CAPABILITY = 40  # CAP_CHECKPOINT_RESTORE; an older kernel says EINVAL to what it does not know
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


class Dumpable(Operation):
    """Whether others may look into this process and trace it: prctl(2), PR_SET_DUMPABLE; ptrace(2), access mode.

    It may not on its way into a container (CVE-2016-9962): what runs there already could take its descriptors, and its
    rights, which are the host's, before it has given them up.
    """

    allowed: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return "let its owner look into this process again" if self.allowed else "let nobody look into this process"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("prctl", k.PR_SET_DUMPABLE, int(self.allowed))


class Rlimits(Operation):
    """Resource limits: each (name, number, soft, hard), see prlimit(2)."""

    limits: list[tuple[str, int, int, int]]

    def describe(self) -> str:
        """Say what the operation does."""
        return "limit " + ", ".join(f"{name} to {soft}:{hard}" for name, _, soft, hard in self.limits)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        for _, number, soft, hard in self.limits:
            tape.call("prlimit64", 0, number, k.Struct("<QQ", soft=soft, hard=hard), 0)


class OomScore(Operation):
    """How gladly the kernel kills the container when memory runs out: -1000, never, to 1000, first."""

    score: int

    def describe(self) -> str:
        """Say what the operation does."""
        return f"set the out-of-memory score to {self.score}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        text = str(self.score)
        tape.call("openat", k.AT_FDCWD, "/proc/self/oom_score_adj", k.O_WRONLY | k.O_CLOEXEC, keep=tape.fds.file)
        tape.call("write", tape.fds.file, text, len(text))


class Scheduling(Operation):
    """CPU scheduling: struct sched_attr (sched_setattr(2))."""

    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    deadline: int
    period: int

    def describe(self) -> str:
        """Say what the operation does."""
        return f"set the scheduling policy to {self.policy}, nice {self.nice}, priority {self.priority}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        attributes = k.Struct(
            "<IIQiIQQQ",
            size=48,
            sched_policy=self.policy,
            sched_flags=self.flags,
            sched_nice=self.nice,
            sched_priority=self.priority,
            sched_runtime=self.runtime,
            sched_deadline=self.deadline,
            sched_period=self.period,
        )
        tape.call("sched_setattr", 0, attributes, 0)


class IoPriority(Operation):
    """I/O scheduling class and priority (ioprio_set(2))."""

    io_class: int
    priority: int

    def describe(self) -> str:
        """Say what the operation does."""
        return f"set the I/O priority to class {self.io_class}, {self.priority}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("ioprio_set", 1, 0, self.io_class << 13 | self.priority)  # IOPRIO_WHO_PROCESS


class Personality(Operation):
    """The execution domain (personality(2))."""

    domain: int

    def describe(self) -> str:
        """Say what the operation does."""
        return f"set the personality {self.domain:#x}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("personality", self.domain)


class NoNewPrivileges(Operation):
    """From here on no execve gives more rights: setuid bits and file capabilities do nothing."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "gain no privileges any more"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("prctl", k.PR_SET_NO_NEW_PRIVS, 1)


class Identity(Operation):
    """Who the program is, where it begins, and what it may do.

    The capability sets are masks. `keep_groups`: a user namespace made without privilege does not let groups be given
    up (user_namespaces(7)). The order is runc's: the working directory may be closed to the user, or to root
    (on NFS); so it is tried before and after the ids change. Then it must be inside (CVE-2024-21626): for a directory
    of the host, to which a leaked descriptor led, getcwd(2) gives "(unreachable)…".
    """

    uid: int
    gid: int
    groups: list[int]
    keep_groups: bool
    umask: int
    directory: str
    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int

    def describe(self) -> str:
        """Say what the operation does."""
        count = bin(self.permitted).count("1")
        return f"become user {self.uid}, group {self.gid}, in {self.directory}, with {count} capabilities"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("chdir", self.directory, accept=(k.EACCES,))
        for capability in range(LAST_CAPABILITY + 1):
            if not self.bounding >> capability & 1:
                tape.call("prctl", k.PR_CAPBSET_DROP, capability, accept=(k.EINVAL,))
        tape.call("prctl", k.PR_SET_KEEPCAPS, 1)
        groups = b"".join(group.to_bytes(4, "little") for group in self.groups)
        accept = (k.EPERM,) if self.keep_groups and not groups else ()
        tape.call("setgroups", len(self.groups), groups or 0, accept=accept)
        tape.call("setresgid", self.gid, self.gid, self.gid)
        tape.call("setresuid", self.uid, self.uid, self.uid)
        tape.call("prctl", k.PR_SET_KEEPCAPS, 0)
        tape.call("umask", self.umask)
        tape.call("chdir", self.directory)
        buffer = k.Named(tape.put(bytes(4096)), "cwd")
        tape.call("getcwd", buffer, 4096)
        tape.call("CHECK", buffer, 0xFF, ord("/"), k.EPERM)
        self._capabilities(tape)

    def _capabilities(self, tape: Tape) -> None:
        sets = (self.effective, self.permitted, self.inheritable)
        low = [mask & 0xFFFFFFFF for mask in sets]
        high = [mask >> 32 for mask in sets]
        fields = dict(zip(("effective", "permitted", "inheritable", "e2", "p2", "i2"), low + high, strict=True))
        tape.call("capset", k.Struct("<II", version=CAPABILITY_VERSION, pid=0), k.Struct("<6I", **fields))
        tape.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL, accept=(k.EINVAL,))
        ambient = self.ambient & self.permitted & self.inheritable  # the kernel lets no other be raised
        for capability in range(LAST_CAPABILITY + 1):
            if ambient >> capability & 1:
                tape.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, capability)


class MakeDirectory(Operation):
    """The working directory is made where the image has none."""

    path: str

    def describe(self) -> str:
        """Say what the operation does."""
        return f"make {self.path} if it is missing"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        make_directories(tape, self.path)


class CloseDirectories(Operation):
    """Close every directory that the stage worked with, and mark the rest to be closed by execve.

    What was left open would lead out by /proc/self/fd (CVE-2024-21626).
    """

    def describe(self) -> str:
        """Say what the operation does."""
        return "close all other descriptors"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        fds = tape.fds
        tape.call("close_range", fds.root, fds.null, 0)
        tape.call("close_range", fds.terminal + 1, END, 0)
        tape.call("close_range", fds.first, END, k.CLOSE_RANGE_CLOEXEC)


END = k.Named(0xFFFFFFFF, "~0")


class LoadSeccomp(Operation):
    """Load the filter of system calls (seccomp(2)).

    With `notify` the kernel gives a descriptor on which another process decides; the runtime hands it on.
    """

    program: bytes
    flags: int
    notify: bool

    def describe(self) -> str:
        """Say what the operation does."""
        return f"filter system calls by {len(self.program) // 8} instructions"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        program = k.Struct("<H6xQ", len=len(self.program) // 8, filter=tape.put(self.program))
        keep = tape.fds.file if self.notify else 0
        tape.call("seccomp", 1, self.flags, program, keep=keep)  # SECCOMP_SET_MODE_FILTER
        if self.notify:
            tape.ask(with_descriptor=keep)
            tape.call("close", keep)

    def answer(self, launch: Launch) -> None:
        """Hand the descriptor on to who decides (config-linux, Seccomp, listenerPath)."""
        launch.answers.hand_on_listener(launch)


class RunHooks(Operation):
    """Programs that the runtime runs while the container is made (config, POSIX-platform Hooks)."""

    kinds: tuple[str, ...]

    def describe(self) -> str:
        """Say what the operation does."""
        return f"run the hooks {', '.join(self.kinds)}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.ask()

    def answer(self, launch: Launch) -> None:
        """Run them."""
        launch.answers.run_hooks(launch, self.kinds)


class FindExecutable(Operation):
    """The program must be there before the container counts as created; `candidates` are its places by PATH."""

    name: str
    candidates: list[str]

    def describe(self) -> str:
        """Say what the operation does."""
        return f"find {self.name}"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        found = Label()
        status = tape.put(bytes(144))  # struct stat of <asm/stat.h>
        mode = k.Named(status + 24, "st_mode")
        for number, path in enumerate(self.candidates, 1):
            following = Label()
            accept = () if number == len(self.candidates) else (k.ENOENT, k.ENOTDIR, k.EACCES)
            tape.call("faccessat", k.AT_FDCWD, path, 1, accept=accept, otherwise=following)  # X_OK
            tape.call("newfstatat", k.AT_FDCWD, path, k.Named(status, "status"), 0)
            tape.call("CHECK", mode, k.S_IFMT, k.S_IFREG, k.EACCES, accept=accept, otherwise=following, then=found)
            tape.place(following)
        tape.place(found)

    def error(self, number: int) -> ContainerError:
        """Return the error in runc's words: podman makes 127 and 126 of them."""
        if number in (k.ENOENT, k.ENOTDIR) and "/" not in self.name:
            return ExecutableError(f'exec: "{self.name}": executable file not found in $PATH', k.ENOENT)
        return ExecutableError(f'exec: "{self.name}": {strerror(number).lower()}', number)


class TellReady(Operation):
    """All is done that can fail for the runtime: it hears so, keeps what it must know, and answers."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "say that the container is ready"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("write", tape.fds.report, k.Struct("<ii", what=READY, value=0), 8)
        tape.call("read", tape.fds.report, bytes(8), 8, nonzero=True)
        tape.call("close", tape.fds.report)


class WaitForStart(Operation):
    """Wait until `start` writes into FIFO, which is open for both directions: so a read waits for the first writer."""

    def describe(self) -> str:
        """Say what the operation does."""
        return "wait for start"

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        tape.call("read", tape.fds.fifo, bytes(8), 1, nonzero=True)


class Execute(Operation):
    """Become the program. When that fails the stage tells why on the program's standard error (native/explain.h)."""

    candidates: list[str]
    arguments: list[str]
    environment: list[str]

    def describe(self) -> str:
        """Say what the operation does."""
        return "execute " + " ".join(self.arguments)

    def write(self, tape: Tape) -> None:
        """Append the calls."""
        arguments = k.Named(tape.put_strings(self.arguments), "argv")
        environment = k.Named(tape.put_strings(self.environment), "environment")
        for number, path in enumerate(self.candidates, 1):
            accept = () if number == len(self.candidates) else (k.ENOENT, k.ENOTDIR, k.EACCES)
            tape.call("execve", path, arguments, environment, accept=accept)
