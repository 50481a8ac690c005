"""The contract every accelerator keeps: Accelerator gives Vm, Vm gives Vcpu, Vcpu gives Exits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kvmpy.errors import ConfigError
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sized
    from typing import Self

    from kvmpy.accel.exits import Exit
    from kvmpy.accel.packed import PastExit
    from kvmpy.accel.probe import Features
    from kvmpy.cpu.cpuid import CpuidTable
    from kvmpy.cpu.state import CpuState, Registers, SystemRegisters
    from kvmpy.errors import KvmpyError
    from kvmpy.kvm.lock import Lock
    from kvmpy.memory import GuestMemory


DEBUG_REGISTERS = 4  # what breakpoints and watchpoints share (Intel SDM vol. 3, 17.2.1)
WATCH_SIZES = (1, 2, 4, 8)


@record
class Watchpoint:
    """Bytes at a linear address, aligned to their number, whose writing, or also `reads`, is a Debug exit."""

    address: int
    size: int = 1
    reads: bool = False


def check_debug_registers(breakpoints: Sized, watchpoints: Collection[Watchpoint]) -> None:
    """Raise ConfigError when the processor could not watch all of these."""
    count = len(breakpoints) + len(watchpoints)
    if count > DEBUG_REGISTERS:
        raise ConfigError(f"{count} breakpoints and watchpoints: the processor has four debug registers; remove some")
    for point in watchpoints:
        if point.size not in WATCH_SIZES or point.address % point.size:
            raise ConfigError(f"{point!r}: 1, 2, 4 or 8 bytes can be watched, at a multiple of their number")


class Closing(ABC):
    """Something that holds descriptors or mappings: a context manager, closed once or more often."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Vcpu(Closing):
    """One virtual CPU. Only one thread at a time may use it, except for `kick()` and `entries`.

    `enter()`, `run()`, `step()`, `complete()` and `exits()` are views of one state, so that anyone may stop after any
    exit, look at the registers, change them, and go on by any of them. What an exit left to do is done first: the
    answer that was filled into a typed exit, the second half of an access, registers that were assigned between two
    halves, a breakpoint to step over.
    """

    @property
    @abstractmethod
    def id(self) -> int:
        """The number of the vCPU in its VM, which is its initial APIC id."""

    @abstractmethod
    def enter(self) -> int:
        """Run the guest until it exits and return the exit as `kvmpy.accel.packed` packs it; errors are packed too."""

    @abstractmethod
    def exits(self, limit: int) -> Iterator[int]:
        """Enter the guest up to `limit` times and yield each packed exit: the hot path.

        It leaves out what `enter()` does first, and yields ATTENTION instead when there is something: call `enter()`.
        """

    @abstractmethod
    def share(self, lock: Lock | None) -> None:
        """Name the lock that the thread which enters holds; it is free while the guest runs. None: there is none."""

    @abstractmethod
    def answer(self, value: int) -> None:
        """Give the single port or MMIO read that has just exited its value; without it the guest reads all ones."""

    @abstractmethod
    def typed_exit(self, code: int) -> Exit:
        """Return the typed form of the packed exit just received. What is filled into it is the answer to a read."""

    @abstractmethod
    def run_error(self, code: int) -> KvmpyError:
        """Return the error behind a packed exit whose reason is ERROR."""

    @abstractmethod
    def run(self) -> Exit:
        """Run the guest until it exits; raise what `enter()` only packs. The exit is filled in to answer its read."""

    @abstractmethod
    def step(self) -> Exit:
        """Run one instruction: a Debug exit, or the exit the instruction itself caused."""

    @abstractmethod
    def complete(self) -> None:
        """Finish an access that has exited, without running further, so that the registers are those behind it."""

    @abstractmethod
    def kick(self) -> None:
        """Make the vCPU leave the guest, now or at its next entry (Interrupted). Any thread may call it.

        While a kick is under way no other is sent.
        """

    @abstractmethod
    def forget_kick(self) -> None:
        """Take back a kick that has not been seen; only while no thread is in the guest."""

    @abstractmethod
    def recent(self) -> list[PastExit]:
        """Return the last exits, oldest first."""

    @property
    @abstractmethod
    def entries(self) -> int:
        """How often the guest was entered; any thread may read it."""

    @property
    @abstractmethod
    def mmio(self) -> tuple[int, int]:
        """The address and the value written of the current MMIO exit."""

    @abstractmethod
    def io_data(self) -> memoryview:
        """Return the items of the current string I/O exit, writable for a read."""

    @property
    @abstractmethod
    def regs(self) -> Registers:
        """A copy of the general registers; assign it back to change them.

        At an access that has exited RIP may be before or behind the instruction: `complete()` settles it.
        """

    @regs.setter
    @abstractmethod
    def regs(self, regs: Registers) -> None: ...

    @property
    @abstractmethod
    def sregs(self) -> SystemRegisters:
        """A copy of segments, tables and control registers; assign it back to change them."""

    @sregs.setter
    @abstractmethod
    def sregs(self, sregs: SystemRegisters) -> None: ...

    @property
    @abstractmethod
    def state(self) -> CpuState:
        """The whole architectural state. Reading or setting it first finishes an access that has exited."""

    @state.setter
    @abstractmethod
    def state(self, state: CpuState) -> None: ...

    @property
    @abstractmethod
    def cr8(self) -> int:
        """The task priority class, 0 to 15 (Intel SDM vol. 3, 10.8.6), as the guest left it; cheaper than `sregs`.

        It is the vCPU's own where no local APIC of the accelerator has it. When the guest lowers it, that is SetTpr.
        """

    @cr8.setter
    @abstractmethod
    def cr8(self, value: int) -> None: ...

    @property
    @abstractmethod
    def breakpoints(self) -> list[int]:
        """Linear addresses at which `run()` gives a Debug exit before the instruction; at most four."""

    @breakpoints.setter
    @abstractmethod
    def breakpoints(self, addresses: Iterable[int]) -> None: ...

    @property
    @abstractmethod
    def watchpoints(self) -> list[Watchpoint]:
        """Data whose access gives a Debug exit behind the instruction; with the breakpoints at most four.

        Which one is told by DR6: the breakpoints' bits come first, in their order.
        """

    @watchpoints.setter
    @abstractmethod
    def watchpoints(self, points: Iterable[Watchpoint]) -> None: ...

    @property
    @abstractmethod
    def cpuid(self) -> CpuidTable:
        """The vCPU's CPUID table; assign an edited one before the first run."""

    @cpuid.setter
    @abstractmethod
    def cpuid(self, table: CpuidTable) -> None: ...

    @property
    @abstractmethod
    def interruptible(self) -> bool:
        """True when the guest would take an interrupt now: IF is set, nothing holds it back, none is queued."""

    @property
    @abstractmethod
    def interrupt_window(self) -> bool:
        """While it is True, `run()` gives IrqWindowOpen as soon as the guest is interruptible."""

    @interrupt_window.setter
    @abstractmethod
    def interrupt_window(self, on: bool) -> None: ...

    @abstractmethod
    def interrupt(self, vector: int) -> None:
        """Deliver an external interrupt as soon as the guest takes one; only in a VM without interrupt chips.

        Raises ConfigError where one waits already; see `interruptible`.
        """

    @abstractmethod
    def software_interrupt(self, vector: int) -> None:
        """Deliver `vector` as INT n does: whatever IF is, with RIP as it stands as the return address.

        Whoever carries out an INT n first moves RIP behind it. The gate's DPL is the caller's to check (Intel SDM vol.
        3, 6.12.1.2).
        """

    @abstractmethod
    def nmi(self) -> None:
        """Deliver a non-maskable interrupt."""

    @abstractmethod
    def raise_exception(self, vector: int, error_code: int | None = None, *, cr2: int | None = None) -> None:
        """Deliver an exception at the next entry; `cr2` is the address of a page fault."""

    @abstractmethod
    def translate(self, gva: int) -> int | None:
        """Return the GPA behind a linear address as the accelerator sees it, None when it is not mapped."""

    @abstractmethod
    def halted(self) -> bool:
        """True when the vCPU waits in HLT with interrupts off, or was never started: only NMI or INIT could wake it."""


def check_features(table: CpuidTable, there: Collection[str], who: str) -> None:
    """Raise ConfigError when a CPUID table announces a feature that `who` lacks."""
    lacking = [name for name in table.features() if name not in there]
    if lacking:
        raise ConfigError(f"CPUID: {who} has no {', '.join(lacking)}; leave it out with disable()")


class Vm(Closing):
    """A virtual machine: memory, interrupt chips, vCPUs, added in this order."""

    has_chips: bool
    offers_chips: bool
    """Whether `create_chips()` can be used."""
    lock: Lock

    @abstractmethod
    def add_memory(self, memory: GuestMemory) -> None:
        """Give the guest all regions of `memory`, which must outlive the VM."""

    @abstractmethod
    def create_chips(self) -> None:
        """Give the VM the accelerator's own PIC, IOAPIC, local APICs and PIT, before its first vCPU."""

    @abstractmethod
    def create_vcpu(self, vcpu_id: int = 0, *, cpus: int = 1, local_apic: bool = False) -> Vcpu:
        """Create a vCPU of a machine with `cpus` of them, in the state after RESET, with the host's CPUID.

        Where the VM has no interrupt chips of its own, `local_apic` says that others give the vCPU a local APIC: CPUID
        and IA32_APIC_BASE tell of it, and of nothing that only the accelerator's own could do.
        """

    @abstractmethod
    def set_irq(self, gsi: int, level: int) -> None:
        """Drive a line of the accelerator's interrupt chips, which the VM must have."""

    @abstractmethod
    def irq_on(self, fd: int, gsi: int, on: bool) -> bool:
        """Pulse a line of the chips whenever the eventfd is signalled; return whether the accelerator can."""

    @abstractmethod
    def notify(self, fd: int, address: int, size: int, on: bool, *, port: bool, match: int | None = None) -> bool:
        """Signal the eventfd when the guest writes `size` bytes (`match`, if given) to the address, and do not exit.

        Return whether the accelerator can.
        """

    @abstractmethod
    def coalesce(self, port: int, on: bool) -> bool:
        """Collect one-byte writes to the port instead of exiting for each; return whether the accelerator can."""

    @abstractmethod
    def take_writes(self) -> tuple[int, int, bool, bytes] | None:
        """Return the oldest collected writes to one address: (address, size, is a port, data), or None."""

    @abstractmethod
    def exit_on_msrs(self, indices: Iterable[int]) -> None:
        """Let the guest's accesses to these MSRs exit (Rdmsr, Wrmsr), and to those that there are not."""

    @abstractmethod
    def dirty_pages(self) -> list[int]:
        """Return the GPAs of the pages written since the last call; the first call starts the log, and returns none."""


class Accelerator(Closing):
    """Something that executes x86 code: `name` is what users call it, `features` the probed truth about it."""

    name: str
    instead_of: str = ""
    """Why this one was chosen and not another, when the choice was left to kvmpy; else empty."""

    @abstractmethod
    def create_vm(self, *, patch_hypercalls: bool = False) -> Vm:
        """Create an empty VM.

        With `patch_hypercalls` KVM rewrites VMCALL to VMMCALL, or back, in guest memory, as the processor has it; some
        hosts never stop doing so. Without, the one that the processor lacks is #UD.
        """

    @property
    @abstractmethod
    def features(self) -> Features:
        """What this host's accelerator does right; each is probed when first asked for."""
