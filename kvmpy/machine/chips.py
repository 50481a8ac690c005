"""Who raises interrupt lines, and whether a vCPU that sleeps can still wake."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.accel.base import Vcpu, Vm
    from kvmpy.machine.machine import Machine


CPU_LIMIT = 64


class Chips(ABC):
    """The interrupt controllers and timers of a machine, whoever implements them."""

    cpu_limit: int
    """How many vCPUs the chips can start and interrupt."""
    gives_apics: bool = False
    """Whether each vCPU has a local APIC that is not the accelerator's."""
    sleeps_inside: bool
    """Whether HLT waits inside the accelerator, which then does not exit for it."""

    def attach(self, machine: Machine) -> None:
        """Take the machine's bus, events and vCPUs into use, where the chips need them."""

    @abstractmethod
    def set_line(self, gsi: int, level: int) -> None:
        """Drive an interrupt line."""

    @abstractmethod
    def connect(self, fd: int, gsi: int, on: bool) -> bool:
        """Pulse the line whenever the eventfd is signalled; return whether the accelerator does that by itself."""

    def can_wake(self, vcpu: Vcpu) -> bool:
        """Tell whether the vCPU runs, or something could still wake it. Asked in its own thread, out of the guest."""
        return True

    def start(self, vcpu: Vcpu, machine: Machine) -> None:
        """Wait until the vCPU was started, where the accelerator does not do that; in its own thread."""

    def deliver(self, vcpu: Vcpu, machine: Machine) -> None:
        """Give the vCPU what is requested of it, where the accelerator does not do that; in its own thread."""

    def halt(self, vcpu: Vcpu, machine: Machine) -> bool:
        """Serve a vCPU that exited for HLT: wait until it wakes; False when it never will. In its own thread."""
        return self.can_wake(vcpu)

    def wake_all(self) -> None:
        """Let everybody who waits here look whether the machine stops. Any thread may call it, signal handlers too."""

    def close(self) -> None:
        """Release what the chips hold."""


class AcceleratorChips(Chips):
    """The accelerator's own: under KVM the in-kernel PIC, IOAPIC, local APICs and PIT."""

    cpu_limit = CPU_LIMIT
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

    cpu_limit = 1
    sleeps_inside = False

    def set_line(self, gsi: int, level: int) -> None:
        """Lead nowhere."""

    def connect(self, fd: int, gsi: int, on: bool) -> bool:
        """Lead nowhere."""
        return True

    def can_wake(self, vcpu: Vcpu) -> bool:
        """Nothing wakes it."""
        return False


NAMES = ("auto", "kernel", "python", "none")


def check_name(name: str) -> None:
    """Raise ConfigError when there are no chips that the user could call `name`."""
    if name not in NAMES:
        raise ConfigError(f"irqchip {name!r}: choose one of {', '.join(NAMES)}")


def make_chips(name: str, vm: Vm) -> Chips:
    """Make the chips that the user calls `name`: the accelerator's ("kernel"), Python's, none; or what there is."""
    if name == "none":
        return NoChips()
    if name == "kernel" or (name == "auto" and vm.offers_chips):
        return AcceleratorChips(vm)
    from kvmpy.machine.python_chips import PythonChips

    return PythonChips(vm)


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
