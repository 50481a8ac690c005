"""The demos of namespaces and containers tell the truth, as root and as an ordinary user; and leave nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import AS_NOBODY
from stories import tell

from kvmpy.demos.host import apart
from kvmpy.errors import HostError

needs_root = pytest.mark.root("limits; and to become another user")
CONTAINERS = ["namespaces", "chroot", "limits", "layers", "from-nothing", "side-by-side"]


@pytest.fixture(autouse=True)
def _unchanged_host(unchanged_host: None) -> Iterator[None]:
    """A demo changes neither the host nor the names of this process."""
    name = os.uname().nodename
    yield
    assert os.uname().nodename == name


@needs_root
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_claim_holds_and_nothing_is_missing(name: str) -> None:
    story = tell(name)
    assert (story.fails, story.missing) == ([], [])
    assert len(story.holds) >= 3
    assert story.whys


@needs_root
@pytest.mark.calls("setpriv")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, 0) for name in ("trap", "modes", "paging", "interrupts", "device", "two-guests")),
        ("namespaces", 0), ("chroot", 0), ("layers", 0), ("limits", 69), ("from-nothing", 0), ("side-by-side", 0),
    ],
)  # fmt: skip
def test_an_ordinary_user_sees_what_needs_no_root(name: str, code: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:  # pytest's own are its user's alone
        folder.chmod(0o755)
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [*AS_NOBODY, sys.executable, "-m", "kvmpy", "demo", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("need root" in done.stdout) == (code == 69)
    assert "✗" not in done.stdout
    assert (done.stdout.count("✓") >= 3) == (code == 0)
    assert not list(tmp_path.glob("kvmpy-demo-*"))


def test_namespaces_shows_all_eight() -> None:
    steps = tell("namespaces").steps
    assert [step.partition(":")[0] for step in steps] == [
        "UTS", "PID", "Mount", "Network", "IPC", "User", "Cgroup", "Time",
    ]  # fmt: skip


@needs_root
def test_limits_shows_the_kernels_own_numbers() -> None:
    """32 MiB and SIGKILL; 6 processes less the first and the one that forks; 20 percent of a second."""
    saw = " ".join(tell("limits").saw)
    assert "ended with code 137" in saw
    assert "it got 4, then fork(2) failed: Resource temporarily unavailable" in saw
    used = re.search(r"it had ([\d.]+) s of processor time", saw)
    assert used
    assert 0.05 < float(used[1]) < 0.4


@needs_root
def test_layers_holds_what_differs_and_no_more() -> None:
    """overlayfs.rst: a copy of what was changed, what is new, and a whiteout for what was removed."""
    assert "its layer holds ['etc/doomed', 'etc/greeting', 'etc/new']" in tell("layers").saw


def test_sixty_lines_are_sixty_lines_and_isolate() -> None:
    from kvmpy.demos.from_nothing import SCRIPT

    assert len(SCRIPT.read_text().splitlines()) <= 60
    story = tell("from-nothing")
    assert "capabilities that may come back: 0000000000000000" in story.saw
    assert "host name: sixty-lines" in story.saw


def test_sixty_lines_are_readable_run_again_and_say_how(tmp_path: Path) -> None:
    from kvmpy.demos.from_nothing import SCRIPT

    assert [line for line in SCRIPT.read_text().splitlines() if len(line) > 76] == []
    copy = tmp_path / "copy.py"
    copy.write_text(SCRIPT.read_text())
    (tmp_path / "root").mkdir()
    for number in (1, 2, 3):
        command = [sys.executable, str(copy), str(tmp_path / "root"), "sh", "-c", f"echo $$; exit {number}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (number, "1\n", "")
    done = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr == "A container in sixty lines: python sixty_lines.py DIRECTORY PROGRAM...\n"


def test_a_failure_apart_is_told_with_its_reason() -> None:
    def fail() -> None:
        raise OSError("no such luck")

    with pytest.raises(HostError, match="a new uts namespace: no such luck"):
        apart(fail, "uts")


def test_a_child_that_is_killed_is_told() -> None:
    with pytest.raises(HostError, match="was killed"):
        apart(lambda: os.kill(os.getpid(), 9), "uts")


def test_what_went_wrong_in_the_child_does_not_run_on_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    """An answer that cannot be told: the child ends, and does not come back as a second test process."""
    with pytest.raises(HostError):
        apart(lambda: object(), "uts")
    assert capfd.readouterr().out == ""


IN_USER_NAMESPACE = ("unshare", "--user", "--map-root-user", "sh", "-c")
# What the host does not give: how the demo is started, its name, what it must say, and how many claims still hold.
MISSING = {
    "network namespaces": (
        (*IN_USER_NAMESPACE, 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"', "sh"),
        "namespaces", "a new network namespace", 4,
    ),
    "user namespaces": (
        (*IN_USER_NAMESPACE, 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh"),
        "from-nothing", "the kernel refuses new namespaces", 1,
    ),
    "control groups": (
        ("unshare", "--mount", "sh", "-c", 'umount -R /sys/fs/cgroup; exec "$@"', "sh"),
        "limits", "no container can be made here: ", 0,
    ),
}  # fmt: skip


@needs_root
@pytest.mark.parametrize("what", MISSING)
def test_what_the_host_lacks_is_told_in_one_line(what: str, tmp_path: Path) -> None:
    """The limits are those of a user namespace of the test's own; the mounts are not the host's."""
    prefix, name, told, holds = MISSING[what]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [*prefix, sys.executable, "-m", "kvmpy", "demo", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 69, done.stdout + done.stderr
    missing = [line for line in done.stdout.splitlines() if line.startswith("  - missing: ")]
    assert any(told in line for line in missing), done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("✓") >= holds
    assert list(tmp_path.iterdir()) == []


@needs_root
@pytest.mark.parametrize("name", [*CONTAINERS, "two-guests"])
@pytest.mark.parametrize("step", [1, 2])
def test_it_can_be_interrupted_at_any_step(name: str, step: int, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-u", "-m", "kvmpy", "demo", name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            if line.startswith(f"{step}. "):
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) in (0, 130)  # some steps are over at once
        assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_a_signal_leaves_no_container(tmp_path: Path) -> None:
    """SIGTERM while a hundred containers are made."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "kvmpy", "demo", "layers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("2. "):
                break
        process.terminate()
        process.stdout.read()
        assert process.wait(60) == 143
    assert list(tmp_path.iterdir()) == []
