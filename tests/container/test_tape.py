"""Tapes: what the stage runs, byte for byte, and that it does."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmpy.container import kernel as k
from kvmpy.container.launch import STAGE, Launch, sealed
from kvmpy.container.operations.base import Operation
from kvmpy.container.tape import ADDRESS, Descriptors, Label, Tape, join
from kvmpy.errors import ContainerError


class Calls(Operation):
    """An operation that a test writes itself."""

    writer: Callable[[Tape], None]

    def describe(self) -> str:
        return "the test's calls"

    def write(self, tape: Tape) -> None:
        self.writer(tape)


def played(writer: Callable[[Tape], None]) -> int:
    """Play a tape to its end, and return the exit status of the process."""
    with Launch([Calls(writer)], Descriptors()) as launch:
        launch.start({})
        pid, launch._stage = launch._stage, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ready(tape: Tape) -> None:
    tape.call("write", tape.fds.report, struct.pack("<ii", -1, 0), 8)


def leave(tape: Tape, code: int) -> None:
    """End with a code, as true and false do."""
    argv = tape.put_strings(["sh", "-c", f"exit {code}"])
    tape.call("execve", "/bin/sh", argv, tape.put_strings([]))


def test_a_call_is_packed_as_the_c_struct_has_it() -> None:
    tape, label = Tape(Descriptors()), Label()
    tape.call("openat2", 7, "x", 0, 24, keep=9, accept=(k.ENOENT, k.EACCES), otherwise=label, then=label, nonzero=True)
    tape.place(label)
    expected = struct.pack("<hhBBBxii6Q", 437, 9, 2, 13, 1, 1, 1, 7, ADDRESS + 64, 0, 24, 0, 0)
    assert len(expected) == 64
    assert tape.image().endswith(expected)
    assert tape.image()[64:66] == b"x\0"


def test_the_header_says_where_the_calls_are() -> None:
    tape = Tape(Descriptors(preserved=2))
    tape.call("close", 3)
    count, calls, report = struct.unpack_from("<QQQ", tape.image())
    assert (count, calls, report) == (1, ADDRESS + 64, 5)


def test_a_stage_and_its_tape_are_one_executable() -> None:
    tape = Tape(Descriptors())
    whole = join(Path(STAGE).read_bytes(), tape.image())
    assert whole.endswith(tape.image())
    fd = sealed("both", whole)
    try:
        shown = subprocess.run(
            ["readelf", "-lW", f"/proc/self/fd/{fd}"], pass_fds=[fd], capture_output=True, text=True, check=True
        )
        size = f"0x{len(tape.image()):06x}"
        assert f"0x0000000010000000 0x0000000010000000 {size} {size} RW" in shown.stdout
    finally:
        os.close(fd)


def test_a_program_is_executed() -> None:
    assert played(lambda tape: (ready(tape), leave(tape, 7))) == 7


def test_a_failing_call_names_its_operation() -> None:
    with pytest.raises(ContainerError, match=r"^the test's calls: no such file or directory$"):
        played(lambda tape: tape.call("chdir", "/nowhere"))


def test_an_accepted_error_goes_on_elsewhere() -> None:
    def writer(tape: Tape) -> None:
        other = Label()
        ready(tape)
        tape.call("chdir", "/nowhere", accept=(k.ENOENT,), otherwise=other)
        leave(tape, 1)
        tape.place(other)
        leave(tape, 2)

    assert played(writer) == 2


def test_success_goes_on_elsewhere() -> None:
    def writer(tape: Tape) -> None:
        other = Label()
        ready(tape)
        tape.call("chdir", "/", then=other)
        leave(tape, 1)
        tape.place(other)
        leave(tape, 2)

    assert played(writer) == 2


def test_a_result_moves_to_its_descriptor() -> None:
    def writer(tape: Tape) -> None:
        ready(tape)
        tape.call("openat", k.AT_FDCWD, "/etc/passwd", 0, keep=20)
        tape.call("dup3", 20, 0, 0)
        argv = tape.put_strings(["sh", "-c", "read line && case $line in root:*) exit 5;; esac"])
        tape.call("execve", "/bin/sh", argv, tape.put_strings([]))

    assert played(writer) == 5


@pytest.mark.parametrize(("value", "fails"), [(3, False), (4, True)])
def test_a_check_compares_memory(value: int, fails: bool) -> None:
    def writer(tape: Tape) -> None:
        at = tape.put(struct.pack("<Q", 0xF00 | 3))
        tape.call("CHECK", at, 0xFF, value, errno.ELOOP)
        ready(tape)
        leave(tape, 0)

    if fails:
        with pytest.raises(ContainerError, match="too many levels of symbolic links"):
            played(writer)
    else:
        assert played(writer) == 0


def test_zero_can_be_a_failure() -> None:
    def writer(tape: Tape) -> None:
        tape.call("openat", k.AT_FDCWD, "/dev/null", 0, keep=20)
        tape.call("read", 20, bytes(8), 8, nonzero=True)

    with pytest.raises(ContainerError, match="input/output error"):
        played(writer)


def test_a_stage_that_is_killed_is_told() -> None:
    def writer(tape: Tape) -> None:
        argv = tape.put_strings(["sh", "-c", "kill -9 $$"])
        tape.call("execve", "/bin/sh", argv, tape.put_strings([]))

    with pytest.raises(ContainerError, match="killed by signal 9"):
        played(writer)


def test_the_stage_is_small_and_static() -> None:
    assert Path(STAGE).stat().st_size < 8192
    shown = subprocess.run(["readelf", "-lW", STAGE], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in shown
    assert "RWE" not in shown


def test_calls_are_shown_as_strace_shows_them() -> None:
    tape, label = Tape(Descriptors()), Label()
    flags = k.O_PATH | k.O_DIRECTORY
    tape.call("openat2", tape.fds.root, 'a"b', k.open_how(flags), 24, keep=tape.fds.directory)
    tape.call("mkdirat", tape.fds.root, "x", 0o755, accept=(k.EEXIST,), otherwise=label)
    tape.place(label)
    assert [line for _, lines in tape.lines() for line in lines] == [
        '   0 openat2(ROOT, "a\\"b", {flags=O_PATH|O_DIRECTORY, mode=0, resolve=RESOLVE_IN_ROOT}, 24) = DIRECTORY',
        '   1 mkdirat(ROOT, "x", 493)  [EEXIST: no error -> 2]',
    ]


def test_the_runtime_imports_only_what_is_compiled() -> None:
    """Each verb starts an interpreter; ctypes, json, os, re, struct and typing would double its time."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import kvmpy.container.plan, kvmpy.container.launch\n"
    code += "print(*sorted(name for name in sys.modules if '.' not in name))"
    root = str(Path(STAGE).parents[3])
    shown = subprocess.run([sys.executable, "-ISc", code, root], capture_output=True, text=True, check=True).stdout
    slow = {
        "argparse",
        "collections",
        "contextlib",
        "ctypes",
        "enum",
        "json",
        "logging",
        "os",
        "re",
        "struct",
        "subprocess",
        "typing",
    }
    assert not slow & set(shown.split())
