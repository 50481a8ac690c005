"""Interrupt chips in Python: PIC pair, PIT, an I/O APIC and a local APIC for each vCPU, and their ways to the vCPUs.

A request kicks its vCPU out of the guest; there it takes the interrupt if it can, else it waits for the window in which
it can. A vCPU that halts, or was not started yet, waits here, without the VM's lock.
"""

from __future__ import annotations

import time

from kvmpy.cpu.bits import RFLAGS_IF
from kvmpy.cpu.state import Registers, SystemRegisters
from kvmpy.devices import ioapic, lapic
from kvmpy.devices.base import Device
from kvmpy.devices.pic8259 import PicPair
from kvmpy.devices.pit8254 import Pit8254, SystemControl
from kvmpy.machine.chips import CPU_LIMIT, Chips
from kvmpy.machine.events import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.accel.base import Vcpu, Vm
    from kvmpy.devices.lapic import Message
    from kvmpy.machine.machine import Machine

TIMER_IRQ = 0
PIC_INPUTS = 16
FROM_PICS = -1  # no vector: the PICs give one when they are asked


class Processor:
    """What a vCPU is to the chips: its local APIC, whether it was started, and the flag that wakes it."""

    def __init__(self, vcpu: Vcpu, chips: PythonChips, machine: Machine) -> None:
        self.vcpu = vcpu
        self.started = vcpu.id == 0  # the others wait for INIT and SIPI (Intel SDM vol. 3, 9.4.4)
        self.flag = Flag()
        self.apic = lapic.LocalApic(
            vcpu.id,
            clock=time.monotonic,
            call_at=machine.events.call_at,
            wake=self.wake,
            send=chips.send,
            end_of_interrupt=chips.end_of_interrupt,
        )

    def take_priority(self) -> None:
        """Tell the local APIC what the guest wrote to CR8, which is its TPR (Intel SDM vol. 3, 10.8.6.1)."""
        if self.apic.task_priority >> 4 != self.vcpu.cr8:
            self.apic.task_priority = self.vcpu.cr8 << 4

    def give_priority(self) -> None:
        """Tell the vCPU what the guest wrote to the local APIC."""
        self.vcpu.cr8 = self.apic.task_priority >> 4

    def wake(self) -> None:
        """Make the vCPU look what there is: it may be in the guest, or asleep."""
        self.vcpu.kick()
        self.flag.up()


class ApicWindow(Device):
    """The local APICs all lie at one address: each vCPU sees its own there."""

    name = "local APICs"

    def __init__(self, current: Callable[[], Processor]) -> None:
        self._current = current

    def read(self, offset: int, size: int) -> int:
        """Read the APIC of the vCPU that is served."""
        processor = self._current()
        processor.take_priority()
        return processor.apic.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write to the APIC of the vCPU that is served."""
        processor = self._current()
        processor.take_priority()
        processor.apic.write(offset, size, value)
        processor.give_priority()


class PythonChips(Chips):
    """The chips of a PC with one processor or more."""

    cpu_limit = CPU_LIMIT
    gives_apics = True
    sleeps_inside = False

    def __init__(self, vm: Vm) -> None:
        self._lock = vm.lock
        self._processors: list[Processor] = []
        self._asleep: set[int] = set()  # in HLT with interrupts off, or not started
        self.pics = PicPair(self._pic_requests)
        self.ioapic = ioapic.IoApic(self.send)

    def attach(self, machine: Machine) -> None:
        """Put the chips on the bus."""
        self._processors = [Processor(vcpu, self, machine) for vcpu in machine.vcpus]
        self.pit = Pit8254(self._tick, clock=time.monotonic, call_at=machine.events.call_at)
        ports, mmio = machine.bus.ports, machine.bus.mmio
        ports.add(self.pics.master, 0x20, 2)
        ports.add(self.pics.slave, 0xA0, 2)
        ports.add(self.pics.elcr, 0x4D0, 2)
        ports.add(self.pit, 0x40, 4)
        ports.add(SystemControl(self.pit, time.monotonic), 0x61, 1)
        mmio.add(self.ioapic, ioapic.BASE, ioapic.SIZE)
        mmio.add(ApicWindow(lambda: self._processors[machine.served]), lapic.BASE, lapic.SIZE)

    # Lines and messages

    def _tick(self) -> None:
        self.set_line(TIMER_IRQ, 1)
        self.set_line(TIMER_IRQ, 0)

    def _pic_requests(self) -> None:
        """The PICs' output leads to the first processor."""
        if self._processors:
            self._processors[0].wake()

    def set_line(self, gsi: int, level: int) -> None:
        """Drive an input of the PICs and of the I/O APIC."""
        if gsi < PIC_INPUTS:
            self.pics.set_line(gsi, level)
        if gsi < ioapic.PINS:
            self.ioapic.set_line(gsi, level)

    def connect(self, fd: int, gsi: int, on: bool) -> bool:
        """Leave it to the machine's events."""
        return False

    def send(self, message: Message) -> None:
        """Carry a message to every local APIC it is meant for; of lowest priority, to one of them."""
        meant = [p for p in self._processors if p.apic.is_meant(message)]
        for processor in meant:
            processor.take_priority()
        if message.mode == lapic.LOWEST_PRIORITY and meant:
            meant = [min(meant, key=lambda p: p.apic.processor_priority)]
        for processor in meant:
            waits = not processor.started or processor.apic.init
            if message.mode != lapic.STARTUP or waits:  # who runs does not hear it (Intel SDM vol. 3, 8.4.1)
                processor.apic.receive(message)

    def end_of_interrupt(self, vector: int) -> None:
        """Tell the I/O APIC that a level-triggered interrupt was served."""
        self.ioapic.end_of_interrupt(vector)

    # The vCPUs

    def start(self, vcpu: Vcpu, machine: Machine) -> None:
        """Let a vCPU that was not started wait for that."""
        processor = self._processors[vcpu.id]
        if not processor.started:
            self._wait_for_startup(processor, machine)

    def _requested(self, processor: Processor) -> int | None:
        """Return the vector of the local APIC that the processor would take, FROM_PICS, or None."""
        apic = processor.apic
        processor.take_priority()
        vector = apic.pending()
        is_wired = apic.extint or (processor.vcpu.id == 0 and apic.takes_extint)
        return FROM_PICS if vector is None and self.pics.requests and is_wired else vector

    def deliver(self, vcpu: Vcpu, machine: Machine) -> None:
        """Give the vCPU what is requested of it, or ask for the window in which it can take it."""
        processor = self._processors[vcpu.id]
        apic = processor.apic
        if apic.init:
            self._init(processor, machine)
        if apic.nmi:
            apic.nmi = False
            vcpu.nmi()
        requested = self._requested(processor)
        if requested is not None and vcpu.interruptible:
            if requested == FROM_PICS:
                requested, apic.extint = self.pics.acknowledge(), False
            else:
                apic.accept(requested)
            vcpu.interrupt(requested)
            requested = self._requested(processor)
        vcpu.interrupt_window = requested is not None

    def _init(self, processor: Processor, machine: Machine) -> None:
        """INIT: the processor is reset, and waits for SIPI unless it is the first (Intel SDM vol. 3, 9.1.4)."""
        processor.apic.init = False
        processor.apic.reset()
        processor.vcpu.sregs, processor.vcpu.regs = SystemRegisters(), Registers()
        processor.started = processor.vcpu.id == 0
        self.start(processor.vcpu, machine)

    def _wait_for_startup(self, processor: Processor, machine: Machine) -> None:
        self._wait(processor, machine, lambda: processor.apic.startup is not None, for_good=True)
        vector = processor.apic.startup
        processor.apic.init, processor.apic.startup = False, None
        if vector is None:
            return
        sregs = SystemRegisters()
        sregs.cs.selector, sregs.cs.base = vector << 8, vector << 12
        processor.vcpu.sregs, processor.vcpu.regs = sregs, Registers(rip=0)
        processor.started = True

    def halt(self, vcpu: Vcpu, machine: Machine) -> bool:
        """Wait in HLT for an interrupt that wakes the vCPU; False when every vCPU sleeps for good."""
        processor = self._processors[vcpu.id]
        takes_interrupts = bool(vcpu.regs.rflags & RFLAGS_IF)

        def is_woken() -> bool:
            apic = processor.apic
            return apic.nmi or apic.init or (takes_interrupts and self._requested(processor) is not None)

        awake = self._wait(processor, machine, is_woken, for_good=not takes_interrupts)
        if awake:
            self.deliver(vcpu, machine)
        return awake

    def _wait(self, processor: Processor, machine: Machine, is_woken: Callable[[], bool], *, for_good: bool) -> bool:
        """Wait without the lock, until woken or the machine stops; False when all sleep for good."""
        number = processor.vcpu.id
        if for_good and not is_woken():
            self._asleep.add(number)
        if len(self._asleep) == len(self._processors):
            machine.halted(processor.vcpu)
        while not is_woken() and not machine.is_stopping():
            processor.flag.down()
            if is_woken() or machine.is_stopping():
                break
            self._lock.release()
            try:
                processor.flag.wait()
            finally:
                self._lock.acquire()
        all_asleep = len(self._asleep) == len(self._processors)
        self._asleep.discard(number)
        return not all_asleep

    def wake_all(self) -> None:
        """Let the vCPUs that sleep look whether the machine stops."""
        for processor in self._processors:
            processor.flag.up()

    def close(self) -> None:
        """Release the descriptors."""
        for processor in self._processors:
            processor.flag.close()
