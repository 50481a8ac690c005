"""What each says of itself is so."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from peers import needs_kvm

from kvmpy.compare import isolation
from kvmpy.compare.subjects import Contained, Process, Subject, Virtual
from kvmpy.errors import HostError

needs_root = pytest.mark.root("control groups, and a container of others' ids")
machines = pytest.mark.parametrize("accelerator", [pytest.param("kvm", marks=needs_kvm), "soft"])


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path)


@pytest.fixture
def container(tmp_path: Path) -> Contained:
    (tmp_path / "bundle").mkdir()
    made = Contained(tmp_path / "bundle")
    if made.missing:
        pytest.skip(made.missing)
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def machine(accelerator: str, stack: ExitStack) -> Virtual:
    made = Virtual(accelerator)
    stack.callback(made.close)
    return made


def test_a_process_sees_what_this_process_sees(process: Process, tmp_path: Path) -> None:
    seen = isolation.look(process, tmp_path)
    assert seen["kernel"] == f"{platform.system()} {platform.release()}"
    assert seen["CPUs"] == str(len(os.sched_getaffinity(0)))
    assert seen["network"] == ", ".join(name for _, name in socket.if_nameindex())
    assert (seen["file"], seen["process"], seen["port"]) == ("yes", "yes", "yes")


def test_a_container_sees_its_own_and_reaches_nothing(container: Contained, tmp_path: Path) -> None:
    seen = isolation.look(container, tmp_path)
    assert seen["kernel"] == f"{platform.system()} {platform.release()}"
    assert seen["processes"] == "2; it is number 2"  # its first, and the one that looks
    assert seen["network"] == "lo"
    assert [seen[name].partition(":")[0] for name in ("file", "process", "port")] == ["no", "no", "no"]


@needs_root
@pytest.mark.calls("runc")
def test_another_runtimes_container_sees_the_same(container: Contained, tmp_path: Path) -> None:
    """The same program in the same root, by runc."""
    from kvmpy.compare.subjects import older
    from kvmpy.container import Wish
    from kvmpy.container.simple import configuration
    from kvmpy.container.small_root import find_python, small_root

    root = tmp_path / "other-root"
    root.mkdir()
    python, volumes = find_python()
    command = [python, "-I", "-S", "-c", isolation.LOOK, "/no/such", "4000000", "1"]
    config = older(configuration(Wish(str(root), command, volumes=small_root(root) + volumes)))
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = f"look-{os.getpid()}"
    done = subprocess.run(["runc", "run", "--bundle", str(tmp_path), name], capture_output=True, timeout=60, check=True)
    theirs, ours = json.loads(done.stdout), isolation.look(container, tmp_path)
    for field in ("kernel", "CPUs", "memory", "network"):
        assert ours[field] == theirs[field], field


@machines
def test_a_guest_sees_what_the_machine_was_given(accelerator: str, stack: ExitStack) -> None:
    seen = isolation.look_from_guest(machine(accelerator, stack))
    assert seen["memory"] == "16 MiB"
    assert seen["CPUs"] == "1"
    assert seen["kernel"].startswith("kvmpy guest kernel")
    assert "uart16550" in seen["devices"]


def test_a_crash_leaves_the_other_process_alone(process: Process, tmp_path: Path) -> None:
    assert isolation.crash_process(process, tmp_path) == "killed by SIGILL; the other goes on"


def test_a_crash_leaves_the_other_container_alone(container: Contained, tmp_path: Path) -> None:
    assert isolation.crash_container(container, tmp_path) == "killed by SIGILL; the other goes on"


@machines
def test_a_crash_leaves_the_other_guest_alone(accelerator: str, stack: ExitStack, tmp_path: Path) -> None:
    """Without an interrupt table #UD becomes a double, then a triple fault (Intel SDM vol. 3, 6.15)."""
    made = machine(accelerator, stack)
    assert isolation.crash_machine(made, tmp_path) == "triple-fault; the other goes on"
    assert isolation.panic(made).startswith("'kernel panic: #UD at ")


def test_one_that_is_missing_says_so(process: Process, tmp_path: Path) -> None:
    process.missing = "out to lunch"
    with pytest.raises(HostError, match="out to lunch"):
        isolation.look(process, tmp_path)
    assert isolation.tried(process, lambda _subject: "it was asked").missing == "out to lunch"


def test_an_attempt_that_fails_is_told(process: Process) -> None:
    def fail(_subject: Subject) -> str:
        raise HostError("no such luck")

    assert isolation.tried(process, fail).missing == "no such luck"
