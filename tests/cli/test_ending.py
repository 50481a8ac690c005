"""Signals that end a command in good order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvmpy.cli.ending import Ended, EndingSignals
from kvmpy.undisturbed import Undisturbed

SLEEP = shutil.which("sleep") or "/bin/sleep"


@pytest.mark.parametrize("number", EndingSignals.CAUGHT)
def test_a_process_whose_pid_nobody_has_noted_is_ended(number: signal.Signals) -> None:
    """The signal comes while posix_spawn() runs, and is raised before its result has a name."""
    started = []

    def work() -> None:
        started.append(os.posix_spawn(SLEEP, [SLEEP, "1000"], {}))
        os.kill(os.getpid(), number)

    with EndingSignals() as signals:
        assert signals.run(work) is None
    assert signals.code == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


# Makes a PID namespace whose first process and whose second are both this program's children, as a container's are
# while something is executed in it; then ends both.
IN_A_NAMESPACE = """
import ctypes, os, signal, sys
from kvmpy.cli.ending import end_children

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWPID = 0x20000000

assert libc.unshare(CLONE_NEWPID) == 0
for _ in range(2):
    if os.fork() == 0:
        signal.pause()
end_children()
print("over")
"""


@pytest.mark.root("a PID namespace")
def test_children_that_wait_for_each_other_are_ended() -> None:
    """The first process of a PID namespace does not end before all in it were waited for (pid_namespaces(7))."""
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", IN_A_NAMESPACE], capture_output=True, text=True, timeout=30)
        assert (done.stdout, done.stderr) == ("over\n", "")


def test_only_the_first_signal_is_raised() -> None:
    def work() -> str:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Ended:
            os.kill(os.getpid(), signal.SIGINT)  # while things are let go
        return "let go"

    with EndingSignals() as signals:
        assert signals.run(work) == "let go"
    assert signals.code == 128 + signal.SIGTERM


def test_a_signal_when_the_work_is_done_is_not_raised() -> None:
    with EndingSignals() as signals:
        assert signals.run(lambda: 5) == 5
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.code == 128 + signal.SIGTERM


def test_what_is_let_go_is_let_go_whole() -> None:
    """The signal comes while the first of two things is let go."""
    gone = []

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        gone.append("last")

    def work() -> None:
        with Undisturbed() as stack:
            stack.callback(gone.append, "first")
            stack.callback(interrupted)

    with EndingSignals() as signals:
        assert signals.run(work) is None
    assert signals.code == 128 + signal.SIGINT
    assert gone == ["last", "first"]


def test_what_was_made_is_held() -> None:
    gone = []

    @contextlib.contextmanager
    def thing() -> Iterator[None]:
        try:
            yield
        finally:
            gone.append("thing")

    def make() -> contextlib.AbstractContextManager[None]:
        os.kill(os.getpid(), signal.SIGINT)
        return thing()

    def work() -> None:
        with Undisturbed() as stack:
            stack.enter_made(make)
            gone.append("not reached")

    with EndingSignals() as signals:
        assert signals.run(work) is None
    assert gone == ["thing"]


def test_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in EndingSignals.CAUGHT]
    with EndingSignals() as signals:
        assert signals.run(lambda: 5) == 5
        assert [signal.getsignal(number) for number in EndingSignals.CAUGHT] != before
    assert [signal.getsignal(number) for number in EndingSignals.CAUGHT] == before
    assert signals.code == 0
