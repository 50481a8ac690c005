"""The architectural state of one x86 vCPU, as data, whoever executes it.

Values are plain integers of the register's own width; `kvmpy.cpu.flags` names their bits. The defaults are the state
after power-up or RESET (Intel SDM vol. 3, table 10-1), with CS:IP at the reset vector.
"""

from __future__ import annotations

from kvmpy.record import field, record

GENERAL_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


@record
class Registers:
    """The general-purpose registers, RIP and RFLAGS; 64 bits each."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0xFFF0
    rflags: int = 0x2


@record
class Segment:
    """A segment register with its hidden part (Intel SDM vol. 3, 3.4.3 and 3.4.5).

    `limit` is in bytes, already scaled by G; `type` is the descriptor's four type bits; `s` is 0 for system segments;
    `unusable` marks a segment that may not be used (a null selector).
    """

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    type: int = 3
    s: int = 1
    dpl: int = 0
    present: int = 1
    avl: int = 0
    l: int = 0  # noqa: E741 - the manual's own name for the 64-bit code flag
    db: int = 0
    g: int = 0
    unusable: int = 0


@record
class DescriptorTable:
    """GDTR or IDTR: linear base address and limit in bytes minus one."""

    base: int = 0
    limit: int = 0xFFFF


@record
class SystemRegisters:
    """Segments, descriptor tables, control registers, EFER and the APIC base, which None leaves as it is."""

    cs: Segment = field(default_factory=lambda: Segment(selector=0xF000, base=0xFFFF0000, type=0xB))
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=lambda: Segment(type=0xB, s=0))
    ldt: Segment = field(default_factory=lambda: Segment(type=0x2, s=0))
    gdt: DescriptorTable = field(default_factory=DescriptorTable)
    idt: DescriptorTable = field(default_factory=DescriptorTable)
    cr0: int = 0x60000010
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int | None = None


@record
class DebugRegisters:
    """DR0-DR3, DR6 and DR7."""

    db: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400


@record
class PendingEvents:
    """What the processor was about to deliver: an exception, an interrupt, an NMI, and what holds them back.

    An event is *injected* once its delivery has begun and *pending* before; an interrupt that is pending waits for IF,
    for which KVM without chips has no place. `shadow` is the interrupt shadow: bit 0
    after MOV SS, bit 1 after STI (Intel SDM vol. 3, 6.8.3).
    """

    exception: int | None = None
    exception_error_code: int | None = None
    exception_injected: bool = False
    exception_payload: int | None = None
    interrupt: int | None = None
    interrupt_soft: bool = False
    interrupt_pending: bool = False
    shadow: int = 0
    nmi_injected: bool = False
    nmi_pending: bool = False
    nmi_masked: bool = False
    sipi_vector: int = 0
    smm: bool = False
    smi_pending: bool = False
    triple_fault: bool = False


class MpState:
    """Whether a vCPU runs, in KVM's numbering (KVM_MP_STATE_* of <linux/kvm.h>)."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


@record
class CpuState:
    """Everything a vCPU holds; any accelerator can give it and take it.

    `msrs` maps index to value, `xcrs` XCR number to value; `xsave` is the XSAVE area in standard format (Intel SDM vol.
    1, 13.4), empty where it was never read; `lapic` is the 1 KiB APIC register page, None without an in-kernel APIC.
    """

    regs: Registers = field(default_factory=Registers)
    sregs: SystemRegisters = field(default_factory=SystemRegisters)
    debug: DebugRegisters = field(default_factory=DebugRegisters)
    msrs: dict[int, int] = field(default_factory=dict)
    xcrs: dict[int, int] = field(default_factory=dict)
    xsave: bytes = b""
    events: PendingEvents = field(default_factory=PendingEvents)
    lapic: bytes | None = None
    mp_state: int = MpState.RUNNABLE
