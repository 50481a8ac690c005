"""The one run path of every vCPU: what an exit left to do is done before the next entry, whoever enters."""

from __future__ import annotations

from abc import abstractmethod

from kvmpy.accel import packed
from kvmpy.accel.base import Vcpu
from kvmpy.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.accel.exits import Exit
    from kvmpy.cpu.state import Registers, SystemRegisters


class RunPath(Vcpu):
    """Keeps what is left to do, here and nowhere else: `_attention` tells the hot path that there is something."""

    def __init__(self) -> None:
        self._give_answer: Callable[[], None] | None = None  # takes over what was filled into a typed exit
        self._parked: int | None = None  # an exit that nobody has seen yet
        self._late_regs: Registers | None = None  # assigned while an access was half done
        self._late_sregs: SystemRegisters | None = None

    # What an accelerator has to say

    _attention: bool
    """While it is true `exits()` yields ATTENTION instead of entering."""

    @property
    @abstractmethod
    def _pending(self) -> bool:
        """True while an access that exited is not finished in the guest."""

    @abstractmethod
    def _enter(self) -> int:
        """Enter the guest and return the packed exit."""

    @abstractmethod
    def _single_step(self) -> int:
        """Run one instruction and return the packed exit."""

    @abstractmethod
    def _complete(self) -> int:
        """Finish the access without going on; return INTERRUPTED, or an exit that this causes."""

    @abstractmethod
    def _typed(self, code: int) -> tuple[Exit, Callable[[], None] | None]:
        """Return the typed exit, and a function that takes over what was filled into it."""

    @abstractmethod
    def _load_regs(self) -> Registers: ...

    @abstractmethod
    def _store_regs(self, regs: Registers) -> None: ...

    @abstractmethod
    def _load_sregs(self) -> SystemRegisters: ...

    @abstractmethod
    def _store_sregs(self, sregs: SystemRegisters) -> None: ...

    def _step_off_breakpoint(self) -> int | None:
        """Leave a breakpoint that the vCPU stands on; return an exit that comes of it."""
        return None

    def _always_attend(self) -> bool:
        """Tell whether the hot path cannot be used at all, for now."""
        return False

    # Running

    def enter(self) -> int:
        """Do what is left to do, then run until the next exit; see Vcpu."""
        code = self._before_entry()
        if code is None:
            code = self._step_off_breakpoint()
        if code is None:
            code = self._enter()
        self._note_attention()
        return code

    def typed_exit(self, code: int) -> Exit:
        """Return the typed exit behind a packed one."""
        exit, self._give_answer = self._typed(code)
        self._note_attention()
        return exit

    def run(self) -> Exit:
        """Run until the next exit; see Vcpu."""
        return self._typed_or_raise(self.enter())

    def step(self) -> Exit:
        """Run one instruction; see Vcpu."""
        code = self._before_entry()
        if code is None:
            code = self._single_step()
        self._note_attention()
        return self._typed_or_raise(code)

    def _typed_or_raise(self, code: int) -> Exit:
        if code & packed.REASON_MASK == packed.ERROR:
            raise self.run_error(code)
        return self.typed_exit(code)

    def complete(self) -> None:
        """Finish a pending access; an exit that this causes is the next one that is given."""
        while self._pending and self._parked is None:
            self._answer_typed()
            code = self._complete()
            if code & packed.REASON_MASK != packed.INTERRUPTED:
                self._parked = code
        if not self._pending:
            self._assign_late()
        self._note_attention()

    def _before_entry(self) -> int | None:
        """Finish what the last exit left; return an exit when that alone gives one."""
        code, self._parked = self._parked, None
        if code is None:
            self._answer_typed()
            if self._late_regs or self._late_sregs:
                self.complete()
                code, self._parked = self._parked, None
        self._attention = False
        return code

    def _answer_typed(self) -> None:
        give, self._give_answer = self._give_answer, None
        if give:
            give()

    def _note_attention(self) -> None:
        left = self._parked is not None or self._give_answer or self._late_regs or self._late_sregs
        self._attention = bool(left or self._always_attend())

    # Registers

    @property
    def regs(self) -> Registers:
        """The general registers."""
        return replace(self._late_regs) if self._late_regs else self._load_regs()

    @regs.setter
    def regs(self, regs: Registers) -> None:
        self.complete()
        if self._pending:
            self._late_regs = replace(regs)
            self._note_attention()
        else:
            self._store_regs(regs)

    @property
    def sregs(self) -> SystemRegisters:
        """The system registers."""
        return _copy(self._late_sregs) if self._late_sregs else self._load_sregs()

    @sregs.setter
    def sregs(self, sregs: SystemRegisters) -> None:
        self.complete()
        if self._pending:
            self._late_sregs = _copy(sregs)
            self._note_attention()
        else:
            self._store_sregs(sregs)

    def _assign_late(self) -> None:
        if self._late_sregs:
            self._store_sregs(self._late_sregs)
        if self._late_regs:
            self._store_regs(self._late_regs)
        self._late_regs = self._late_sregs = None


def _copy(sregs: SystemRegisters) -> SystemRegisters:
    from copy import deepcopy  # here, for it is seldom needed and slow to import

    return deepcopy(sregs)
