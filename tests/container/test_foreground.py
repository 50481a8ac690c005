"""Signals on their way to a container's program."""

from __future__ import annotations

import os
import select
import signal
import subprocess

from kvmpy.container.foreground import Signals, SignalsWait


def test_a_signal_can_be_polled_for_and_ends_who_has_no_handler() -> None:
    """A poll(2) that just begins would not hear of it otherwise (Python's set_wakeup_fd)."""
    before = signal.getsignal(signal.SIGTERM)
    with subprocess.Popen(["sleep", "1000"]) as process:
        pidfd = os.pidfd_open(process.pid)
        with Signals(process.pid, pidfd, True, None) as signals:
            assert select.select([signals.woken], [], [], 0)[0] == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert select.select([signals.woken], [], [], 0)[0] == [signals.woken]
            assert signals.number == signal.SIGTERM
        os.close(pidfd)
        assert process.wait() == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_came_before_is_passed_on_when_listened_for() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process, SignalsWait():
        pidfd = os.pidfd_open(process.pid)
        os.kill(os.getpid(), signal.SIGINT)
        with Signals(process.pid, pidfd, True, None) as signals:
            assert signals.number == 0
            signals.listen()
            assert signals.number == signal.SIGINT
        os.close(pidfd)
        assert process.wait() == -signal.SIGKILL
