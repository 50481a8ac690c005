"""Holding and letting go of things in full, whatever signals come meanwhile."""

from __future__ import annotations

from contextlib import ExitStack

from kvmpy.container.foreground import SignalsWait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import TypeVar

    Held = TypeVar("Held")


class Undisturbed(ExitStack):
    """An ExitStack that lets go of all it holds before a signal that ends the process is heard.

    The exception of a signal handler, as of Ctrl-C, would cut short whatever was being let go just then, and nothing
    comes back to it.
    """

    def enter_made(self, make: Callable[[], AbstractContextManager[Held]]) -> Held:
        """Make something and enter it, before a signal is heard: what was made is held."""
        with SignalsWait():
            return self.enter_context(make())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Let go of everything, the last first."""
        with SignalsWait():
            return super().__exit__(kind, error, trace)
