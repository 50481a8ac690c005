"""Machine: a PC with memory, vCPUs and devices, that runs until its guest stops."""

from __future__ import annotations

import threading
import time
import warnings
from functools import partial

from kvmpy.errors import ClosedError, ConfigError, HostError
from kvmpy.machine.board import Board
from kvmpy.machine.bus import Bus
from kvmpy.machine.chips import CPU_LIMIT, Sleepers, check_name, make_chips
from kvmpy.machine.dispatch import Dispatch, Handlers, OwnHandlers, halt
from kvmpy.machine.eventfds import Eventfds
from kvmpy.machine.events import Events, Gate, Timer
from kvmpy.machine.stop import Stop, StopKind
from kvmpy.machine.vcpu_thread import VcpuThread
from kvmpy.memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from kvmpy.accel.base import Accelerator, Vcpu
    from kvmpy.boot.plan import BootPlan
    from kvmpy.devices.base import Device

DEFAULT_MEMORY = 64 << 20
FIRST_TICK = 0.001
TICK = 0.02  # seconds between looks at vCPUs that stay in the guest
JOIN_SECONDS = 5.0
OWNED = ("gate", "eventfds", "events", "chips", "vm", "memory")  # what a machine closes, in this order


class Machine:
    """A PC on an accelerator. Use it as a context manager: closing stops the guest and releases everything.

    `output` gets what the guest writes to its serial port or debug console. It is called with the VM's lock held and
    must not block: for a descriptor that may be slow there is `kvmpy.machine.output`. `board` makes the devices.

    `memory` is in bytes; `irqchip` is "kernel", "python", "none" or "auto"; with `strict` an access that no device
    claims stops the machine. ConfigError for what cannot be built, HostError and KvmError when the host refuses.

    >>> from kvmpy import SoftAccelerator, assemble, plan_code
    >>> code = assemble("mov al, 'k'\\nout 0xe9, al\\nmov al, 7\\nout 0xf4, al", bits=16).code
    >>> printed = bytearray()
    >>> with SoftAccelerator() as soft, Machine(soft, memory=1 << 20, output=printed.extend) as machine:
    ...     machine.load(plan_code(code, memory=machine.memory.size))
    ...     stop = machine.run(timeout=5)
    >>> str(stop.kind), stop.code, printed
    ('exit', 7, bytearray(b'k'))
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        memory: int = DEFAULT_MEMORY,
        cpus: int = 1,
        irqchip: str = "auto",
        strict: bool = False,
        coalesce: bool = True,
        patch_hypercalls: bool = False,
        output: Callable[[bytes], None] = lambda _data: None,
        board: Callable[[Machine], Board] = Board,
    ) -> None:
        check_name(irqchip)
        if not 1 <= cpus <= CPU_LIMIT:
            raise ConfigError(f"{cpus} vCPUs: choose 1 to {CPU_LIMIT}")
        self.output = output
        self.accelerator = accelerator.name
        self.coalesce = coalesce
        self.stop_reason: Stop | None = None
        self.served = 0  # the vCPU whose access to memory a device sees
        self.dispatches: list[Dispatch] = []
        self._threads: list[VcpuThread] = []
        self._timer = Timer(lambda: None)
        self._state_lock = threading.RLock()  # re-entrant: `stop()` is called by signal handlers too
        self._closed = True  # until all is built: a signal may end this at any line, and `close()` needs all of it
        self._close_later = False
        self._runner: int | None = None  # the thread inside run()
        self._not_running = threading.Event()
        self._not_running.set()
        try:
            self.memory = GuestMemory(memory)
            self.vm = accelerator.create_vm(patch_hypercalls=patch_hypercalls)
            self.vm.add_memory(self.memory)
            self.chips = make_chips(irqchip, self.vm)
            if cpus > self.chips.cpu_limit:
                raise ConfigError(
                    f"{cpus} vCPUs with irqchip {irqchip!r}: only the first could ever start; choose another irqchip"
                )
            self.events = Events(self.vm.lock)
            self.eventfds = Eventfds(self.vm, self.chips, self.events)
            self.gate = Gate()
            self.sleepers = Sleepers(cpus, self.hold, self.gate.release)
            self.vcpus: list[Vcpu] = [
                self.vm.create_vcpu(i, cpus=cpus, local_apic=self.chips.gives_apics) for i in range(cpus)
            ]
            self.bus = Bus(strict=strict, changed=self._forget_found)
            self.own_handlers = OwnHandlers(self)
            self.handlers = Handlers(self.own_handlers.table(), self._forget_found)
            self.dispatches = [Dispatch(self, vcpu) for vcpu in self.vcpus]
            self.chips.attach(self)
            self.board = board(self)
            self._closed = False
        except BaseException:
            self._release()
            raise

    def _forget_found(self) -> None:
        """Handlers or devices changed: what the dispatches found before may be out of date."""
        for dispatch in self.dispatches:
            dispatch.clear()

    @property
    def devices(self) -> dict[str, Device]:
        """The devices on the bus by name."""
        return self.bus.devices()

    def load(self, plan: BootPlan) -> None:
        """Put a guest into memory and set the first vCPU's state."""
        self._check_open("loading a guest")
        for gpa, data in plan.blobs:
            self.memory.write(gpa, data)
        self.vcpus[0].regs = plan.state.regs
        self.vcpus[0].sregs = plan.state.sregs

    # Running

    def run(self, *, timeout: float | None = None, max_exits: int | None = None) -> Stop:
        """Run until the guest stops, `timeout` seconds have passed, or a vCPU has had `max_exits` exits.

        A machine can be run again: it goes on where it stopped. What a device, a handler or a callback raises comes out
        here, once the vCPUs have stopped. HostError when a vCPU's thread does not come back.
        """
        self._begin_run()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._start_vcpus(max_exits)
            self._tick(FIRST_TICK, [-1] * len(self.vcpus))
            if not self.events.run(self.is_stopping, deadline):
                self.stop(Stop(StopKind.TIMEOUT, "the guest did not stop in time; give it longer"))
        finally:
            self.stop(Stop(StopKind.QUIT, "the machine was told to stop"))
            self._end_run()
        stop: Stop | None = self.stop_reason
        assert stop is not None
        return stop

    def _begin_run(self) -> None:
        with self._state_lock:
            self._check_open("running")
            if self._runner is not None:
                raise ConfigError("running: the machine runs already; stop it first, or make another")
            if not all(thread.idle for thread in self._threads):
                raise self._stuck()
            self._runner = threading.get_ident()
            self._not_running.clear()
            for vcpu in self.vcpus:
                vcpu.forget_kick()
            self.stop_reason = None
            self.sleepers.forget()
            self.gate.shut_again()

    def _start_vcpus(self, max_exits: int | None) -> None:
        while len(self._threads) < len(self.vcpus):
            self._threads.append(VcpuThread(self.vcpus[len(self._threads)].id))
        for thread, dispatch in zip(self._threads, self.dispatches, strict=True):
            thread.start(partial(dispatch.serve, max_exits), self.events.wake)

    def _tick(self, pause: float, seen: list[int]) -> None:
        """Deliver collected writes of a guest that does not exit, and kick vCPUs that have not left it since last time.

        Those may be halted for good, and only a vCPU's own thread can tell.
        """
        self._timer = self.events.call_at(time.monotonic() + pause, lambda: self._tick(min(2 * pause, TICK), now))
        now = [vcpu.entries for vcpu in self.vcpus]
        if seen[0] >= 0:
            self.take_writes()
        for vcpu, before, count in zip(self.vcpus, seen, now, strict=True):
            if before == count:
                vcpu.kick()

    def _end_run(self) -> None:
        """Wait for the vCPUs, and leave no kick, timer or write behind."""
        try:
            self._wait_until_idle()
            for vcpu in self.vcpus:
                vcpu.forget_kick()
            with self.vm.lock:
                self.take_writes()
            for dispatch in self.dispatches:
                if dispatch.error is not None:
                    raise dispatch.error
        finally:
            self._timer.cancel()
            self._runner = None
            self._not_running.set()
            if self._close_later:
                self.close()

    def _wait_until_idle(self) -> None:
        """Run the loop until every vCPU's thread is idle; what a callback raises meanwhile comes out behind it."""
        deadline = time.monotonic() + JOIN_SECONDS
        failure: BaseException | None = None
        while not self._all_idle():
            try:
                if not self.events.run(self._all_idle, deadline):
                    raise self._stuck()
            except HostError:
                raise
            except BaseException as error:
                failure = failure or error
        if failure:
            raise failure

    def _all_idle(self) -> bool:
        return all(thread.idle for thread in self._threads)

    def _stuck(self) -> HostError:
        names = [f"{t.name} is in {t.where()}" for t in self._threads if not t.idle]
        return HostError(
            f"the machine does not stop: {', '.join(names)}; a device must not block. Its memory stays mapped"
        )

    def is_stopping(self) -> bool:
        """Tell whether a stop reason is known."""
        return self.stop_reason is not None

    def stop(self, stop: Stop) -> None:
        """Stop the machine; the first reason counts. Any thread may call it, devices and signal handlers too.

        When the machine is closed nothing happens.
        """
        with self._state_lock:
            if self._closed:
                return
            if self.stop_reason is None:
                self.stop_reason = stop
            for vcpu in self.vcpus:
                vcpu.kick()
            self.gate.open_for_good()
            self.chips.wake_all()
            self.events.wake()

    def halted(self, vcpu: Vcpu) -> None:
        """Stop, for every vCPU sleeps and nothing can wake one."""
        self.stop(halt(vcpu))

    def hold(self, who: str) -> None:
        """Keep the vCPUs out of the guest until `gate.release(who)`. Any thread may call it; they come out soon."""
        self.gate.hold(who)
        if self.stop_reason is not None:
            self.gate.open_for_good()
        for vcpu in self.vcpus:
            vcpu.kick()

    # Devices

    def take_writes(self) -> None:
        """Hand collected writes to their devices; the caller holds the lock."""
        while (write := self.vm.take_writes()) is not None:
            address, size, is_port, data = write
            space = self.bus.ports if is_port else self.bus.mmio
            space.write_many(address, size, data)

    def send(self, data: bytes) -> None:
        """Give bytes to the guest's serial port; what it has no room for waits. Any thread may call it, devices too."""
        self._check_open("sending input")
        self.board.send(data)

    # The end

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what}: the machine is closed; make a new one")

    def close(self) -> None:
        """Stop the guest, wait for its vCPUs, and release everything; harmless when repeated. Any thread may call it.

        A handler, a device or a callback of the running machine only asks for it: `run()` closes when it ends.
        HostError when a vCPU's thread does not end; memory and VM stay then.
        """
        if self._runner == threading.get_ident() or any(thread.is_current for thread in self._threads):
            self._close_later = True
            self.stop(Stop(StopKind.QUIT, "the machine was closed"))
            return
        if not self._claim_the_end():
            return
        while self._threads:
            self._threads.pop().end(JOIN_SECONDS)
        for device in self.devices.values():
            device.close()
        self._release()

    def _claim_the_end(self) -> bool:
        """Stop the guest and wait until nothing runs; return whether it is ours to release everything.

        That nothing runs and that nothing will is one decision, under one lock: a run may begin at any moment before.
        """
        deadline = time.monotonic() + JOIN_SECONDS + 1  # run() itself gives up after JOIN_SECONDS
        while True:
            with self._state_lock:
                if self._closed:
                    return False
                if self._runner is None and self._all_idle():
                    self._closed = True
                    return True
            if time.monotonic() > deadline:
                raise self._stuck()
            self.stop(Stop(StopKind.QUIT, "the machine was closed"))
            self._not_running.wait(TICK)

    def _release(self) -> None:
        with self._state_lock:
            self._closed = True
            for name in OWNED:
                if (part := getattr(self, name, None)) is not None:
                    part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)
            self.close()
