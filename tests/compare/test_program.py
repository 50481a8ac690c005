"""The programs that are run under each model do what their sources say."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import IoOut
from kvmpy.accel.testbed import Testbed
from kvmpy.compare import program
from kvmpy.compare.process import start_process
from kvmpy.errors import ExecutableError


def ended(path: str) -> int:
    return os.waitpid(os.posix_spawn(path, [path], {}), 0)[1]


def test_true_exits_with_0(tmp_path: Path) -> None:
    assert ended(program.write(tmp_path, "true")) == 0


def test_crash_dies_of_an_undefined_instruction_and_leaves_no_core(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    try:
        status = ended(program.write(tmp_path, "crash"))
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert os.WTERMSIG(status) == signal.SIGILL
    assert not os.WCOREDUMP(status)


def test_wait_waits(tmp_path: Path) -> None:
    path = program.write(tmp_path, "wait")
    pid = os.posix_spawn(path, [path], {})
    try:
        os.kill(pid, signal.SIGCONT)  # pause(2) returns for a handler only; a stopped and continued process waits on
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.calls("strace")
def test_calls_makes_as_many_system_calls_as_it_should(tmp_path: Path) -> None:
    done = subprocess.run(["strace", program.write(tmp_path, "calls", 37)], capture_output=True, text=True, check=True)
    assert done.stderr.count("getppid()") == 37


@pytest.mark.calls("readelf")
def test_the_executable_is_as_binutils_has_it(tmp_path: Path) -> None:
    shown = subprocess.run(
        ["readelf", "-hlW", program.write(tmp_path, "true")], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    assert "Entry point address:               0x400078" in shown.stdout
    assert " R E " in shown.stdout


def test_the_guests_loop_computes_what_the_source_says(accelerator: Accelerator) -> None:
    """rax = rax * 3 + count, for count from 1000 down to 1, in 64 bits."""
    expected = 1
    for count in range(1000, 0, -1):
        expected = (expected * 3 + count) % (1 << 64)
    with Testbed(accelerator, 64) as bed:
        first = bed.run(program.guest_loop(1000), ring=3)
        last = bed.go()
        assert isinstance(first, IoOut)
        assert isinstance(last, IoOut)
        assert (first.port, last.port) == (0x10, 0x11)
        assert bed.vcpu.regs.rax == expected


def test_a_process_can_be_kept_from_memory_and_processors(tmp_path: Path) -> None:
    pid = start_process([program.write(tmp_path, "wait")], memory=1 << 30, cpus=1)
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert len(os.sched_getaffinity(pid)) == 1
        assert any(line.split()[3:5] == [str(1 << 30)] * 2 for line in limits.splitlines() if "address space" in line)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("name", "number"), [("missing", 2), ("data", 13)])
def test_a_program_that_cannot_be(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "data").write_text("no program")
    with pytest.raises(ExecutableError, match=name) as caught:
        start_process([str(tmp_path / name)])
    assert caught.value.errno == number
