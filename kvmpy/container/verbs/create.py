"""create: the plan becomes a tape, the tape a process that waits for start."""

from __future__ import annotations

import posix

from kvmpy.container.cgroup import open_cgroup
from kvmpy.container.config import load
from kvmpy.container.host import absolute, reason, replace_file, to_json
from kvmpy.container.launch import Answers, Launch
from kvmpy.container.plan import Plan
from kvmpy.container.shortcuts import leave_shortcuts
from kvmpy.container.state import CREATING, STOPPED, check_name
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call
    from kvmpy.container.host import Json
    from kvmpy.container.state import State, Store

OPTIONS = {
    "--bundle": "DIR",
    "--console-socket": "PATH",
    "--pid-file": "FILE",
    "--no-pivot": "",
    "--no-new-keyring": "",
    "--preserve-fds": "N",
}
SHORT = {"-b": "--bundle"}
WORDS = ("ID",)
SUMMARY = "make a container that waits for start"


class Extras:
    """What a caller of create wants besides what the configuration says.

    `console` is a connected socket, or -1, that gets the terminal; `preserved` counts descriptors after 2 to pass on;
    `streams` are other descriptors for 0, 1 and 2 than the runtime's own. With `layer` the root is an overlay: what is
    written goes to that directory of the host's, or for "" to memory. It is no part of the configuration, which may
    have been written by somebody who must not name the host's directories.
    """

    def __init__(
        self,
        *,
        console: int = -1,
        pid_file: str = "",
        pivot: bool = True,
        keyring: bool = True,
        preserved: int = 0,
        streams: dict[int, int] | None = None,
        layer: str | None = None,
    ) -> None:
        self.console = console
        self.pid_file = pid_file
        self.pivot = pivot
        self.keyring = keyring
        self.preserved = preserved
        self.streams = streams or {}
        self.layer = layer


class Creation(Answers):
    """One container while it is made."""

    def __init__(self, store: Store, name: str, bundle: str, config: Json, extras: Extras) -> None:
        self.store = store
        self.name = name
        self.bundle = bundle
        self.config = config
        self.extras = extras
        self.state: State | None = None
        self.plan = self.make_plan()

    def make_plan(self) -> Plan:
        """Return the plan; nothing is changed yet, so what is wrong with the configuration leaves nothing behind."""
        if "process" not in self.config:
            raise ContainerError("config.json.process is missing")
        if "root" not in self.config:
            raise ContainerError("config.json.root is missing")
        linux = self.config.get("linux", {})
        privileged = posix.geteuid() == 0
        cgroup = open_cgroup(linux.get("cgroupsPath") or f"/{self.name}") if privileged else None
        filter = None
        if "seccomp" in linux:
            from kvmpy.container import seccomp

            filter = seccomp.load(self.store.root, linux["seccomp"], "linux.seccomp")
        return Plan(
            self.config,
            self.bundle,
            self.name,
            cgroup=cgroup,
            filter=filter,
            privileged=privileged,
            pivot=self.extras.pivot,
            keyring=self.extras.keyring,
            preserved=self.extras.preserved,
            layer=self.extras.layer,
        )

    def run(self) -> State:
        """Make it, or leave nothing behind."""
        plan, extras = self.plan, self.extras
        if plan.terminal != (extras.console >= 0):
            raise ContainerError(
                "process.terminal: a terminal needs --console-socket, or run without --detach"
                if plan.terminal
                else "--console-socket: process.terminal is not true"
            )
        self.store.demand_free(self.name)
        if plan.cgroup and plan.cgroup.pids():  # all that is in its group is the container's, and is killed with it
            raise ContainerError(f"linux.cgroupsPath: {plan.cgroup.process_directory()} has processes of others in it")
        state = self.store.new(self.name, self.bundle, self.config, plan.root, plan.own_namespaces, plan.cgroup)
        self.state = state
        try:
            if plan.cgroup:
                plan.cgroup.create()
                plan.cgroup.apply(plan.linux.get("resources", {}))
            self._launch(state)
        except BaseException:
            self._undo(state)
            raise
        return state

    def _launch(self, state: State) -> None:
        plan, extras = self.plan, self.extras
        ours: dict[int, int] = {plan.fds.fifo: posix.open(state.fifo, posix.O_RDWR | posix.O_CLOEXEC)}
        callers = extras.streams | {3 + n: 3 + n for n in range(extras.preserved)}
        if extras.console >= 0:
            callers[plan.fds.console] = extras.console
        try:
            for uids, gids, where, fd in plan.id_maps:
                from kvmpy.container.idmap import open_user_namespace

                ours[fd] = open_user_namespace(uids, gids, where)
            with Launch(plan.operations, plan.fds, self) as launch:
                launch.start(callers | ours)
                state.set_process(launch.pid)
                if extras.pid_file:
                    write_pid_file(extras.pid_file, launch.pid)
                launch.go_on()
        finally:
            for fd in ours.values():
                posix.close(fd)

    def _undo(self, state: State) -> None:
        if self.plan.cgroup:
            self.plan.cgroup.kill_all()
            self.plan.cgroup.remove()
        try:
            state.run_hooks("poststop", STOPPED)
        except ContainerError:
            pass  # what failed before is what the caller must hear
        state.forget()

    def forked(self, launch: Launch) -> None:
        """Leave what the launcher needs for start and delete."""
        assert self.state
        leave_shortcuts(self.state, launch.pid, self.plan.cgroup, self.config)

    def run_hooks(self, launch: Launch, kinds: tuple[str, ...]) -> None:
        """Run the hooks of these kinds for the process on its way."""
        assert self.state
        for kind in kinds:
            self.state.run_hooks(kind, CREATING, launch.pid)

    def hand_on_listener(self, launch: Launch) -> None:
        """Send seccomp's descriptor to listenerPath, with the container process state of config-linux."""
        from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

        assert self.state
        profile: Json = self.plan.linux["seccomp"]
        message = {
            "ociVersion": self.config["ociVersion"],
            "fds": ["seccompFd"],
            "pid": launch.pid,
            "metadata": profile.get("listenerMetadata", ""),
            "state": self.state.report(CREATING, launch.pid),
        }
        connection = socket(AF_UNIX, SOCK_STREAM)
        try:
            connection.connect(profile["listenerPath"])
            rights = (SOL_SOCKET, SCM_RIGHTS, launch.received.to_bytes(4, "little"))
            connection.sendmsg([to_json(message).encode()], [rights])
        except OSError as error:
            raise ContainerError(f"linux.seccomp.listenerPath: {profile['listenerPath']}: {reason(error)}") from None
        finally:
            connection.close()


def create(store: Store, name: str, bundle: str, extras: Extras) -> State:
    """Make a container of a bundle; it waits for start.

    Raises:
        ContainerError: it cannot be, and nothing of it is left.
    """
    return prepare(store, name, bundle, extras).run()


def prepare(store: Store, name: str, bundle: str, extras: Extras) -> Creation:
    """Read a bundle and plan its container; nothing is changed yet."""
    check_name(name)
    bundle = absolute(bundle, posix.getcwd())
    return Creation(store, name, bundle, load(bundle), extras)


def write_pid_file(path: str, pid: int) -> None:
    """Write the pid without a newline, so that nobody reads half of it: callers wait for the file."""
    try:
        replace_file(path, str(pid), 0o644)
    except OSError as error:
        raise ContainerError(f"--pid-file: {path}: {reason(error)}") from None


def connect_console(path: str) -> int:
    """Return a descriptor of a connection to the socket that waits for a terminal."""
    from _socket import AF_UNIX, SOCK_STREAM, socket

    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise ContainerError(f"--console-socket: {path}: {reason(error)}") from None
    return connection.detach()


def extras_of(call: Call) -> Extras:
    """Return what the options of create and run say."""
    console = call.value("--console-socket")
    return Extras(
        console=connect_console(console) if console else -1,
        pid_file=call.value("--pid-file"),
        pivot=not call.has("--no-pivot"),
        keyring=not call.has("--no-new-keyring"),
        preserved=call.number("--preserve-fds"),
    )


def main(call: Call) -> int:
    """Run the verb."""
    create(call.store, call.words[0], call.value("--bundle") or posix.getcwd(), extras_of(call))
    return 0
