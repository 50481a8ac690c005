"""Machine: a PC with memory, vCPUs and devices, that runs until its guest stops."""

from __future__ import annotations

import os
import select
import time

from kvmpy.errors import ConfigError
from kvmpy.machine.board import Board
from kvmpy.machine.bus import Bus
from kvmpy.machine.stop import Stop, StopKind
from kvmpy.machine.vcpu_thread import VcpuThread
from kvmpy.memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from kvmpy.accel.base import Accelerator, Vcpu
    from kvmpy.boot.plan import BootPlan

DEFAULT_MEMORY = 64 << 20
CPU_LIMIT = 64
FIRST_TICK = 0.0005
TICK = 0.02  # seconds between looks at vCPUs that stay in the guest
JOIN_SECONDS = 5.0


class Machine:
    """A PC on an accelerator.

    `output` gets what the guest writes to its serial port or debug console, with the VM's lock held; `send()`
    feeds the serial port's input. Use it as a context manager: closing releases the VM and the memory.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        memory: int = DEFAULT_MEMORY,
        cpus: int = 1,
        irqchip: str = "kernel",
        strict: bool = False,
        coalesce: bool = True,
        output: Callable[[bytes], None] = lambda _data: None,
    ) -> None:
        _check(cpus, irqchip)
        self.output = output
        self.stop_reason: Stop | None = None
        self.threads: list[VcpuThread] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closers: list[Callable[[], None]] = [lambda: os.close(self._wake)]
        try:
            self.memory = GuestMemory(memory)
            self._closers.append(self.memory.close)
            self.vm = accelerator.create_vm(irqchip=irqchip)
            self._closers.append(self.vm.close)
            self.vm.add_memory(self.memory)
            self.vcpus: list[Vcpu] = [self.vm.create_vcpu(i, cpus=cpus) for i in range(cpus)]
            self.bus = Bus(strict=strict)
            self.board = Board(self, coalesce=coalesce)
        except BaseException:
            self.close()
            raise

    def load(self, plan: BootPlan) -> None:
        """Put a guest into memory and set the first vCPU's state."""
        for gpa, data in plan.blobs:
            self.memory.write(gpa, data)
        self.vcpus[0].regs = plan.state.regs
        self.vcpus[0].sregs = plan.state.sregs

    def run(
        self,
        *,
        timeout: float | None = None,
        max_exits: int | None = None,
        watch: Mapping[int, Callable[[], bool]] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> Stop:
        """Run until the guest stops, `timeout` seconds have passed, or a vCPU has had `max_exits` exits.

        A machine can be run again: it goes on where it stopped.

        `watch` maps descriptors to functions that are called in this thread when there is something to read; one that
        returns False is not watched any longer. `tick` is called often. An exception here stops the vCPUs first.
        """
        self.stop_reason = None
        self.threads = [VcpuThread(self, vcpu, max_exits) for vcpu in self.vcpus]
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for thread in self.threads:
                thread.start()
            self._watch(dict(watch or {}), tick, deadline)
        finally:
            self.stop(Stop(StopKind.QUIT, "the machine was told to stop"))
            self._join()
        stop: Stop | None = self.stop_reason
        assert stop is not None
        return stop

    def _watch(self, watch: dict[int, Callable[[], bool]], tick: Callable[[], None], deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for fd in watch:
            poll.register(fd, select.POLLIN)
        seen = [-1] * len(self.vcpus)
        pause = FIRST_TICK
        while not self.stop_reason:
            pause = min(2 * pause, TICK)
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left <= 0:
                self.stop(Stop(StopKind.TIMEOUT, "the guest did not stop in time; raise --timeout to give it longer"))
                return
            for fd, _events in poll.poll(left * 1000):
                if fd in watch and not watch[fd]():
                    poll.unregister(fd)
            self._drain(tick)
            seen = self._nudge(seen)

    def _drain(self, tick: Callable[[], None]) -> None:
        """Deliver collected writes of a guest that does not exit. A vCPU that holds the lock will do so itself."""
        if self.vm.lock.acquire(blocking=False):
            try:
                self.take_writes()
                tick()
            finally:
                self.vm.lock.release()

    def _nudge(self, seen: list[int]) -> list[int]:
        """Kick the vCPUs that have not left the guest since the last tick: they may be halted for good."""
        now = [vcpu.entries for vcpu in self.vcpus]
        for vcpu, before, count in zip(self.vcpus, seen, now, strict=True):
            if before == count:
                vcpu.kick()
        return now

    def _join(self) -> None:
        for thread in self.threads:
            if thread.ident is None:
                continue
            deadline = time.monotonic() + JOIN_SECONDS
            while thread.is_alive() and time.monotonic() < deadline:
                thread.vcpu.kick()
                thread.join(TICK)
        self._drain(lambda: None)
        for thread in self.threads:
            if thread.error is not None:
                raise thread.error

    @property
    def stopping(self) -> bool:
        """True once a stop reason is known."""
        return self.stop_reason is not None

    def stop(self, stop: Stop) -> None:
        """Stop the machine; the first reason counts. Any thread may call it, devices too."""
        if self.stop_reason is None:
            self.stop_reason = stop
        for vcpu in self.vcpus:
            vcpu.kick()
        os.eventfd_write(self._wake, 1)

    def vcpu_halted(self) -> None:
        """Note that a vCPU sleeps for good; when all do, the machine stops."""
        waiting = self.vm.irqchip == "none"
        if waiting or all(thread.halted for thread in self.threads):
            self.stop(Stop(StopKind.HALT, "HLT with nothing that could wake the guest"))

    def take_writes(self) -> None:
        """Hand collected writes to their devices; the caller holds the lock."""
        while (write := self.vm.take_writes()) is not None:
            address, size, is_port, data = write
            space = self.bus.ports if is_port else self.bus.mmio
            space.write_many(address, size, data)

    def send(self, data: bytes) -> None:
        """Give bytes to the guest's serial port; what it has no room for waits. Any thread may call it."""
        with self.vm.lock:
            self.board.send(data)

    def close(self) -> None:
        """Release the VM, the memory and all descriptors; harmless when repeated."""
        while self._closers:
            self._closers.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(cpus: int, irqchip: str) -> None:
    if not 1 <= cpus <= CPU_LIMIT:
        raise ConfigError(f"{cpus} vCPUs: choose 1 to {CPU_LIMIT}")
    if cpus > 1 and irqchip == "none":
        raise ConfigError(
            f"{cpus} vCPUs without an interrupt chip: only the first could ever start; use irqchip 'kernel'"
        )
