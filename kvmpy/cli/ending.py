"""Commands that hold many things: a signal ends them in good order."""

from __future__ import annotations

import signal

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
    """While it is entered, the first SIGINT, SIGTERM or SIGHUP raises Ended in the main thread; more change nothing."""

    CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._number = 0

    @property
    def code(self) -> int:
        """The exit code for the signal that came, 0 if none did."""
        return 128 + self._number if self._number else 0

    def run(self, work: Callable[[], Result]) -> Result | None:
        """Do the work and return what it gives; None when a signal ended it."""
        try:
            return work()
        except (Ended, KvmpyError):
            if self._number:
                return None
            raise

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if not self._number:
            self._number = number
            raise Ended

    def __enter__(self) -> Self:
        wanted = [number for number in self.CAUGHT if signal.getsignal(number) != signal.SIG_IGN]  # nohup(1) means it
        self._before = {number: signal.signal(number, self._caught) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
