"""Why a vCPU stopped running guest code: a typed sum, named as KVM names its exits.

The answer to a guest's read is filled into the exit itself (`exit.data` or `exit.value`) before the vCPU runs again.
"""

from __future__ import annotations

from kvmpy.record import field, record


@record
class IoIn:
    """The guest reads `count` items of `size` bytes (1, 2, 4) from a port; fill `data`, all ones until then."""

    port: int
    size: int
    count: int = 1
    data: bytes = b""


@record
class IoOut:
    """The guest writes `count` items of `size` bytes to a port."""

    port: int
    size: int
    data: bytes
    count: int = 1

    @property
    def value(self) -> int:
        """The first item as an unsigned integer."""
        return int.from_bytes(self.data[: self.size], "little")


@record
class MmioRead:
    """The guest reads `size` bytes (1 to 8) where there is no memory; fill `value`, all ones until then."""

    gpa: int
    size: int
    value: int = 0


@record
class MmioWrite:
    """The guest writes `size` bytes (1 to 8) where there is no memory it may write."""

    gpa: int
    size: int
    value: int


@record
class Hlt:
    """HLT, and nothing inside the accelerator that could wake the vCPU."""


@record
class Shutdown:
    """A triple fault: the processor gave up (Intel SDM vol. 3, 6.15, interrupt 8)."""


@record
class Debug:
    """A single step, a breakpoint or a watchpoint; `dr6` tells which, `pc` where."""

    exception: int
    pc: int
    dr6: int = 0
    dr7: int = 0


@record
class Rdmsr:
    """RDMSR of a filtered or unknown MSR; fill `value`, or set `fault` for #GP."""

    index: int
    value: int = 0
    fault: bool = False


@record
class Wrmsr:
    """WRMSR to a filtered or unknown MSR; set `fault` for #GP."""

    index: int
    value: int
    fault: bool = False


@record
class Hypercall:
    """VMCALL or VMMCALL that user space answers in `result`."""

    number: int
    arguments: list[int] = field(default_factory=list)
    result: int = 0


@record
class FailEntry:
    """The processor refused the state it should enter with; `reason` is the hardware's code."""

    reason: int


@record
class InternalError:
    """KVM could not go on. For `suberror` 1 it is an instruction it cannot emulate, with its bytes where known."""

    suberror: int
    data: list[int] = field(default_factory=list)
    instruction: bytes = b""


@record
class SystemEvent:
    """The guest asked for shutdown (1), reset (2) or reported a crash (3)."""

    kind: int
    data: list[int] = field(default_factory=list)


@record
class Interrupted:
    """The vCPU was kicked or its thread got a signal; the guest did nothing."""


@record
class IrqWindowOpen:
    """The guest can now take the interrupt that `request_interrupt_window` waits for."""


@record
class SetTpr:
    """The guest has lowered its task priority, CR8, of which the accelerator's chips know nothing: see `Vcpu.cr8`."""


@record
class DirtyRingFull:
    """The ring of dirty pages must be harvested before the vCPU can go on."""


@record
class UnknownExit:
    """A reason kvmpy has no name for."""

    reason: int


Exit = (
    IoIn
    | IoOut
    | MmioRead
    | MmioWrite
    | Hlt
    | Shutdown
    | Debug
    | Rdmsr
    | Wrmsr
    | Hypercall
    | FailEntry
    | InternalError
    | SystemEvent
    | Interrupted
    | IrqWindowOpen
    | SetTpr
    | DirtyRingFull
    | UnknownExit
)
