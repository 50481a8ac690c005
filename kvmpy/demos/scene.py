"""What a demo is given: a voice that says what is about to happen, what happened and why, and things to use.

Whatever a scene hands out is closed, and every file it made is gone, when it ends, however it ends.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from kvmpy.accel.choose import open_accelerator
from kvmpy.accel.exits import Interrupted
from kvmpy.accel.testbed import run_for
from kvmpy.boot.image import plan_image
from kvmpy.errors import DeadlineError
from kvmpy.machine.machine import Machine
from kvmpy.undisturbed import Undisturbed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any, Self, TypeVar

    from kvmpy.accel.base import Accelerator, Vcpu
    from kvmpy.accel.exits import Exit

    Held = TypeVar("Held")

STEP, SAW, WHY, HOLDS, FAILS, MISSING, NOTICE = "step", "saw", "why", "holds", "fails", "missing", "notice"
EXIT_SECONDS = 5.0
SMALL = 16 << 20


class Scene:
    """One showing of a demo. `say` gets each piece of the story: its kind and its text."""

    def __init__(self, say: Callable[[str, str], None], accelerator: str | None = None) -> None:
        self._say = say
        self._chosen = accelerator
        self._accelerator: Accelerator | None = None
        self._folder: Path | None = None
        self._stack = Undisturbed()
        self.failed: list[str] = []
        self.lacking: list[str] = []

    # The story

    def step(self, text: str) -> None:
        """Say what is about to happen."""
        self._say(STEP, text)

    def saw(self, *lines: str) -> None:
        """Show what happened."""
        for line in lines:
            self._say(SAW, line)

    def why(self, text: str) -> None:
        """Explain it, with the manual's place where there is one."""
        self._say(WHY, text)

    def claim(self, text: str, holds: bool) -> None:
        """State what must be true now; a claim that fails fails the demo."""
        if not holds:
            self.failed.append(text)
        self._say(HOLDS if holds else FAILS, text)

    def missing(self, text: str) -> None:
        """Say in one line what this machine lacks, what is left out for it, and how to get it."""
        self.lacking.append(text)
        self._say(MISSING, text)

    # What demos use

    def hold(self, thing: AbstractContextManager[Held]) -> Held:
        """Enter something that is closed when the scene ends."""
        return self._stack.enter_context(thing)

    def at_end(self, undo: Callable[[], object]) -> None:
        """Call something when the scene ends; said before what it undoes is done, it is never too late."""
        self._stack.callback(undo)

    @property
    def accelerator(self) -> Accelerator:
        """Who executes guests, opened when it is first asked for."""
        if self._accelerator is None:
            self._accelerator = self.hold(open_accelerator(self._chosen))
            if self._accelerator.instead_of:
                why = self._accelerator.instead_of
                self._say(NOTICE, f"The software CPU runs the guests, because KVM cannot: {why}.")
        return self._accelerator

    @property
    def folder(self) -> Path:
        """A directory of the demo's own, gone when the scene ends."""
        if self._folder is None:
            made = self._stack.enter_made(lambda: tempfile.TemporaryDirectory(prefix="kvmpy-demo-"))
            self._folder = Path(made)
        return self._folder

    def guest(self, image: str, **options: Any) -> Machine:
        """Return a machine with a bundled guest loaded, about to run its first instruction."""
        plan = plan_image(image, memory=options.setdefault("memory", SMALL))
        options.setdefault("irqchip", plan.irqchip)
        machine = self.hold(Machine(self.accelerator, **options))
        machine.load(plan)
        return machine

    def next_exit(self, vcpu: Vcpu) -> Exit:
        """Run to the guest's next exit; DeadlineError when there is none within seconds."""
        exit = run_for(vcpu, EXIT_SECONDS)
        if isinstance(exit, Interrupted):
            raise DeadlineError(f"the guest did not exit within {EXIT_SECONDS:.0f} s")
        return exit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def shown(exit: Exit) -> str:
    """Return an exit as a person reads it: numbers above nine in hexadecimal, nothing that is still to be filled in."""
    parts = []
    for name in exit.__match_args__:
        value = getattr(exit, name)
        if isinstance(value, bytes):
            value = value.hex(" ")
        elif type(value) is int:
            value = hex(value) if value > 9 else value
        parts.append(f"{name}={value}")
    return f"{type(exit).__name__}({', '.join(parts)})"
