"""Commands that hold many things: a signal ends them in good order."""

from __future__ import annotations

import contextlib
import os
import signal

from kvmpy.container.process import children
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self, TypeVar

    Result = TypeVar("Result")


class Ended(BaseException):
    """A signal told the command to end: whatever it holds is let go on the way out."""


class EndingSignals:
    """While it is entered, SIGINT, SIGTERM and SIGHUP do not end the process: the first one raises Ended in `run()`."""

    CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._number = 0
        self._working = False

    @property
    def code(self) -> int:
        """The exit code for the signal that came, 0 if none did."""
        return 128 + self._number if self._number else 0

    def run(self, work: Callable[[], Result]) -> Result | None:
        """Do the work and return what it gives; None when a signal ended it."""
        try:
            try:
                self._working = True
                return work()
            finally:
                self._working = False
        except (Ended, KvmpyError):
            if self._number:
                end_children()
                from kvmpy.container.api import delete_invented

                delete_invented()
                return None
            raise

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if not self._number:
            self._number = number
            if self._working:
                raise Ended

    def __enter__(self) -> Self:
        wanted = [number for number in self.CAUGHT if signal.getsignal(number) != signal.SIG_IGN]  # nohup(1) means it
        self._before = {number: signal.signal(number, self._caught) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def end_children() -> None:
    """Kill the processes that this one has started and still has.

    One that was started in the very moment the signal came is known to nobody: its pid was on its way to a variable.
    """
    for child in children():
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:  # in any order: the first process of a PID namespace ends after all others in it were waited for
            os.waitpid(-1, 0)
