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

import struct

from kvmpy.accel import exits
from kvmpy.accel.base import Closing
from kvmpy.cpu.modes import long_mode, protected_mode, real_mode
from kvmpy.cpu.state import DescriptorTable, Segment
from kvmpy.memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.base import Accelerator, Vcpu
    from kvmpy.accel.exits import Exit
    from kvmpy.cpu.state import CpuState

MEMORY = 2 << 20
GDT, IDT, TSS, HANDLERS, CODE, DATA = 0x800, 0x5000, 0x6000, 0xB000, 0xC000, 0xD000
PML4, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000
STACK, USER_STACK = 0xFFF0, 0x18000
TSS_LIMIT = 0x67 + 0x2000 + 1
IO_BITMAP = TSS + 0x68

CODE32, DATA32, CODE64, USER_CODE32, USER_DATA, USER_CODE64, TSS_SELECTOR = 0x08, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x38
# Flat descriptors, accessed (Intel SDM vol. 3, 3.4.5); the TSS descriptor is busy (7.2.2).
DESCRIPTORS = (
    0,
    0x00CF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00AF9B000000FFFF,
    0x00CFFB000000FFFF,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
    0x0000_8B00_0000_0000 | TSS << 16 | TSS_LIMIT,
    0,
)
PRESENT_WRITABLE_USER = 0x7
INTERRUPT_GATE_DPL3 = 0xEE
KICK_LIMIT_SECONDS = 2.0


class Testbed(Closing):
    """A VM with one vCPU and 2 MiB, ready to run code of one mode (`bits` 16, 32 or 64).

    Handlers write to the port that is their vector's number and halt, so a delivered exception n is `IoOut(port=n)`.
    """

    __test__ = False  # pytest: this is no test class

    def __init__(
        self, accelerator: Accelerator, bits: int, *, chips: bool = False, patch_hypercalls: bool = False
    ) -> None:
        self.bits = bits
        self.memory = GuestMemory(MEMORY)
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
        for gpa, data in LAYOUT[bits]():
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
            state.sregs.gdt = DescriptorTable(GDT, 8 * len(DESCRIPTORS) - 1)
            state.sregs.idt = DescriptorTable(IDT, 0xFFF if self.bits == 64 else 0x7FF)
            state.sregs.tr = Segment(TSS_SELECTOR, TSS, TSS_LIMIT, type=0xB, s=0)
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
    watchdog.start()
    try:
        return vcpu.run()
    finally:
        watchdog.cancel()
        watchdog.join()


def _enter_ring3(state: CpuState, bits: int) -> None:
    code = USER_CODE64 if bits == 64 else USER_CODE32
    state.sregs.cs = Segment(code, 0, 0xFFFFFFFF, type=0xB, dpl=3, db=int(bits == 32), l=int(bits == 64), g=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(state.sregs, name, Segment(USER_DATA, 0, 0xFFFFFFFF, type=0x3, dpl=3, db=1, g=1))
    state.regs.rsp = USER_STACK


def _handlers() -> tuple[int, bytes]:
    """OUT to the port numbered like the vector, then HLT."""
    return HANDLERS, b"".join(bytes((0xE6, vector, 0xF4, 0xF4)) for vector in range(256))


def _layout16() -> list[tuple[int, bytes]]:
    return [_handlers(), (0, b"".join(struct.pack("<HH", HANDLERS + 4 * n, 0) for n in range(256)))]


def _tables() -> list[tuple[int, bytes]]:
    return [_handlers(), (GDT, struct.pack(f"<{len(DESCRIPTORS)}Q", *DESCRIPTORS))]


def _layout32() -> list[tuple[int, bytes]]:
    gates = b"".join(
        struct.pack("<HHBBH", HANDLERS + 4 * n, CODE32, 0, INTERRUPT_GATE_DPL3, 0) for n in range(256)
    )  # fmt: skip
    # ESP0 and SS0 (Intel SDM vol. 3, figure 7-2); the I/O map base is the last word.
    tss = struct.pack("<III", 0, STACK, DATA32).ljust(0x66, b"\0") + struct.pack("<H", 0x68)
    return [*_tables(), (IDT, gates), (TSS, _with_bitmap(tss))]


def _layout64() -> list[tuple[int, bytes]]:
    gates = b"".join(
        struct.pack("<HHBBHII", HANDLERS + 4 * n, CODE64, 0, INTERRUPT_GATE_DPL3, 0, 0, 0) for n in range(256)
    )
    # RSP0 (Intel SDM vol. 3, figure 7-11).
    tss = struct.pack("<IQ", 0, STACK).ljust(0x66, b"\0") + struct.pack("<H", 0x68)
    pages = b"".join(struct.pack("<Q", page << 12 | PRESENT_WRITABLE_USER) for page in range(MEMORY >> 12))
    upper = [(at, struct.pack("<Q", at + 0x1000 | PRESENT_WRITABLE_USER)) for at in (PML4, PDPT, PD)]
    return [*_tables(), (IDT, gates), (TSS, _with_bitmap(tss)), *upper, (PT, pages)]


def _with_bitmap(tss: bytes) -> bytes:
    """Ports below 256 are open to ring 3, so that handlers and tests can exit from there; the rest are closed."""
    return tss + b"\0" * 32 + b"\xff" * (0x2000 - 32 + 1)


LAYOUT = {16: _layout16, 32: _layout32, 64: _layout64}
