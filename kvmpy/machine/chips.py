"""Who raises interrupt lines, and whether a vCPU that sleeps can still wake."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.accel.base import Vcpu, Vm


class Chips(ABC):
    """The interrupt controllers and timers of a machine, whoever implements them."""

    present: bool
    """Whether the PC has chips at all; without them only its first vCPU could ever start."""
    sleeps_inside: bool
    """Whether HLT waits inside the accelerator, which then does not exit for it."""

    @abstractmethod
    def set_line(self, gsi: int, level: int) -> None:
        """Drive an interrupt line."""

    @abstractmethod
    def connect(self, fd: int, gsi: int, on: bool) -> bool:
        """Pulse the line whenever the eventfd is signalled; return whether the accelerator does that by itself."""

    @abstractmethod
    def can_wake(self, vcpu: Vcpu) -> bool:
        """Tell whether the vCPU runs, or something could still wake it. Asked in its own thread, out of the guest."""


class AcceleratorChips(Chips):
    """The accelerator's own: under KVM the in-kernel PIC, IOAPIC, local APICs and PIT."""

    present = True
    sleeps_inside = True

    def __init__(self, vm: Vm) -> None:
        vm.create_chips()
        self._vm = vm

    def set_line(self, gsi: int, level: int) -> None:
        """Drive a line of the accelerator's chips."""
        self._vm.set_irq(gsi, level)

    def connect(self, fd: int, gsi: int, on: bool) -> bool:
        """Let the accelerator watch the eventfd."""
        return self._vm.irq_on(fd, gsi, on)

    def can_wake(self, vcpu: Vcpu) -> bool:
        """Anything but HLT with interrupts off, or waiting for an INIT that no other vCPU sends, can go on."""
        return not vcpu.halted()


class NoChips(Chips):
    """A PC without interrupts: HLT is the end."""

    present = False
    sleeps_inside = False

    def __init__(self, vm: Vm) -> None:
        pass

    def set_line(self, gsi: int, level: int) -> None:
        """Lead nowhere."""

    def connect(self, fd: int, gsi: int, on: bool) -> bool:
        """Lead nowhere."""
        return True

    def can_wake(self, vcpu: Vcpu) -> bool:
        """Nothing wakes it."""
        return False


CHIPS: dict[str, Callable[[Vm], Chips]] = {"kernel": AcceleratorChips, "none": NoChips}


def choose_chips(name: str) -> Callable[[Vm], Chips]:
    """Return what makes the chips that the user calls `name`; ConfigError when there are none of that name."""
    if name not in CHIPS:
        raise ConfigError(f"irqchip {name!r}: choose one of {', '.join(CHIPS)}")
    return CHIPS[name]


class Sleepers:
    """Finds out when every vCPU sleeps for good.

    Each vCPU answers for itself, out of the guest, and goes back in; until the last one has answered, another may have
    woken it by an NMI or INIT. So when all say that they sleep, they are held and asked again: only while none is in
    the guest is the answer certain. All calls come with the VM's lock held.
    """

    WHO = "the count of sleepers"

    def __init__(self, cpus: int, hold: Callable[[str], None], release: Callable[[str], None]) -> None:
        self._cpus = cpus
        self._hold = hold
        self._release = release
        self._asleep: set[int] = set()
        self._counted: set[int] = set()

    def report(self, vcpu_id: int, *, asleep: bool) -> bool:
        """Take a vCPU's answer; return True when it is certain that all sleep."""
        if not asleep:
            self._asleep.discard(vcpu_id)
            self._end_count()
            return False
        self._asleep.add(vcpu_id)
        if len(self._asleep) < self._cpus:
            return False
        first = not self._counted
        self._counted.add(vcpu_id)
        if len(self._counted) == self._cpus:
            return True
        if first:
            self._hold(self.WHO)
        return False

    def forget(self) -> None:
        """Start anew."""
        self._asleep.clear()
        self._end_count()

    def _end_count(self) -> None:
        if self._counted:
            self._counted.clear()
            self._release(self.WHO)
