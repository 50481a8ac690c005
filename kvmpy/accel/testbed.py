"""A throwaway guest for a few instructions: every mode, an interrupt table that tells which vector arrived, and ring 3.

The probes of an accelerator's features run on it, and so do the tests on trapped instructions. Memory:

    0x00000  interrupt vector table (real mode)      0x0a000  page tables of user and test pages
    0x00800  GDT                                     0x0b000  handlers: vector n is at 0x0b000 + 4 n
    0x01000  PML4, PDPT, PD, PT: identity map        0x0c000  the code under test
    0x05000  IDT                                     0x0d000  its data
    0x06000  TSS with the I/O permission bitmap      0x0fff0  top of the ring-0 stack
                                                     0x18000  top of the ring-3 stack
"""

from __future__ import annotations

from functools import cache

from kvmpy.accel import exits
from kvmpy.accel.base import Closing
from kvmpy.cpu.modes import long_mode, protected_mode, real_mode
from kvmpy.cpu.page_tables import PAGE_4K, PageTables
from kvmpy.cpu.segments import Gate, Gdt, Idt, SystemType, Tss, code_segment, data_segment, tss_segment
from kvmpy.memory import GuestMemory
from kvmpy.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.base import Accelerator, Vcpu
    from kvmpy.accel.exits import Exit
    from kvmpy.cpu.state import CpuState, SystemRegisters

MEMORY = 2 << 20
GDT, IDT, TSS, HANDLERS, CODE, DATA = 0x800, 0x5000, 0x6000, 0xB000, 0xC000, 0xD000
PML4, PT = 0x1000, 0x4000
STACK, USER_STACK = 0xFFF0, 0x18000
IO_BITMAP = TSS + Tss.FIXED_SIZE
OPEN_PORTS = range(256)  # to ring 3 too, so that handlers and tests can exit from there

CODE32, DATA32, CODE64, USER_CODE32, USER_DATA, USER_CODE64, TSS_SELECTOR = 0x08, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x38
PRESENT_WRITABLE_USER = 0x7
KICK_LIMIT_SECONDS = 2.0


class Testbed(Closing):
    """A VM with one vCPU and 2 MiB (or `memory`: bytes, or regions), ready to run code of one mode (`bits` 16, 32, 64).

    Handlers write to the port that is their vector's number and halt, so a delivered exception n is `IoOut(port=n)`.

    >>> from kvmpy import SoftAccelerator, assemble
    >>> with SoftAccelerator() as soft, Testbed(soft, 64) as bed:
    ...     exit = bed.run(assemble("cli").code, ring=3)  # privileged: #GP, vector 13
    ...     bed.vector(exit), [hex(word) for word in bed.frame(2)]  # error code, RIP
    (13, ['0x0', '0xc000'])
    """

    __test__ = False  # pytest: this is no test class

    def __init__(
        self,
        accelerator: Accelerator,
        bits: int,
        *,
        memory: int | GuestMemory = MEMORY,
        chips: bool = False,
        patch_hypercalls: bool = False,
    ) -> None:
        self.bits = bits
        self.memory = GuestMemory(memory) if isinstance(memory, int) else memory
        try:
            self.vm = accelerator.create_vm(patch_hypercalls=patch_hypercalls)
        except BaseException:
            self.memory.close()
            raise
        try:
            self.vm.add_memory(self.memory)
            if chips:
                self.vm.create_chips()
            self.vcpu = self.vm.create_vcpu()
        except BaseException:
            self.close()
            raise
        for gpa, data in layout(bits):
            self.memory.write(gpa, data)

    def load(self, code: bytes, *, ring: int = 0) -> None:
        """Put code at `CODE` and set the vCPU to run it in ring 0 or 3."""
        self.memory.write(CODE, code)
        state = self.initial_state(ring)
        self.vcpu.regs, self.vcpu.sregs = state.regs, state.sregs

    def initial_state(self, ring: int = 0) -> CpuState:
        """Return the state that `load()` starts from."""
        state = {
            16: lambda: real_mode(CODE, stack=STACK),
            32: lambda: protected_mode(CODE, STACK, gdt=GDT),
            64: lambda: long_mode(CODE, STACK, PML4, gdt=GDT),
        }[self.bits]()
        if self.bits != 16:
            _load_tables(state.sregs, self.bits)
        if ring == 3:
            _enter_ring3(state, self.bits)
        return state

    def run(self, code: bytes, *, ring: int = 0) -> Exit:
        """Load code and run it to its first exit."""
        self.load(code, ring=ring)
        return self.go()

    def go(self, seconds: float = KICK_LIMIT_SECONDS) -> Exit:
        """Run to the next exit; a guest that does not exit is kicked after some seconds and gives Interrupted."""
        return run_for(self.vcpu, seconds)

    def vector(self, exit: Exit) -> int | None:
        """Return the vector whose handler ran, None when the exit is something else."""
        return exit.port if isinstance(exit, exits.IoOut) and exit.port < 256 else None

    def frame(self, count: int = 6) -> list[int]:
        """Return what lies on the stack inside a handler: error code if any, (E/R)IP, CS, FLAGS, (E/R)SP, SS."""
        width = self.bits // 8
        regs, sregs = self.vcpu.regs, self.vcpu.sregs
        top = regs.rsp + (sregs.ss.base if self.bits != 64 else 0)
        return [self.memory.read_int(top + i * width, width) for i in range(count)]

    def close(self) -> None:
        """Release the VM and its memory."""
        self.vm.close()
        self.memory.close()


def run_for(vcpu: Vcpu, seconds: float) -> Exit:
    """Run a vCPU to its next exit; when there is none in time it is kicked, and gives Interrupted."""
    import threading

    watchdog = threading.Timer(seconds, vcpu.kick)
    watchdog.daemon = True
    start_thread(watchdog, "a deadline")
    try:
        return vcpu.run()
    finally:
        watchdog.cancel()
        watchdog.join()


def _load_tables(sregs: SystemRegisters, bits: int) -> None:
    gdt = _gdt()
    sregs.gdt, sregs.idt = gdt.register(GDT), _idt(bits).register(IDT)
    sregs.tr = gdt.segment(TSS_SELECTOR)


def _enter_ring3(state: CpuState, bits: int) -> None:
    gdt = _gdt()
    state.sregs.cs = gdt.segment(USER_CODE64 if bits == 64 else USER_CODE32)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(state.sregs, name, gdt.segment(USER_DATA))
    state.regs.rsp = USER_STACK


@cache
def layout(bits: int) -> list[tuple[int, bytes]]:
    """Return what lies where: handlers, and the tables of the mode."""
    handlers = b"".join(bytes((0xE6, vector, 0xF4, 0xF4)) for vector in range(256))  # out vector, al; hlt; hlt
    blobs = [(HANDLERS, handlers)]
    if bits == 16:
        return [*blobs, (0, b"".join(_handler(vector).to_bytes(4, "little") for vector in range(256)))]
    blobs += [(GDT, _gdt().encode()), (IDT, _idt(bits).encode()), (TSS, _tss().encode(bits))]
    if bits == 64:
        pages = PageTables(PML4)
        pages.map(0, 0, MEMORY, page_size=PAGE_4K, user=True)
        blobs.append((PML4, pages.encode()))
    return blobs


def _handler(vector: int) -> int:
    return HANDLERS + 4 * vector


@cache
def _gdt() -> Gdt:
    """One for all modes: the TSS takes two entries, as long mode wants it; the second is null for the others."""
    gdt = Gdt(bits=64)
    for segment in (
        code_segment(),
        data_segment(),
        code_segment(bits=64),
        code_segment(dpl=3),
        data_segment(dpl=3),
        code_segment(bits=64, dpl=3),
        tss_segment(TSS, len(_tss().encode(64)) - 1),
    ):
        gdt.add(segment)
    return gdt


@cache
def _idt(bits: int) -> Idt:
    """Gates that ring 3 may use too."""
    idt = Idt(bits=bits)
    for vector in range(256):
        code = CODE64 if bits == 64 else CODE32
        idt.set(vector, Gate(code, _handler(vector), SystemType.INTERRUPT_GATE, dpl=3))
    return idt


@cache
def _tss() -> Tss:
    return Tss(stacks=[STACK, 0, 0], ss0=DATA32, open_ports=list(OPEN_PORTS))
