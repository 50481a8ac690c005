"""Holding and letting go of things in full, whatever signals come meanwhile."""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import TypeVar

    Held = TypeVar("Held")

ENDS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Undisturbed(ExitStack):
    """An ExitStack that lets go of all it holds before a signal that ends the process is heard.

    The exception of a signal handler, as of Ctrl-C, would cut short whatever was being let go just then, and nothing
    comes back to it.
    """

    def enter_made(self, make: Callable[[], AbstractContextManager[Held]]) -> Held:
        """Make something and enter it, before a signal is heard: what was made is held."""
        with signals_later():
            return self.enter_context(make())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Let go of everything, the last first."""
        with signals_later():
            return super().__exit__(kind, error, trace)


@contextmanager
def signals_later() -> Iterator[None]:
    """While it is entered, signals that end the process wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
