"""Interrupt chips in Python: a PIC pair and a PIT on the bus, and their way to the first vCPU.

A request kicks the vCPU out of the guest; there it takes the interrupt if it can, else it waits for the window in which
it can. A vCPU that halts waits here, without the VM's lock.
"""

from __future__ import annotations

import time

from kvmpy.devices.pic8259 import PicPair
from kvmpy.devices.pit8254 import Pit8254, SystemControl
from kvmpy.machine.chips import Chips
from kvmpy.machine.events import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.base import Vcpu, Vm
    from kvmpy.machine.machine import Machine

TIMER_IRQ = 0
IRQ_COUNT = 16
RFLAGS_IF = 1 << 9


class PythonChips(Chips):
    """The chips of a PC with one processor."""

    present = True
    cpu_limit = 1
    sleeps_inside = False

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._vcpu: Vcpu | None = None
        self._wake = Flag()
        self.pics = PicPair(self._requested)

    def attach(self, machine: Machine) -> None:
        """Put the chips on the bus."""
        self._vcpu = machine.vcpus[0]
        self.pit = Pit8254(self._tick, clock=time.monotonic, call_at=machine.events.call_at)
        ports = machine.bus.ports
        ports.add(self.pics.master, 0x20, 2)
        ports.add(self.pics.slave, 0xA0, 2)
        ports.add(self.pics.elcr, 0x4D0, 2)
        ports.add(self.pit, 0x40, 4)
        ports.add(SystemControl(self.pit, time.monotonic), 0x61, 1)

    def _tick(self) -> None:
        self.set_line(TIMER_IRQ, 1)
        self.set_line(TIMER_IRQ, 0)

    def _requested(self) -> None:
        """The PIC asks for the processor: it may be in the guest, or asleep."""
        if self._vcpu is not None:
            self._vcpu.kick()
        self._wake.up()

    def set_line(self, gsi: int, level: int) -> None:
        """Drive an input of the PICs; lines beyond are an IOAPIC's, which there is not."""
        if gsi < IRQ_COUNT:
            self.pics.set_line(gsi, level)

    def connect(self, fd: int, gsi: int, on: bool) -> bool:
        """Leave it to the machine's events."""
        return False

    def deliver(self, vcpu: Vcpu) -> None:
        """Give the vCPU the interrupt that is requested, or wait until it takes one."""
        if self.pics.requests and vcpu.interruptible:
            vcpu.interrupt(self.pics.acknowledge())
        vcpu.interrupt_window = self.pics.requests

    def can_wake(self, vcpu: Vcpu) -> bool:
        """With interrupts on, any request wakes it."""
        return bool(vcpu.regs.rflags & RFLAGS_IF)

    def sleep(self, vcpu: Vcpu, machine: Machine) -> None:
        """Wait in HLT, without the lock, for a request or for the machine to stop."""
        while not self.pics.requests and not machine.is_stopping():
            self._wake.down()
            if self.pics.requests or machine.is_stopping():
                break
            self._vm.lock.release()
            try:
                self._wake.wait()
            finally:
                self._vm.lock.acquire()
        self.deliver(vcpu)

    def wake_all(self) -> None:
        """Let a vCPU that sleeps look whether the machine stops."""
        self._wake.up()

    def close(self) -> None:
        """Release the descriptor."""
        self._wake.close()
