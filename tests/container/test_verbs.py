"""The verbs by runc's command line: by the launcher with its tapes, and with Python for every one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import runpy
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import DEADLINE
from container.oci import IN_PYTHON, LAUNCHER, Bundle, Runtime

import kvmpy
from kvmpy.container.host import start_time


@pytest.fixture(params=["launcher", "python"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path, unchanged_host: None) -> Runtime:
    return Runtime((LAUNCHER,) if request.param == "launcher" else IN_PYTHON, tmp_path / "root")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take note."""
    return start_time(pid) == 0


class Made:
    """A container of a test, which the fixture removes."""

    def __init__(self, runtime: Runtime, bundle: Bundle) -> None:
        self.runtime = runtime
        self.bundle = bundle
        self.name = runtime.new_name()
        self.pid_file = bundle.directory / "pid"
        self.out = bundle.directory / "out"

    def create(self, script: str = "", *options: object) -> None:
        if script:
            self.bundle.sh(script)
        with self.out.open("wb") as out:
            command = [*self.runtime.command, "--root", str(self.runtime.root), "create", "-b", self.bundle.save()]
            command += ["--pid-file", self.pid_file, *map(str, options), self.name]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=30)
        assert done.returncode == 0, self.out.read_text()

    def start(self) -> None:
        self.runtime.ok("start", self.name)

    def running(self, script: str = "exec sleep 1000") -> None:
        self.create(script)
        self.start()

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    @property
    def status(self) -> str:
        return str(self.runtime.state(self.name)["status"])

    def wait(self) -> None:
        """Wait for the end of the first process, which is not this process's child."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        assert poller.poll(30_000)
        os.close(fd)


@pytest.fixture
def made(runtime: Runtime, bundle: Bundle) -> Iterator[Made]:
    container = Made(runtime, bundle)
    yield container
    runtime.ok("delete", "--force", container.name)


@contextlib.contextmanager
def adopted(pid_file: Path) -> Iterator[None]:
    """Take over what the runtime leaves running, as conmon does for podman (PR_SET_CHILD_SUBREAPER), and bury it.

    Else the host's first process would, when it finds the time: until then the control group is in use.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(36, 0, 0, 0, 0)
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("verb", "code"), [("state", 1), ("start", 1), ("delete", 1), ("exec", 255), ("nonsense", 1)])
@pytest.mark.parametrize("stderr", ["> /dev/full", ">&-"])
def test_standard_error_that_is_full_or_closed_changes_no_code(
    runtime: Runtime, verb: str, code: int, stderr: str
) -> None:
    script = f'exec "$@" 2{stderr}'
    command = ["sh", "-c", script, "sh", *runtime.command, "--root", str(runtime.root), verb, "nobody", "true"]
    assert subprocess.run(command[: None if verb == "exec" else -1], timeout=DEADLINE).returncode == code


# create, start, state, kill, delete


def test_a_life(made: Made, runtime: Runtime) -> None:
    made.create("echo hello; exec sleep 1000")
    state = runtime.state(made.name)
    assert state["status"] == "created"
    assert state["pid"] == made.pid
    assert made.out.read_text() == ""
    made.start()
    assert made.status == "running"
    runtime.ok("kill", made.name, "KILL")
    made.wait()
    assert made.status == "stopped"
    assert runtime.state(made.name)["pid"] == 0
    assert made.out.read_text() == "hello\n"
    runtime.ok("delete", made.name)
    assert list(runtime.root.iterdir()) == []


def test_the_state_is_what_the_specification_says(made: Made, runtime: Runtime) -> None:
    made.bundle.config["annotations"] = {"a": "b"}
    made.create()
    state = runtime.state(made.name)
    created = state.pop("created")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", created)
    assert state == {
        "ociVersion": "1.2.1",
        "id": made.name,
        "pid": made.pid,
        "status": "created",
        "bundle": str(made.bundle.directory),
        "rootfs": str(made.bundle.rootfs),
        "annotations": {"a": "b"},
        "owner": "",
    }


def test_the_pid_file_has_no_newline(made: Made) -> None:
    made.create()
    assert made.pid_file.read_text().isdigit()
    assert [path.name for path in made.bundle.directory.iterdir() if path.name.startswith("pid")] == ["pid"]


def test_the_stage_waits_and_is_small(made: Made) -> None:
    made.create()
    assert os.readlink(f"/proc/{made.pid}/exe").endswith("/memfd:stage (deleted)")
    status = Path(f"/proc/{made.pid}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident
    assert int(resident[1]) < 256


@pytest.mark.root("namespaces without a user namespace")
def test_nothing_of_the_runtime_stays(made: Made) -> None:
    """Only the container's own process holds what create was given."""
    made.running()
    holders = []
    for process in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(process) == str(made.out):
                holders.append(int(process.parts[2]))
        except OSError:
            continue
    assert holders == [made.pid, made.pid]


def test_a_container_can_be_started_once(made: Made, runtime: Runtime) -> None:
    made.running()
    assert runtime.error("start", made.name) == f"container {made.name}: cannot start an already running container"
    runtime.ok("kill", made.name, "9")
    made.wait()
    assert runtime.error("start", made.name) == f"container {made.name}: cannot start a container that has stopped"


def test_a_stopped_container_was_never_started(made: Made, runtime: Runtime) -> None:
    made.create()
    runtime.ok("kill", made.name, "9")
    made.wait()
    assert runtime.error("start", made.name) == f"container {made.name}: cannot start a container that has stopped"
    assert made.status == "stopped"


def test_a_created_container_can_be_deleted(made: Made, runtime: Runtime) -> None:
    made.create()
    pid = made.pid
    runtime.ok("delete", made.name)
    assert has_ended(pid)
    assert list(runtime.root.iterdir()) == []


def test_a_running_container_is_deleted_by_force(made: Made, runtime: Runtime) -> None:
    made.running()
    line = runtime.error("delete", made.name)
    assert line == f"cannot delete container {made.name} that is not stopped: running"
    runtime.ok("delete", "--force", made.name)
    assert has_ended(made.pid)


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete", "pause", "resume", "ps", "events", "update"])
def test_an_unknown_container(runtime: Runtime, verb: str) -> None:
    assert runtime.error(verb, "nobody") == "container nobody does not exist"


def test_an_unknown_container_is_deleted_by_force(runtime: Runtime) -> None:
    runtime.ok("delete", "--force", "nobody")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "-x y", "a b", "\u00e4", "x" * 256])
def test_names_that_are_none(runtime: Runtime, bundle: Bundle, name: str) -> None:
    """Test 21: a name becomes a directory's."""
    line = runtime.error("create", "-b", bundle.save(), "--", name)
    assert line.startswith("invalid id format: ")


def test_a_name_is_taken(made: Made, runtime: Runtime) -> None:
    made.create()
    assert runtime.error("create", "-b", made.bundle.save(), made.name) == f"container with id exists: {made.name}"
    assert made.status == "created"


@pytest.mark.parametrize("text", ["15", "TERM", "SIGTERM", "sigterm", "term"])
def test_signals_by_number_and_name(made: Made, runtime: Runtime, text: str) -> None:
    made.running("trap 'echo caught; exit' TERM; echo ready; while :; do sleep 0.05; done")
    while "ready" not in made.out.read_text():
        os.sched_yield()
    runtime.ok("kill", made.name, text)
    made.wait()
    assert made.out.read_text() == "ready\ncaught\n"


def test_kill_of_what_does_not_run(made: Made, runtime: Runtime) -> None:
    made.create("true")
    made.start()
    made.wait()
    assert runtime.error("kill", made.name, "9") == f"container {made.name}: container not running"
    runtime.ok("kill", "--all", made.name, "9")


@pytest.mark.parametrize("text", ["0", "65", "NOSUCH", "SIG", "-1", "SIG_IGN", ""])
def test_signals_that_are_none(made: Made, runtime: Runtime, text: str) -> None:
    made.create()
    assert runtime.error("kill", made.name, "--", text).startswith(f"unknown signal {text!r}")


@pytest.mark.root("control groups")
def test_all_processes_are_killed_without_a_pid_namespace(made: Made, runtime: Runtime) -> None:
    """Test 25: whoever the container left behind is in its control group."""
    made.bundle.linux["namespaces"] = [n for n in made.bundle.linux["namespaces"] if n["type"] != "pid"]
    made.create("sleep 1000 & sleep 1000 & echo $!; exec true")
    made.start()
    made.wait()
    left = int(made.out.read_text())
    assert not has_ended(left)
    assert made.status == "stopped"
    runtime.ok("delete", made.name)
    assert has_ended(left)


def test_a_pid_that_is_used_again_is_not_killed(made: Made, runtime: Runtime) -> None:
    """Test 26: what is kept names a process with the time that it started."""
    made.create("true")
    made.start()
    made.wait()
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            (runtime.root / made.name / "pid").write_text(f"{other.pid} 12345")
            assert made.status == "stopped"
            assert "not running" in runtime.error("kill", made.name, "9")
            runtime.ok("delete", "--force", made.name)
            assert other.poll() is None
        finally:
            other.kill()


def test_a_reused_pid_does_not_fool_the_shortcut(made: Made, runtime: Runtime, bundle: Bundle) -> None:
    """The tape of delete has a pid in it: one that lives makes the launcher ask Python."""
    made.running()
    assert runtime.error("delete", made.name).endswith("that is not stopped: running")


# run


def test_run(runtime: Runtime, bundle: Bundle) -> None:
    bundle.sh("cat; exit 7")
    done = runtime.run(bundle, input="from the caller")
    assert (done.stdout, done.stderr, done.returncode) == ("from the caller", "", 7)
    assert list(runtime.root.iterdir()) == []


def test_run_detached(made: Made, runtime: Runtime) -> None:
    made.bundle.sh("exec sleep 1000")
    runtime.ok("run", "--detach", "--pid-file", made.pid_file, "-b", made.bundle.save(), made.name)
    assert made.status == "running"
    assert made.pid > 0


def test_run_keeps_what_it_is_told_to(made: Made, runtime: Runtime) -> None:
    runtime.ok("run", "--keep", "-b", made.bundle.save(), made.name)
    assert made.status == "stopped"


def test_a_program_that_is_not_there(runtime: Runtime, bundle: Bundle) -> None:
    """podman makes 127 of these words."""
    bundle.process["args"] = ["nothing"]
    line = runtime.error("create", "-b", bundle.save(), "x")
    assert line == 'exec: "nothing": executable file not found in $PATH'
    bundle.process["args"] = ["/bin/nothing"]
    assert runtime.error("create", "-b", bundle.save(), "x") == 'exec: "/bin/nothing": no such file or directory'


# exec


def test_exec_is_inside(made: Made, runtime: Runtime) -> None:
    made.running()
    inside = {os.readlink(f"/proc/{made.pid}/ns/{n}") for n in ("pid", "net", "ipc", "uts", "mnt", "cgroup")}
    seen = runtime.ok(
        "exec", made.name, "sh", "-c", "for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done"
    )
    assert set(seen.split()) == inside
    ours = Path(f"/proc/{made.pid}/cgroup").read_text()
    assert runtime.ok("exec", made.name, "cat", "/proc/1/cgroup") == runtime.ok(
        "exec", made.name, "cat", "/proc/self/cgroup"
    )
    assert made.name in ours or os.geteuid() != 0  # then it has no groups of its own


def test_exec_in_a_created_container(made: Made, runtime: Runtime) -> None:
    made.create("echo started")
    assert runtime.ok("exec", made.name, "echo", "before") == "before\n"
    made.start()
    made.wait()
    assert made.out.read_text() == "started\n"


def test_exec_gives_the_programs_code(made: Made, runtime: Runtime) -> None:
    made.running()
    assert runtime("exec", made.name, "sh", "-c", "exit 9").returncode == 9
    assert runtime("exec", made.name, "sh", "-c", "kill -9 $$").returncode == 137


@pytest.mark.root("the ids of others")
def test_exec_options(made: Made, runtime: Runtime) -> None:
    made.running()
    options = ("--cwd", "/tmp", "-e", "A=1", "-e", "B=2", "-u", "5:6", "-g", "7")
    script = "pwd; echo $A $B; id -u; id -g; grep -e Groups -e CapEff /proc/self/status"
    seen = runtime.ok("exec", *options, made.name, "sh", "-c", script).split()
    assert seen == ["/tmp", "1", "2", "5", "6", "Groups:", "7", "CapEff:", "0000000000000000"]


@pytest.mark.root("the ids of others")
def test_exec_by_a_file(made: Made, runtime: Runtime, tmp_path: Path) -> None:
    made.running()
    file, pid_file, out = tmp_path / "process.json", tmp_path / "exec.pid", tmp_path / "exec.out"
    process = {**made.bundle.process, "args": ["sh", "-c", "echo $A; exec sleep 1000"], "env": ["PATH=/bin", "A=b"]}
    file.write_text(json.dumps(process))
    with adopted(pid_file), out.open("w") as stream:
        command = [*runtime.command, "--root", str(runtime.root), "exec", "--process", str(file), "--detach"]
        subprocess.run([*command, "--pid-file", str(pid_file), made.name], check=True, stdout=stream, timeout=30)
        pid = int(pid_file.read_text())
        while not out.read_text():
            os.sched_yield()
        assert out.read_text() == "b\n"
        assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{made.pid}/ns/pid")
        assert pid in json.loads(runtime.ok("ps", "--format", "json", made.name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-u", "bob"], "--user: 'bob' is not UID or UID:GID"),
        (["--cwd", "/nowhere"], "become user 0, group 0, in /nowhere, with 8 capabilities: no such file or directory"),
        (["--cwd", "relative"], "process.cwd: 'relative' is no absolute path"),
        (["--cap", "NOSUCH"], "process.capabilities.bounding: there is no capability 'CAP_NOSUCH'"),
        (["--process", "/none"], "/none: no such file or directory"),
        (["--tty", "--detach"], "--tty with --detach needs --console-socket"),
    ],
)
def test_exec_fails_closed(made: Made, runtime: Runtime, options: list[str], message: str) -> None:
    """Test 30."""
    made.running()
    assert runtime.error("exec", *options, made.name, "true", code=255).startswith(message)


def test_exec_where_nothing_runs(made: Made, runtime: Runtime) -> None:
    made.create("true")
    made.start()
    made.wait()
    assert "container not running" in runtime.error("exec", made.name, "true", code=255)
    assert runtime.error("exec", "nobody", "true", code=255) == "container nobody does not exist"


# terminals


class Terminals:
    """Who waits for a container's terminal on --console-socket."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = f"{self.directory.name}/console"
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(self.path)
        self.socket.listen()

    def take(self) -> int:
        connection, _ = self.socket.accept()
        with connection:
            name, fds, _, _ = socket.recv_fds(connection, 4096, 8)
            assert name == b"/dev/ptmx"
            assert len(fds) == 1
        return fds[0]

    def close(self) -> None:
        self.socket.close()
        self.directory.cleanup()


@pytest.fixture
def terminals() -> Iterator[Terminals]:
    waiting = Terminals()
    yield waiting
    waiting.close()


def read_all(master: int) -> str:
    """Read a terminal until nobody has its other end open."""
    data = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            return data.decode()
        data += piece


def test_create_with_a_terminal(made: Made, terminals: Terminals) -> None:
    made.bundle.process["terminal"] = True
    made.bundle.process["consoleSize"] = {"height": 11, "width": 22}
    made.create("tty; stty size; ls -l /dev/console; ls -l /proc/self/fd/2", "--console-socket", terminals.path)
    master = terminals.take()
    made.start()
    seen = read_all(master).split()
    os.close(master)
    assert seen[:3] == ["/dev/pts/0", "11", "22"]
    assert seen[3].startswith("crw")
    assert seen[-1] == "/dev/pts/0"
    assert made.out.read_text() == ""


def test_exec_with_a_terminal(made: Made, runtime: Runtime, terminals: Terminals, tmp_path: Path) -> None:
    made.running()
    pid_file = tmp_path / "exec.pid"
    options = ("--tty", "--detach", "--console-socket", terminals.path, "--pid-file", pid_file)
    with adopted(pid_file):
        runtime.ok("exec", *options, made.name, "tty")
        master = terminals.take()
        assert read_all(master).split() == ["/dev/pts/0"]
        os.close(master)


def test_a_terminal_needs_someone(made: Made, runtime: Runtime, tmp_path: Path) -> None:
    made.bundle.process["terminal"] = True
    line = runtime.error("create", "-b", made.bundle.save(), "--console-socket", tmp_path / "none", made.name)
    assert line == f"--console-socket: {tmp_path}/none: no such file or directory"


def test_a_terminal_must_be_wanted(made: Made, runtime: Runtime, terminals: Terminals) -> None:
    line = runtime.error("create", "-b", made.bundle.save(), "--console-socket", terminals.path, made.name)
    assert line == "--console-socket: process.terminal is not true"


def test_run_with_a_terminal(runtime: Runtime, bundle: Bundle) -> None:
    """On our own terminal, which is as it was afterwards."""
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    bundle.process["terminal"] = True
    bundle.sh("stty -a | head -1; read line; echo got $line; exit 4")
    command = [*runtime.command, "--root", str(runtime.root), "run", "-b", str(bundle.save()), runtime.new_name()]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        seen = b""
        while b"\n" not in seen:
            seen += os.read(master, 4096)
        os.write(master, b"word\r")
        while b"got word" not in seen:
            seen += os.read(master, 4096)
        assert process.wait(30) == 4
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


# ps, list, pause, resume, update, events


@pytest.mark.root("control groups")
@pytest.mark.calls("ps")
def test_ps(made: Made, runtime: Runtime) -> None:
    made.running("sleep 1000 & exec sleep 2000")
    while len(pids := json.loads(runtime.ok("ps", "--format", "json", made.name))) < 2:
        os.sched_yield()
    assert made.pid in pids
    head, *lines = runtime.ok("ps", made.name).splitlines()
    assert head.split()[:3] == ["UID", "PID", "PPID"]
    assert sorted(int(line.split()[1]) for line in lines) == sorted(pids)
    shown = runtime.ok("ps", made.name, "-o", "pid,args")
    assert "sleep 2000" in shown


def test_list(made: Made, runtime: Runtime) -> None:
    assert runtime.ok("list", "--format", "json") == "null\n"
    made.running()
    (entry,) = json.loads(runtime.ok("list", "--format", "json"))
    assert (entry["id"], entry["pid"], entry["status"]) == (made.name, made.pid, "running")
    assert runtime.ok("list", "-q") == f"{made.name}\n"
    head, line = runtime.ok("list").splitlines()
    assert head.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert line.split()[:4] == [made.name, str(made.pid), "running", str(made.bundle.directory)]


@pytest.mark.root("control groups")
def test_pause_and_resume(made: Made, runtime: Runtime) -> None:
    made.running("i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done")
    runtime.ok("pause", made.name)
    assert made.status == "paused"
    assert "cannot pause" in runtime.error("pause", made.name)
    assert "paused" in runtime.error("exec", made.name, "true", code=255)
    count = (made.bundle.rootfs / "tmp/count").read_text()
    assert (made.bundle.rootfs / "tmp/count").read_text() == count
    runtime.ok("resume", made.name)
    assert made.status == "running"
    while (made.bundle.rootfs / "tmp/count").read_text() in (count, ""):
        os.sched_yield()
    assert "not paused" in runtime.error("resume", made.name)


@pytest.mark.root("control groups")
def test_a_paused_container_is_deleted_by_force(made: Made, runtime: Runtime) -> None:
    """Test 28: the killed can only die once they are thawed."""
    made.running()
    runtime.ok("pause", made.name)
    runtime.ok("delete", "--force", made.name)
    assert has_ended(made.pid)


@pytest.mark.root("control groups")
def test_a_paused_container_can_be_killed(made: Made, runtime: Runtime) -> None:
    made.running()
    runtime.ok("pause", made.name)
    runtime.ok("kill", made.name, "KILL")
    made.wait()
    assert made.status == "stopped"


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.mark.root("control groups")
@pytest.mark.skipif(not MEMORY.exists(), reason="this host has no memory controller of version 1")
def test_update(made: Made, runtime: Runtime, tmp_path: Path) -> None:
    made.running()
    limit = MEMORY / made.name / "memory.limit_in_bytes"
    runtime.ok("update", "--memory", str(64 << 20), "--pids-limit", "33", made.name)
    assert limit.read_text() == f"{64 << 20}\n"
    file = tmp_path / "resources.json"
    file.write_text(json.dumps({"memory": {"limit": 32 << 20}, "cpu": {"shares": 512}}))
    runtime.ok("update", "--resources", file, made.name)
    assert limit.read_text() == f"{32 << 20}\n"
    runtime.ok("update", "--resources=-", made.name, input='{"memory": {"limit": 50331648}}')
    assert limit.read_text() == "50331648\n"
    line = runtime.error("update", "--memory", "1G", made.name)
    assert line == "--memory: '1G' is no whole number"
    line = runtime.error("update", "--cpuset-cpus", "77", made.name)
    assert line.startswith("resources.cpu.cpus: 77 cannot be written")


@pytest.mark.root("control groups")
def test_statistics(made: Made, runtime: Runtime) -> None:
    made.running()
    event = json.loads(runtime.ok("events", "--stats", made.name))
    assert (event["type"], event["id"]) == ("stats", made.name)
    assert event["data"]["pids"]["current"] == 1
    assert event["data"]["memory"]["usage"]["usage"] > 0
    assert event["data"]["cpu"]["usage"]["total"] > 0


@pytest.mark.root("control groups")
def test_events_tell_of_the_kernels_killing(made: Made, runtime: Runtime) -> None:
    made.bundle.linux["resources"]["memory"] = {"limit": 16 << 20}
    made.running(
        "while ! test -e /tmp/go; do sleep 0.05; done; sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'; true"
    )
    command = [*runtime.command, "--root", str(runtime.root), "events", "--interval", "50ms", made.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout
        assert json.loads(events.stdout.readline())["type"] == "stats"
        (made.bundle.rootfs / "tmp/go").touch()
        kinds = {json.loads(line)["type"] for line in events.stdout}
        assert events.wait(30) == 0
    assert kinds >= {"oom"}


# spec, features, checkpoint, the command line


@pytest.mark.root("namespaces without a user namespace")
def test_spec_makes_a_bundle_that_runs(runtime: Runtime, bundle: Bundle) -> None:
    runtime.ok("spec", "-b", bundle.directory)
    config = json.loads((bundle.directory / "config.json").read_text())
    assert config["ociVersion"] == "1.2.1"
    line = runtime.error("spec", "-b", bundle.directory)
    assert line == f"{bundle.directory}/config.json exists; remove it first"
    bundle.config = config
    config["process"] |= {"terminal": False, "args": ["sh", "-c", "id -u; touch /x"]}
    config["root"]["path"] = str(bundle.rootfs)
    done = runtime.run(bundle)
    assert done.stdout == "0\n"
    assert "Read-only file system" in done.stderr


def test_features(runtime: Runtime) -> None:
    shown = json.loads(runtime.ok("features"))
    assert (shown["ociVersionMin"], shown["ociVersionMax"]) == ("1.0.0", "1.2.1")
    assert set(shown["linux"]["namespaces"]) == {"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"}
    assert "rbind" in shown["mountOptions"]
    assert "CAP_SYS_ADMIN" in shown["linux"]["capabilities"]
    assert shown["linux"]["seccomp"]["enabled"] is True


def test_checkpoint_is_refused_clearly(made: Made, runtime: Runtime) -> None:
    made.running()
    line = runtime.error("checkpoint", "--image-path", "/tmp/x", made.name)
    assert line == "checkpoint and restore are not supported: kvmpy-oci does not use CRIU"


def test_version(runtime: Runtime) -> None:
    first, second, third = runtime.ok("--version").splitlines()
    assert first == f"kvmpy-oci version {kvmpy.__version__}"
    assert second.startswith("commit: ")
    assert third == "spec: 1.2.1"


def test_help(runtime: Runtime) -> None:
    shown = runtime.ok("--help")
    for verb in ("create", "start", "kill", "delete", "exec", "checkpoint"):
        assert f"\n  {verb} " in shown
    assert runtime.ok() == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no verb 'fly'; there are create, start, run, "),
        (["create"], "usage: kvmpy-oci create [OPTION]... ID"),
        (["create", "a", "b"], "usage: kvmpy-oci create [OPTION]... ID"),
        (["create", "--color", "a"], "no option '--color'; see kvmpy-oci --help"),
        (["create", "a", "--bundle"], "--bundle needs a value: DIR"),
        (["--systemd-cgroup", "list"], "systemd does not make control groups for kvmpy-oci"),
        (["create", "--preserve-fds", "many", "a"], "--preserve-fds: 'many' is no number"),
    ],
)
def test_usage(runtime: Runtime, arguments: list[str], message: str) -> None:
    assert runtime.error(*arguments).startswith(message)


def test_the_log_is_one_json_line(runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log"
    runtime("--log", log, "--log-format", "json", "state", "nobody")
    (line,) = log.read_text().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["msg"]) == ("error", "container nobody does not exist")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", entry["time"])
    assert set(entry) == {"level", "msg", "time"}


def test_the_log_as_text(runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log"
    runtime(f"--log={log}", "state", "nobody")
    assert re.fullmatch(r'time="[^"]+" level=error msg="container nobody does not exist"\n', log.read_text())


def test_an_empty_environment_is_enough(made: Made, runtime: Runtime) -> None:
    command = [*runtime.command, "--root", str(runtime.root)]
    done = subprocess.run(
        [*command, "create", "-b", made.bundle.save(), made.name],
        env={},
        timeout=30,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    for arguments in (["start", made.name], ["delete", "--force", made.name]):
        assert subprocess.run([*command, *arguments], env={}, timeout=30).returncode == 0


def test_closed_standard_descriptors(bundle: Bundle, runtime: Runtime) -> None:
    """Nothing of the runtime's takes their place."""
    closed = Runtime(("bash", "-c", 'exec "$@" <&- 3>&1 >&- 1>&3', "sh", *runtime.command), runtime.root)
    bundle.sh("readlink /proc/self/fd/0; ls /proc/self/fd")
    assert closed.run(bundle).stdout.split() == ["/dev/null", "0", "1", "2", "3"]


def test_ignored_signals_do_not_reach_the_container(made: Made, runtime: Runtime) -> None:
    """Python ignores SIGPIPE; a container whose programs do would hang at the end of a pipe."""
    made.bundle.sh("grep SigIgn /proc/self/status")
    done = runtime.run(made.bundle)
    assert int(done.stdout.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_the_state_directory_is_closed_to_others(made: Made, runtime: Runtime) -> None:
    made.create()
    assert stat.S_IMODE((runtime.root / made.name).stat().st_mode) == 0o700


def test_a_read_only_state_directory(bundle: Bundle, tmp_path: Path) -> None:
    for root in ("/proc", "/proc/a/b", "/proc/version/x"):
        line = Runtime(IN_PYTHON, Path(root)).error("create", "-b", bundle.save(), "x")
        assert line.startswith(f"{root}/x cannot be made: no")


@pytest.mark.root("namespaces without a user namespace")
def test_a_full_state_directory(bundle: Bundle, tmp_path: Path, unchanged_host: None) -> None:
    """On a filesystem of one page; in a mount namespace of the test's own."""
    inner = 'mkdir -p "$0" && mount -t tmpfs -o size=4k,nr_inodes=4 none "$0" && exec "$@"'
    root = tmp_path / "root"
    full = Runtime(("unshare", "-m", "sh", "-c", inner, str(root), *IN_PYTHON), root)
    line = full.error("create", "-b", bundle.save(), "x")
    assert line == f"{root}/x cannot be filled: no space left on device"


@pytest.mark.root("namespaces without a user namespace")
def test_start_and_delete_play_their_tapes(bundle: Bundle, tmp_path: Path, unchanged_host: None) -> None:
    """With a Python that cannot start, the launcher does both all the same."""
    runtime = Runtime((LAUNCHER,), tmp_path / "root")
    made = Made(runtime, bundle)
    made.create("true")
    without = (
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs none "$0" && exec "$@"',
        str(Path(IN_PYTHON[3]).parent / "verbs"),
    )
    alone = Runtime((*without, LAUNCHER), runtime.root)
    alone.ok("start", made.name)
    made.wait()
    alone.ok("delete", "--force", made.name)
    assert "No module named 'kvmpy.container.verbs" in alone("delete", "nobody").stderr


@pytest.mark.root("the ids of others")
@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o600), (0, 0o620), (0, 0o602)])
def test_a_tape_that_others_could_have_written_is_not_played(
    bundle: Bundle, tmp_path: Path, unchanged_host: None, owner: int, mode: int
) -> None:
    runtime = Runtime((LAUNCHER,), tmp_path / "root")
    made = Made(runtime, bundle)
    made.create("true")
    tape = runtime.root / made.name / "start.tape"
    tape.write_bytes(bytes(64))  # it would do nothing, and be done
    os.chown(tape, owner, 0)
    tape.chmod(mode)
    made.start()
    made.wait()
    runtime.ok("delete", made.name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two others")
def test_a_state_directory_of_somebody_elses(tmp_path: Path) -> None:
    """Without root and XDG_RUNTIME_DIR it is in /tmp, where everybody may make one of that name."""
    directory = Path("/tmp/kvmpy-oci-65533")
    directory.mkdir()
    try:
        command = ["setpriv", "--reuid=65533", "--clear-groups", "/usr/bin/python3", "-I", "-S", IN_PYTHON[3], "list"]
        done = subprocess.run(
            command, env={"PATH": os.environ["PATH"]}, cwd="/", capture_output=True, text=True, timeout=30
        )
        if "can't open file" in done.stderr:
            pytest.skip("an ordinary user cannot read this checkout")
        assert done.stderr == f"kvmpy-oci: {directory} is not ours alone; set XDG_RUNTIME_DIR, or give --root\n"
        assert done.returncode == 1
    finally:
        directory.rmdir()


def test_hooks_take_no_shortcut(bundle: Bundle, tmp_path: Path, unchanged_host: None) -> None:
    runtime = Runtime((LAUNCHER,), tmp_path / "root")
    made = Made(runtime, bundle)
    log = tmp_path / "log"
    say = {"path": "/bin/sh", "args": ["sh", "-c", f"echo x >> {log}"]}
    bundle.config["hooks"] = {"poststart": [say], "poststop": [say]}
    made.create("true")
    made.start()
    made.wait()
    runtime.ok("delete", made.name)
    assert log.read_text() == "x\nx\n"


# How the launcher gets to Python


def copied_runtime(directory: Path) -> Path:
    """Copy the package's part that the runtime is, and build it there; return its folder."""
    package = Path(LAUNCHER).parents[2]
    shutil.copytree(package / "container", directory / "kvmpy/container", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "errors.py"):
        shutil.copy2(package / name, directory / "kvmpy" / name)
    build_all = runpy.run_path(str(package.parent / "tools/build_stage.py"))["build_all"]
    build_all(directory, directory / "kvmpy/container/native", True)
    return directory / "kvmpy/container"


def imported_from_files(container: Path, *command: str) -> set[str]:
    """Run the launcher; return which modules did not come from the archive: their compiled files are there."""
    launcher = str(container / "native/kvmpy-oci")
    done = subprocess.run([launcher, *command], capture_output=True, timeout=30)
    assert (
        done.stdout.startswith(b"kvmpy-oci version") or done.stderr == b"kvmpy-oci: container nobody does not exist\n"
    )
    return {path.name.split(".")[0] for path in container.rglob("__pycache__/*.pyc")}


VERSION = ["--version"]  # its modules are looked for in the archive one by one
STATE = ["--root", "/nowhere", "state", "nobody"]  # all that this verb imports is taken at once


@pytest.mark.parametrize("command", [VERSION, STATE])
def test_the_launcher_takes_the_modules_of_the_archive(tmp_path: Path, command: list[str]) -> None:
    assert imported_from_files(copied_runtime(tmp_path), *command) == set()


@pytest.mark.parametrize("command", [VERSION, STATE])
def test_an_edited_module_comes_from_its_file(tmp_path: Path, command: list[str]) -> None:
    container = copied_runtime(tmp_path)
    with (container / "host.py").open("a") as file:
        file.write("# edited\n")
    assert imported_from_files(container, *command) == {"host"}


@pytest.mark.parametrize("content", [None, b"", b"another version of Python"])
def test_an_archive_that_is_no_use_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    container = copied_runtime(tmp_path)
    program = container / "native/main"
    program.unlink()
    if content is not None:
        program.write_bytes(content)
    assert {"host", "command_line", "state"} <= imported_from_files(container, *VERSION)


@pytest.mark.calls("strace")
@pytest.mark.parametrize("verb", ["create", "start", "delete"])
def test_the_archive_knows_all_that_a_verb_imports(tmp_path: Path, verb: str) -> None:
    native = copied_runtime(tmp_path) / "native"
    watched = ["strace", "-f", "-e", "trace=openat,open", str(native / "kvmpy-oci"), "--root", "/nowhere"]
    done = subprocess.run([*watched, verb, "nobody"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(f'"{native}/modules"') == 1
