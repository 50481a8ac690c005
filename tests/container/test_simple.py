"""`kvmpy container run`: what a person sees inside, and what is left outside."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import DEADLINE, KVMPY, Console, kvmpy, one_line
from container.conftest import NOBODY
from container.oci import leave, on_terminal

from kvmpy.container.simple import WITHOUT_ROOT, Wish, configuration, find_user
from kvmpy.errors import ContainerError

pytestmark = pytest.mark.usefixtures("unchanged_host")
ROOT = Path(__file__).parents[2]
KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


NOTE = b"" if os.geteuid() == 0 else b"kvmpy: " + WITHOUT_ROOT.encode() + b"\n"


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a container to its end; what an ordinary user is told each time is not in the standard error returned."""
    done = kvmpy("container", "run", *map(str, arguments), **options)  # type: ignore[arg-type]
    done.stderr = done.stderr.removeprefix(NOTE)
    return done


def output(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.stderr == b""
    assert done.returncode == 0
    return done.stdout.decode().strip()


def own_namespace(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")


def test_every_namespace_is_new(rootfs: Path) -> None:
    seen = output(rootfs, "--", "sh", "-c", "for n in /proc/self/ns/*; do readlink $n; done").split()
    for kind in KINDS:
        assert own_namespace(kind) not in seen
        assert any(name.startswith(f"{kind}:") for name in seen)


@pytest.mark.root("namespaces without a user namespace")
@pytest.mark.parametrize("kind", ["cgroup", "ipc", "net", "pid", "time", "user", "uts"])
def test_a_namespace_can_be_shared(rootfs: Path, kind: str) -> None:
    seen = output("--share", kind, rootfs, "--", "sh", "-c", "for n in /proc/self/ns/*; do readlink $n; done").split()
    assert own_namespace(kind) in seen
    assert own_namespace("mnt") not in seen


def test_the_program_is_alone(rootfs: Path) -> None:
    assert output(rootfs, "--", "sh", "-c", "echo /proc/[0-9]* $$") == "/proc/1 1"


def test_the_root_is_the_directory(rootfs: Path) -> None:
    (rootfs / "mark").write_text("here")
    assert output(rootfs, "--", "cat", "/mark") == "here"
    assert output(rootfs, "--", "ls", "-a", "/../..").split() == output(rootfs, "--", "ls", "-a", "/").split()


def test_devices_are_the_default_ones_and_work(rootfs: Path) -> None:
    script = "head -c 4 /dev/zero | wc -c; echo lost > /dev/null; head -c 3 /dev/urandom | wc -c; ls /dev"
    first, second, *names = output(rootfs, "--", "sh", "-c", script).split()
    assert (first, second) == ("4", "3")
    expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert names == expected.split()


def test_lo_is_the_only_interface_and_up(rootfs: Path) -> None:
    """Its flags are IFF_UP and IFF_LOOPBACK (netdevice(7))."""
    assert output(rootfs, "--", "sh", "-c", "cd /sys/class/net; echo *; cat lo/flags").split() == ["lo", "0x9"]


def test_proc_and_sys_protect_the_host(rootfs: Path) -> None:
    script = "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname || echo refused"
    done = run(rootfs, "--", "sh", "-c", script)
    assert done.stdout.split() == [b"0", b"0", b"refused"]
    assert b"Read-only file system" in done.stderr


@pytest.mark.root("the ids of others")
def test_host_name_environment_directory_and_user(rootfs: Path) -> None:
    options = ("--hostname", "box", "-e", "A=b c", "-w", "/tmp", "-u", "ann:staff")
    script = "hostname; echo $A $HOME; pwd; id -u; id -g; grep CapEff /proc/self/status"
    seen = output(*options, rootfs, "--", "sh", "-c", script).splitlines()
    assert seen == ["box", "b c /home/ann", "/tmp", "1000", "50", "CapEff:\t0000000000000000"]


def test_a_working_directory_is_made(rootfs: Path) -> None:
    assert output("-w", "/a/b", rootfs, "--", "pwd") == "/a/b"


def test_without_a_command_there_is_a_shell(rootfs: Path) -> None:
    done = run(rootfs, input=b"echo from $0\nexit 4\n")
    assert (done.stdout, done.returncode) == (b"from sh\n", 4)


@pytest.mark.parametrize(("program", "code"), [("exit 7", 7), ("kill -9 $$; sleep 9", 0), ("true", 0)])
def test_the_exit_code_is_the_programs(rootfs: Path, program: str, code: int) -> None:
    """The first process of a pid namespace cannot kill itself: it goes on, and here sleeps in vain."""
    assert run(rootfs, "--", "sh", "-c", program.replace("sleep 9", "exit 0")).returncode == code


def test_a_program_that_is_killed_is_128_and_the_signal(rootfs: Path) -> None:
    assert run("--share", "pid", rootfs, "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_a_missing_program_is_127_and_one_that_cannot_run_126(rootfs: Path) -> None:
    (rootfs / "bin/text").write_text("no program")
    missing, refused = run(rootfs, "--", "nothing"), run(rootfs, "--", "/bin/text")
    folder = run(rootfs, "--", "/bin")
    assert (missing.returncode, refused.returncode, folder.returncode) == (127, 126, 126)
    assert one_line(missing.stderr) == 'kvmpy: exec: "nothing": executable file not found in $PATH\n'
    assert one_line(refused.stderr) == 'kvmpy: exec: "/bin/text": permission denied\n'


def memory_limit() -> str:
    return "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"


@pytest.mark.root("control groups")
def test_memory_is_limited(rootfs: Path) -> None:
    assert output("--memory", "32M", rootfs, "--", "sh", "-c", memory_limit()) == str(32 << 20)


@pytest.mark.root("control groups")
def test_a_program_that_takes_more_memory_is_killed(rootfs: Path) -> None:
    script = "x=0123456789abcdef; while :; do x=$x$x; done"
    done = run("--memory", "16M", rootfs, "--", "sh", "-c", f'sh -c "{script.replace("$", chr(92) + "$")}"; echo $?')
    assert done.stdout == b"137\n"


@pytest.mark.root("control groups")
def test_processes_are_limited(rootfs: Path) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait"
    done = run("--pids", "4", rootfs, "--", "sh", "-c", f"({script}) 2>&1 | grep -c fork; kill -9 -1; true")
    assert int(done.stdout) >= 1


@pytest.mark.root("control groups")
def test_processor_time_is_limited(rootfs: Path) -> None:
    script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max"
    assert output("--cpus", "0.5", rootfs, "--", "sh", "-c", script) == "50000"


def test_a_read_only_root(rootfs: Path) -> None:
    done = run("--read-only", rootfs, "--", "touch", "/new")
    assert b"Read-only file system" in done.stderr
    assert done.returncode == 1
    assert not (rootfs / "new").exists()


def test_volumes(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host")
    script = "cat /data/in /file; echo back > /data/out; touch /fixed/x"
    volumes = (
        "--volume",
        f"{tmp_path}:/data",
        "--volume",
        f"{tmp_path}/in:/file:ro",
        "--volume",
        f"{tmp_path}:/fixed:ro",
    )
    done = run(*volumes, rootfs, "--", "sh", "-c", script)
    assert done.stdout == b"from the host" * 2
    assert b"Read-only file system" in done.stderr
    assert (tmp_path / "out").read_text() == "back\n"


def test_an_overlay_leaves_the_directory_as_it_is(rootfs: Path) -> None:
    before = sorted(path.name for path in rootfs.iterdir())
    assert output("--overlay", rootfs, "--", "sh", "-c", "echo new > /new; rm /etc/group; cat /new") == "new"
    assert sorted(path.name for path in rootfs.iterdir()) == before
    assert (rootfs / "etc/group").exists()


def test_an_overlay_keeps_what_is_written(rootfs: Path, tmp_path: Path) -> None:
    layer = tmp_path / "a:b,c"  # it is made, and nobody else looks into it
    output("--layer", layer, rootfs, "--", "sh", "-c", "echo new > /new")
    assert (layer / "upper/new").read_text() == "new\n"
    assert output("--layer", layer, rootfs, "--", "cat", "/new") == "new"
    assert not (rootfs / "new").exists()
    assert stat.S_IMODE(layer.stat().st_mode) == 0o700


def test_a_terminal(rootfs: Path) -> None:
    command = [*KVMPY, "container", "run", "-it", str(rootfs)]
    with on_terminal(command, dimensions=(33, 99)) as shell:
        shell.sendline("tty; stty size; ls -l /dev/console | cut -c1; echo $TERM > /dev/tty")
        shell.expect("/dev/pts/0\r\n33 99\r\nc\r\n")
        shell.expect("# ")
        shell.setwinsize(12, 34)
        shell.sendline("sleep 0; stty size")
        shell.expect("12 34\r\n")
        leave(shell, 6)


def test_ctrl_c_reaches_the_program_in_the_terminal(rootfs: Path) -> None:
    with on_terminal([*KVMPY, "container", "run", "-it", str(rootfs)]) as shell:
        # A program that prints is in the foreground for sure; the shell alone may still be about to start it.
        shell.sendline("sh -c \"echo s''leeping; exec sleep 1000\"")
        shell.expect("sleeping")
        shell.sendcontrol("c")
        shell.expect("# ")
        leave(shell, 3)


def test_signals_are_passed_on(rootfs: Path) -> None:
    script = 'trap "echo caught; exit 9" TERM; echo ready; while :; do sleep 0.1; done'
    with Console(*KVMPY, "container", "run", str(rootfs), "--", "sh", "-c", script) as console:
        console.read_until("ready\n")
        console.process.send_signal(signal.SIGTERM)
        assert console.finish() == (b"caught\n", NOTE, 9)


def program_of(console: Console) -> str:
    """Return the name of the container's first process, or nothing while there is none."""
    pid = console.process.pid
    with contextlib.suppress(OSError):  # the first child is the stage, which forks and ends
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            return Path(f"/proc/{child}/comm").read_text().strip()
    return ""


def test_a_program_that_does_not_catch_a_signal_ends(rootfs: Path) -> None:
    """As process 1 of its namespace it would not even notice."""
    with Console(*KVMPY, "container", "run", str(rootfs), "--", "sleep", "1000") as console:
        end = time.monotonic() + DEADLINE
        while program_of(console) != "sleep" and time.monotonic() < end:
            os.sched_yield()
        console.process.send_signal(signal.SIGINT)
        assert console.finish() == (b"", NOTE, 130)


def test_dry_run_lists_the_container(rootfs: Path) -> None:
    shown = output("--dry-run", "--read-only", rootfs, "--", "true").splitlines()
    steps = [line.split(None, 1)[1] for line in shown]
    order = [
        "start a process in new",
        "join the control groups" if os.geteuid() == 0 else "see no control groups above one's own",
        "take /",
        "mount proc",
        "pivot",
        "hide /proc/acpi",
        "make the root read-only",
        "gain no",
        "close all",
        "become user 0",
        "find true",
        "wait for",
        "execute true",
    ]
    places = [next(n for n, step in enumerate(steps) if step.startswith(wanted)) for wanted in order]
    assert places == sorted(places)
    assert not (rootfs / "proc").exists()


def test_dry_run_shows_the_system_calls(rootfs: Path) -> None:
    shown = output("--dry-run", "-v", rootfs, "--", "true")
    assert "CLONE_NEWUSER|CLONE_NEWIPC|CLONE_NEWUTS|CLONE_NEWNET|CLONE_NEWPID|CLONE_NEWTIME|CLONE_NEWNS" in shown
    assert 'pivot_root(".", ".")' in shown
    assert 'execve("/bin/true", argv, environment)' in shown
    assert not (rootfs / "proc").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "mount"], "--share: 'mount' cannot be shared; there are cgroup, ipc, net, pid, time, user, uts"),
        (["--share", "nets"], "--share: 'nets' cannot be shared"),
        (["--user", "bob"], "--user: there is no user 'bob' in the container's /etc/passwd"),
        (["--user", "0:wheel"], "--user: there is no group 'wheel' in the container's /etc/group"),
        (["--user", "4294967295"], "--user: there is no user '4294967295'"),
        (["--volume", "x"], "--volume: 'x' is not SOURCE:/TARGET"),
        (["--volume", "/nowhere:/x"], "mounts[N].source: /nowhere: no such file or directory"),
        (["--volume", "/:/"], "mounts[N].destination: '/' is the root, which is mounted already"),
        (["--name", "a/b"], "invalid id format: 'a/b'; use letters, digits and _ + . -"),
        (["--layer=/nowhere/layer"], "take an overlay as the root: "),
        (["--layer=/"], "--layer: / and "),
    ],
)
def test_bad_wishes_are_one_line(rootfs: Path, options: list[str], message: str) -> None:
    done = run(*options, rootfs, "--", "true")
    assert re.sub(r"\[\d+\]", "[N]", one_line(done.stderr)).startswith(f"kvmpy: {message}")
    assert done.returncode == 125


@pytest.mark.parametrize("place", [".", "upper", "../around"])
def test_a_layer_lies_beside_the_root(rootfs: Path, place: str) -> None:
    layer = rootfs / place
    if place == "../around":
        layer = rootfs.parent
    assert one_line(run("--layer", layer, rootfs, "--", "true").stderr).endswith("give a directory beside the root\n")
    assert not (rootfs / "work").exists()


@pytest.mark.parametrize("own", ["notes", "work/work", "work/notes", "upper/x work/notes", "upper/x work/work/notes"])
def test_a_layer_is_nobodys_own_directory(rootfs: Path, tmp_path: Path, own: str) -> None:
    """Overlayfs empties work/work; what lies there must be its own."""
    for path in own.split():
        (tmp_path / "layer" / path).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    done = run("--layer", tmp_path / "layer", rootfs, "--", "true")
    assert one_line(done.stderr).endswith("is in it; give a new or an empty directory\n")
    assert (done.returncode, sorted(tmp_path.rglob("*"))) == (125, before)


def test_an_empty_layer_is_wrong_usage(rootfs: Path) -> None:
    done = run("--layer", "", rootfs, "--", "true")
    assert done.returncode == 2
    assert done.stderr.endswith(b"argument --layer: the name is empty\n")


def test_a_missing_root_directory(tmp_path: Path) -> None:
    done = run(tmp_path / "none", "--", "true")
    assert one_line(done.stderr) == f"kvmpy: root.path: {tmp_path}/none: no such file or directory\n"
    assert done.returncode == 125


def test_users_are_those_of_the_container(rootfs: Path) -> None:
    assert find_user(str(rootfs), "ann") == (1000, 1001, "/home/ann")
    assert find_user(str(rootfs), "1000") == (1000, 1001, "/home/ann")
    assert find_user(str(rootfs), "77") == (77, 0, "/")
    assert find_user(str(rootfs), "ann:staff") == (1000, 50, "/home/ann")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/../../../../../../etc/passwd")  # the container's own, which is this link
    with pytest.raises(ContainerError, match="no user 'ann'"):
        find_user(str(rootfs), "ann")


@pytest.mark.root("runc, with the ids of others")
@pytest.mark.calls("runc")
def test_a_configuration_is_one_that_runc_takes(rootfs: Path, tmp_path: Path) -> None:
    """The same configuration runs under another implementation."""
    from kvmpy.container.host import to_json

    config = configuration(Wish(str(rootfs), ["hostname"], hostname="same", share=["time", "user"]))
    (tmp_path / "config.json").write_text(to_json(config))
    done = subprocess.run(
        ["runc", "--root", str(tmp_path / "root"), "run", "-b", str(tmp_path), f"kvmpy-{os.getpid()}"],
        capture_output=True,
        timeout=DEADLINE,
    )
    assert (done.stdout, done.stderr) == (b"same\n", b"")


@pytest.fixture
def as_nobody() -> Iterator[list[str]]:
    """A command line that runs kvmpy as an ordinary user."""
    python = next(
        (path for path in (sys.executable, "/usr/bin/python3") if _nobody_can("-c", "pass", python=path)), None
    )
    if not python or not _nobody_can(
        "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kvmpy", python=python
    ):
        pytest.skip("an ordinary user cannot read this Python or this checkout")
    home = tempfile.mkdtemp()
    os.chown(home, NOBODY, NOBODY)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kvmpy.cli import main; sys.exit(main())"
    try:
        yield ["env", f"XDG_RUNTIME_DIR={home}", python, "-c", code, "container", "run"]
    finally:
        shutil.rmtree(home)


def _nobody_can(*arguments: str, python: str) -> bool:
    try:
        return (
            subprocess.run([python, *arguments], user=NOBODY, group=NOBODY, capture_output=True, cwd="/").returncode
            == 0
        )
    except PermissionError:
        return False


def run_as_nobody(command: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*command, *map(str, arguments)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        timeout=DEADLINE,
    )


def test_without_root(rootfs: Path, as_nobody: list[str]) -> None:
    for path in (rootfs, *rootfs.rglob("*")):
        os.lchown(path, NOBODY, NOBODY)
    script = "id -u; cat /proc/self/uid_map; echo /proc/[0-9]*; head -c 2 /dev/zero | wc -c; hostname"
    done = run_as_nobody(as_nobody, "--overlay", rootfs, "--", "sh", "-c", script)
    assert done.stdout.decode().split() == ["0", "0", str(NOBODY), "1", "/proc/1", "2", "kvmpy"]
    assert one_line(done.stderr) == (
        "kvmpy: without root: only your own user id, and no limits on memory, CPUs or processes\n"
    )
    assert done.returncode == 0


def test_without_root_limits_are_refused(rootfs: Path, as_nobody: list[str]) -> None:
    done = run_as_nobody(as_nobody, "--memory", "32M", "--overlay", rootfs, "--", "true")
    assert one_line(done.stderr) == ("kvmpy: --memory, --cpus and --pids need root: control groups belong to it\n")
    assert done.returncode == 125


def test_an_image_gets_the_directories_that_it_lacks_and_with_an_overlay_stays_as_it_is(tmp_path: Path) -> None:
    """So says README.md."""
    (tmp_path / "image/bin").mkdir(parents=True)
    before = {"bin"}
    for options, after in ((["--overlay"], before), ([], before | {"dev", "proc", "sys"})):
        run(*options, tmp_path / "image", "--", "true")
        assert {path.name for path in (tmp_path / "image").iterdir()} == after


@pytest.mark.parametrize("words", ["echo hi\n", ""])
def test_a_shell_on_a_terminal_ends_with_its_input(rootfs: Path, words: str) -> None:
    """A shell empties its terminal's input as it sets it up (TCSAFLUSH): an end that came before is not lost."""
    for _ in range(3):
        done = subprocess.run(
            [*KVMPY, "container", "run", "-it", rootfs], input=words, text=True, capture_output=True, timeout=DEADLINE
        )
        assert done.returncode == 0
