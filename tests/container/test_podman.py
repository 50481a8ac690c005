"""podman drives kvmpy-oci as it drives runc: every test runs with both, and expects the same of them.

All of it is in a mount and a network namespace of the tests' own, with storage in a directory of theirs: what podman
does to mounts, interfaces and nftables the host does not see.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from container.attacker import ROUNDS, SLOW, seen_while
from container.oci import LAUNCHER, leave, on_terminal

from kvmpy.container.cgroup import find_hierarchies

DEADLINE = 60
PODMAN = shutil.which("podman")
RUNTIMES = {"kvmpy-oci": LAUNCHER, "runc": shutil.which("runc")}
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:8192"]
"""  # a container may ask for no more than this test has

pytestmark = [
    pytest.mark.root("podman's storage and network of its own"),
    pytest.mark.calls("podman", "runc"),
    pytest.mark.usefixtures("unchanged_host"),
]


class Podman:
    """podman with a runtime of the test's choice, in the namespaces of a process that holds them."""

    def __init__(self, holder: int, directory: Path, runtime: str) -> None:
        assert PODMAN
        self.ours = runtime == LAUNCHER
        (directory / "containers.conf").write_text(CONFIGURATION)
        self.command = [
            "nsenter", "-t", str(holder), "-m", "-n",
            "env", f"CONTAINERS_CONF={directory}/containers.conf",
            PODMAN, "--root", str(directory / "root"), "--runroot", str(directory / "run"),
            "--tmpdir", str(directory / "tmp"), "--cgroup-manager", "cgroupfs", "--events-backend", "file",
            "--storage-driver", "vfs", "--runtime", runtime,
        ]  # fmt: skip

    def __call__(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL} if "input" not in options else options
        command = [*self.command, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, **options)  # type: ignore[call-overload,no-any-return]

    def ok(self, *arguments: object, **options: object) -> str:
        done = self(*arguments, **options)
        assert done.stderr == ""
        assert done.returncode == 0
        return done.stdout.strip()


def wait_for_the_others(holder: int) -> None:
    """Wait until the holder is alone in its mount namespace: podman leaves processes behind that clean up."""
    ours = os.readlink(f"/proc/{holder}/ns/mnt")
    end = time.monotonic() + DEADLINE
    others = [0]
    while others and time.monotonic() < end:
        others = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns/mnt") == ours and int(process.name) != holder:
                    others.append(int(process.name))
    assert not others


def remove_groups() -> None:
    """Remove the control groups that podman leaves empty."""
    for hierarchy in find_hierarchies():
        parent = Path(hierarchy.mounted) / "libpod_parent"
        for group in sorted(parent.glob("**/"), reverse=True):
            group.rmdir()


@pytest.fixture(scope="module")
def holder() -> Iterator[int]:
    """A process in a mount and a network namespace; what is mounted there goes with it."""
    script = "umount /sys/fs/cgroup/unified 2>/dev/null; echo; exec sleep 10000"
    with subprocess.Popen(["unshare", "-m", "-n", "sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture(params=RUNTIMES)
def podman(request: pytest.FixtureRequest, holder: int) -> Iterator[Podman]:
    runtime = RUNTIMES[request.param]
    if not runtime:
        pytest.skip(f"no {request.param}")
    storage = Path(tempfile.mkdtemp(prefix="podman-"))  # podman wants a path of at most 50 characters
    made = Podman(holder, storage, runtime)
    try:
        yield made
    finally:
        made("rm", "--all", "--force", "--time", "0")
        wait_for_the_others(holder)
        shutil.rmtree(storage)
        remove_groups()


def arguments(rootfs: Path, *command: str, options: tuple[str, ...] = ()) -> list[str]:
    return ["run", "--network", "none", *options, "--rootfs", str(rootfs), *command]


def test_run(podman: Podman, rootfs: Path) -> None:
    done = podman(*arguments(rootfs, "sh", "-c", "cat; id -u; exit 7", options=("--rm", "-i")), input="typed\n")
    assert (done.stdout, done.stderr, done.returncode) == ("typed\n0\n", "", 7)


def test_what_podman_asks_for_is_there(podman: Podman, rootfs: Path) -> None:
    script = (
        "hostname; cat /proc/self/cgroup | wc -l; grep -c seccomp /proc/self/status; grep Seccomp: /proc/self/status"
    )
    seen = podman.ok(*arguments(rootfs, "sh", "-c", script, options=("--rm", "--hostname", "box"))).split()
    assert seen[0] == "box"
    assert seen[-2:] == ["Seccomp:", "2"]


def test_capabilities_are_podmans(podman: Podman, rootfs: Path) -> None:
    """CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT, by number; older
    ones add NET_RAW, MKNOD and AUDIT_WRITE."""
    seen = podman.ok(*arguments(rootfs, "grep", "Cap", "/proc/self/status", options=("--rm",)))
    sets = {line.split()[0]: int(line.split()[1], 16) for line in seen.splitlines()}
    always = sum(1 << n for n in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))
    assert sets["CapBnd:"] & ~(1 << 13 | 1 << 27 | 1 << 29) == always
    assert sets["CapPrm:"] == sets["CapEff:"] == sets["CapBnd:"]
    assert sets["CapInh:"] == sets["CapAmb:"] == 0


@pytest.mark.parametrize(
    ("program", "code"), [("nothing", 127), ("/bin/nothing", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_exit_codes_of_what_cannot_run(podman: Podman, rootfs: Path, program: str, code: int) -> None:
    assert podman(*arguments(rootfs, program, options=("--rm",))).returncode == code


def test_exit_code_of_what_podman_refuses(podman: Podman, rootfs: Path) -> None:
    assert podman(*arguments(rootfs, "true", options=("--no-such-option",))).returncode == 125


def test_detached_logs_exec_and_stop(podman: Podman, rootfs: Path) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done"
    name = podman.ok(*arguments(rootfs, "sh", "-c", script, options=("-d",)))
    assert podman.ok("exec", name, "echo", "inside") == "inside"
    assert podman("exec", name, "sh", "-c", "exit 5").returncode == 5
    assert podman("exec", name, "nothing").returncode == 127
    assert podman("exec", name, "/etc/passwd").returncode == 126
    seen = podman.ok(
        "exec", "-w", "/tmp", "-e", "A=b", "-u", "1000:1001", name, "sh", "-c", "pwd; echo $A; id -u; id -g"
    )
    assert seen.split() == ["/tmp", "b", "1000", "1001"]
    assert podman.ok("exec", "-i", name, "cat", input="typed") == "typed"
    podman.ok("stop", "--time", "30", name)
    assert podman.ok("wait", name) == "3"
    assert podman.ok("logs", name).split() == ["hello", "bye"]


def test_an_exec_cannot_be_looked_into(podman: Podman, attacked: Path) -> None:
    """With podman's default capabilities and filter: any exec, health check or probe is an opportunity."""
    out = attacked / "out"
    out.touch()
    name = podman.ok(*arguments(attacked, "sh", "-c", "exec snoop > /out", options=("-d",)))
    assert seen_while(attacked, out, lambda: [podman.ok("exec", name, SLOW) for _ in range(ROUNDS)] and None) == []


def test_what_the_kernel_cannot_execute(podman: Podman, rootfs: Path) -> None:
    """runc tells podman of it, and the container is not started; here the container says it itself."""
    (rootfs / "bin/broken").write_text("#!/nowhere\n")
    (rootfs / "bin/broken").chmod(0o755)
    done = podman(*arguments(rootfs, "broken", options=("--rm",)))
    assert done.returncode in ((127,) if podman.ours else (1, 126, 127))
    name = podman.ok(*arguments(rootfs, "sleep", "1000", options=("-d",)))
    entered = podman("exec", name, "broken")
    if podman.ours:
        line = "exec /bin/broken: its interpreter /nowhere is not in the container; add it\n"
        assert done.stderr == entered.stderr == line
        assert entered.returncode == 127


def test_a_program_that_does_not_stop_is_killed(podman: Podman, rootfs: Path) -> None:
    name = podman.ok(*arguments(rootfs, "sleep", "1000", options=("-d",)))
    podman("stop", "--time", "0", name)
    assert podman.ok("wait", name) == "137"


def test_kill_with_a_signal(podman: Podman, rootfs: Path) -> None:
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done"
    name = podman.ok(*arguments(rootfs, "sh", "-c", script, options=("-d",)))
    while "ready" not in podman.ok("logs", name):
        os.sched_yield()
    podman.ok("kill", "--signal", "USR1", name)
    assert podman.ok("wait", name) == "9"


def test_pause_and_unpause(podman: Podman, rootfs: Path) -> None:
    name = podman.ok(*arguments(rootfs, "sleep", "1000", options=("-d",)))
    podman.ok("pause", name)
    assert podman.ok("inspect", "--format", "{{.State.Status}}", name) == "paused"
    podman.ok("unpause", name)
    assert podman.ok("inspect", "--format", "{{.State.Status}}", name) == "running"


def test_limits(podman: Podman, rootfs: Path) -> None:
    options = ("-d", "--memory", "64m", "--pids-limit", "40", "--cpus", "0.5")
    name = podman.ok(*arguments(rootfs, "sleep", "1000", options=options))
    pid = podman.ok("inspect", "--format", "{{.State.Pid}}", name)
    groups = dict(line.split(":")[1:3] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "memory" not in groups:
        pytest.skip("this host has no memory controller of version 1")

    def limit(controller: str, file: str) -> str:
        return Path(f"/sys/fs/cgroup/{controller}{groups[controller]}/{file}").read_text().strip()

    assert limit("memory", "memory.limit_in_bytes") == str(64 << 20)
    assert limit("pids", "pids.max") == "40"
    assert limit("cpu", "cpu.cfs_quota_us") == "50000"
    podman.ok("update", "--memory", "128m", "--cpus", "1", name)
    assert limit("memory", "memory.limit_in_bytes") == str(128 << 20)
    assert limit("cpu", "cpu.cfs_quota_us") == "100000"


def test_a_read_only_root_and_volumes(podman: Podman, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    options = (
        "--rm",
        "--read-only",
        "-v",
        f"{tmp_path}/data:/data",
        "-v",
        f"{tmp_path}/data:/fixed:ro",
        "--tmpfs",
        "/scratch",
    )
    script = "touch /new || echo a; touch /data/x && echo b; touch /fixed/x || echo c; touch /scratch/x && echo d"
    done = podman(*arguments(rootfs, "sh", "-c", script, options=options))
    assert done.stdout.split() == ["a", "b", "c", "d"]
    assert (tmp_path / "data/x").exists()


def test_capabilities_user_and_security_options(podman: Podman, rootfs: Path, tmp_path: Path) -> None:
    profile = tmp_path / "seccomp.json"
    refuse = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refuse]}))
    options = ("--rm", "--cap-drop", "all", "--cap-add", "kill", "--security-opt", f"seccomp={profile}")
    done = podman(*arguments(rootfs, "sh", "-c", "grep CapBnd /proc/self/status; mkdir /x", options=options))
    assert done.stdout.split() == ["CapBnd:", f"{1 << 5:016x}"]
    assert "No space left" in done.stderr
    options = ("--rm", "--user", "1000:1001", "--security-opt", "no-new-privileges")
    script = "id -u; id -g; grep -e CapEff -e NoNew /proc/self/status"
    seen = podman.ok(*arguments(rootfs, "sh", "-c", script, options=options)).split()
    assert seen == ["1000", "1001", "CapEff:", "0" * 16, "NoNewPrivs:", "1"]


def test_a_terminal(podman: Podman, rootfs: Path) -> None:
    command = [*podman.command, *arguments(rootfs, "sh", options=("--rm", "-it"))]
    with on_terminal(command, dimensions=(30, 90)) as shell:
        shell.sendline("tty; stty size")
        shell.expect("/dev/pts/0\r\n30 90\r\n")
        leave(shell, 6)


def test_exec_with_a_terminal(podman: Podman, rootfs: Path) -> None:
    name = podman.ok(*arguments(rootfs, "sleep", "1000", options=("-d",)))
    command = [*podman.command, "exec", "-it", name, "sh"]
    with on_terminal(command) as shell:
        shell.sendline("tty")
        shell.expect("/dev/pts/0\r\n")
        leave(shell, 4)


def test_a_pod_of_shared_namespaces(podman: Podman, rootfs: Path) -> None:
    first = podman.ok(*arguments(rootfs, "sleep", "1000", options=("-d", "--ipc", "shareable")))
    options = ("--rm", "--pid", f"container:{first}", "--ipc", f"container:{first}")
    seen = podman.ok("run", "--network", f"container:{first}", *options, "--rootfs", str(rootfs), "ps")
    assert "sleep 1000" in seen


def test_top_and_stats(podman: Podman, rootfs: Path) -> None:
    name = podman.ok(*arguments(rootfs, "sleep", "1000", options=("-d",)))
    assert "sleep" in podman.ok("top", name, "args")
    (stats,) = json.loads(podman.ok("stats", "--no-stream", "--format", "json", name))
    assert int(stats["pids"]) == 1


def test_a_user_namespace(podman: Podman, rootfs: Path) -> None:
    for path in (rootfs, *rootfs.rglob("*")):
        os.lchown(path, 200000, 200000)
    options = ("--rm", "--uidmap", "0:200000:1000", "--gidmap", "0:200000:1000")
    seen = podman.ok(*arguments(rootfs, "sh", "-c", "id -u; cat /proc/self/uid_map; touch /made", options=options))
    assert seen.split() == ["0", "0", "200000", "1000"]
    assert (rootfs / "made").stat().st_uid == 200000


def test_the_death_of_the_first_process_is_told(podman: Podman, rootfs: Path) -> None:
    name = podman.ok(*arguments(rootfs, "sleep", "1000", options=("-d",)))
    os.kill(int(podman.ok("inspect", "--format", "{{.State.Pid}}", name)), signal.SIGKILL)
    assert podman.ok("wait", name) == "137"
