"""Containers from Python, in a process that makes many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from container.oci import IN_PYTHON, Bundle, Runtime
from interrupting import POLL, interrupted_in

from kvmpy.container import Container, Wish
from kvmpy.container.api import delete_invented
from kvmpy.container.process import bury_inside, children, pid_namespace
from kvmpy.container.simple import configuration
from kvmpy.container.verbs.create import Extras
from kvmpy.container.verbs.exec import execute
from kvmpy.errors import ContainerError, DeadlineError

pytestmark = pytest.mark.usefixtures("unchanged_host")


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


def wish(rootfs: Path, script: str = "exec sleep 1000", **more: object) -> Wish:
    return Wish(str(rootfs), ["sh", "-c", script], **more)  # type: ignore[arg-type]


def test_a_life(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs, "exit 7"), root=root) as box:
        assert box.status == "created"
        assert box.pid > 0
        box.start()
        assert box.wait(30) == 7
        assert box.status == "stopped"
        assert box.pid == 0
        assert box.wait() == 7
    with pytest.raises(ContainerError, match="does not exist"):
        Container.find(box.name, root)


@pytest.mark.root("the ids of others")
def test_exec_captures_what_is_written(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs), root=root) as box:
        box.start()
        done = box.exec(["sh", "-c", "cat; echo wrong >&2; exit 3"], input=b"given")
        assert (done.code, done.stdout, done.stderr) == (3, b"given", b"wrong\n")
        done = box.exec(["sh", "-c", "pwd; id -u; id -g; echo $A"], env=["A=b"], cwd="/tmp", user=(5, 6))
        assert done.stdout.split() == [b"/tmp", b"5", b"6", b"b"]
        big = box.exec(["sh", "-c", "head -c 300000 /dev/zero"])
        assert len(big.stdout) == 300000


@pytest.mark.root("control groups")
def test_exec_has_its_time(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs), root=root) as box:
        box.start()
        with pytest.raises(DeadlineError, match=r"sleep in container .* still runs after 0.2 s"):
            box.exec(["sleep", "1000"], timeout=0.2)
        assert box.pids() == [box.pid]


def test_an_interrupted_exec_leaves_no_process(rootfs: Path, root: str) -> None:
    before = children()
    with Container.from_wish(wish(rootfs), root=root) as box:
        box.start()
        with interrupted_in(POLL), pytest.raises(KeyboardInterrupt):
            box.exec(["sleep", "1000"], timeout=60)
        assert set(children()) == {*before, box.pid}
    assert children() == before


def test_what_an_exec_has_lost_does_not_hold_up_the_end(rootfs: Path, root: str) -> None:
    """Process 1 of a pid namespace ends after all others in it, and a child of ours is there until we take note."""
    before = children()
    with Container.from_wish(wish(rootfs), root=root) as box:
        box.start()
        process = box._state.config()["process"] | {"args": ["sleep", "1000"]}
        lost = execute(box._state, process, Extras(), root)
        assert set(children()) == {*before, box.pid, lost}
        while not pid_namespace(lost):  # an ordinary user may not look at it before it is the program
            os.sched_yield()
        assert pid_namespace(lost) == pid_namespace(box.pid) != pid_namespace(os.getpid())
    assert children() == before


def test_a_signal_while_it_is_deleted_is_heard_when_it_is_gone(rootfs: Path, root: str) -> None:
    """A hook sends it, and has it when nothing is removed yet but the process."""
    config = configuration(wish(rootfs))
    config["hooks"] = {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -INT $PPID"]}]}
    box = Container.from_config(config, root=root)
    with pytest.raises(KeyboardInterrupt):
        box.delete()
    with pytest.raises(ContainerError, match="does not exist"):
        Container.find(box.name, root)


def test_children_that_are_not_in_the_container_are_left_to_who_made_them(rootfs: Path, root: str) -> None:
    ours = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, ours, os.WEXITED | os.WNOWAIT)
    with Container.from_wish(wish(rootfs), root=root) as box:
        bury_inside(pid_namespace(box.pid))
        bury_inside(pid_namespace(os.getpid()))
        bury_inside("")
    assert os.waitpid(ours, 0) == (ours, 0)


CUT_OFF = {
    "a state that is still to be written": ("kvmpy.container.state.replace_file", "create"),
    "one whose configuration is still to be kept": ("kvmpy.container.state.write_file", "create"),
    "one that is on its way to a variable": ("kvmpy.container.api.Container.__init__", "create"),
    "one that is half deleted": ("kvmpy.container.state.remove", "delete"),
}


@pytest.mark.parametrize(("place", "when"), CUT_OFF.values(), ids=CUT_OFF)
def test_what_a_signal_cut_off_is_deleted(
    rootfs: Path, root: str, place: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def work(patch: pytest.MonkeyPatch) -> None:
        if when == "create":
            patch.setattr(place, interrupted)
        box = Container.from_wish(wish(rootfs), root=root)
        box.start()
        patch.setattr(place, interrupted)
        box.delete()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        work(patch)
    delete_invented()
    assert [name for name in os.listdir(root) if name.startswith("kvmpy-")] == []
    for child in set(children()) - set(before):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


DELETE_WHAT_IS_BEING_MADE = """
import sys
from kvmpy.container.state import Store
from kvmpy.container.verbs.delete import delete_by_name

store = Store(sys.argv[1])
print(store.new("x", "/", {}, "/", [], None).status())
delete_by_name(store, "x", True, print)
print("alive")
"""


def test_who_deletes_what_it_is_making_itself_lives_on(root: str) -> None:
    """Another process that makes it is killed first."""
    command = [sys.executable, "-c", DELETE_WHAT_IS_BEING_MADE, root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("creating\nalive\n", "", 0)
    assert os.listdir(root) == []


def test_only_what_this_process_named_is_deleted(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs), "mine", root) as named, Container.from_wish(wish(rootfs), root=root) as box:
        delete_invented()
        assert named.status == "created"
        with pytest.raises(ContainerError, match="does not exist"):
            Container.find(box.name, root)


def test_wait_has_its_time(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs), root=root) as box:
        box.start()
        with pytest.raises(DeadlineError, match=r"still runs after 0\.1 s"):
            box.wait(0.1)
        box.kill("KILL")
        assert box.wait(30) == 128 + signal.SIGKILL


def test_exec_of_what_is_not_there(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs), root=root) as box:
        box.start()
        with pytest.raises(ContainerError, match=r'exec: "nothing": executable file not found in \$PATH'):
            box.exec(["nothing"])


@pytest.mark.root("control groups")
def test_limits_pause_and_statistics(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs, memory=32 << 20), root=root) as box:
        box.start()
        assert box.stats()["memory"]["usage"]["limit"] == 32 << 20
        box.update({"memory": {"limit": 48 << 20}})
        assert box.stats()["memory"]["usage"]["limit"] == 48 << 20
        box.pause()
        assert box.status == "paused"
        with pytest.raises(ContainerError, match="cannot exec in a paused container"):
            box.exec(["true"])
        box.resume()
        assert box.exec(["true"]).code == 0


@pytest.mark.root("control groups")
def test_events(rootfs: Path, root: str) -> None:
    with Container.from_wish(wish(rootfs), root=root) as box:
        box.start()
        seen = box.events(interval=0.05)
        kind, data = next(seen)
        assert kind == "stats"
        assert data["pids"]["current"] == 1
        box.kill("KILL")
        assert all(kind == "stats" for kind, _ in seen)


def test_of_a_bundle_and_found_by_the_runtime(bundle: Bundle, root: str) -> None:
    bundle.sh("exec sleep 1000")
    with Container.create(bundle.save(), "mine", root) as box:
        runtime = Runtime(IN_PYTHON, Path(root))
        assert runtime.state("mine")["status"] == "created"
        runtime.ok("start", "mine")
        assert box.status == "running"
        assert Container.find("mine", root).pid == box.pid
        assert box.state["bundle"] == str(bundle.directory)


def test_a_bad_configuration(root: str) -> None:
    with pytest.raises(ContainerError, match=r"^config.ociVersion is missing$"):
        Container.from_config({}, root=root)


def test_a_container_of_another_process(bundle: Bundle, root: str) -> None:
    runtime = Runtime(IN_PYTHON, Path(root))
    bundle.sh("exec sleep 1000")
    runtime("run", "--detach", "-b", bundle.save(), "theirs")
    with Container.find("theirs", root) as box:
        assert box.exec(["echo", "mine"]).stdout == b"mine\n"
        box.kill("KILL")
        with pytest.raises(ContainerError, match=r"is not this process's child|another process was told"):
            box.wait(30)


def test_nothing_is_left_when_the_block_fails(rootfs: Path, root: str) -> None:
    def fails() -> None:
        with Container.from_wish(wish(rootfs), root=root) as box:
            box.start()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert os.listdir(root) in ([], [".seccomp"])


def test_threads_make_containers_side_by_side(rootfs: Path, root: str) -> None:
    """None gets a descriptor of another's: a pipe of it would stay open."""
    before = len(os.listdir("/proc/self/fd"))
    failures: list[BaseException] = []

    def lives() -> None:
        try:
            for _ in range(5):
                with Container.from_wish(wish(rootfs, "ls /proc/self/fd | wc -l; exec sleep 1000"), root=root) as box:
                    box.start()
                    assert box.exec(["sh", "-c", "ls /proc/self/fd | wc -l"]).stdout == b"4\n"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=lives) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_api_is_imported_when_it_is_used() -> None:
    code = "import sys, kvmpy.container; print('kvmpy.container.api' in sys.modules); kvmpy.container.Container"
    code += "; print('kvmpy.container.api' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["False", "True"]
