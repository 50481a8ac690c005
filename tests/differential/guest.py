"""Programs in a guest of long mode, on an accelerator: entered by IRETQ, left through the IDT."""

from __future__ import annotations

from differential.program import CODE, DATA, PAGE, REGISTERS, ROM, STACK, TIMEOUT, Outcome, Program, World

from kvmpy.accel import testbed
from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import Exit, Interrupted
from kvmpy.accel.testbed import Testbed
from kvmpy.asm import assemble
from kvmpy.cpu.page_tables import PAGE_4K, PageTables
from kvmpy.cpu.segments import code_segment, data_segment, encode_segment
from kvmpy.cpu.state import CpuState, Segment

WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17}  # Intel SDM vol. 3, table 6-1
FOR_RING3 = {3, 4}  # the gates that a program may name in INT n: Linux has these (arch/x86/kernel/idt.c)
ENTRY, FPU_AREA, FRAME, LDT = 0xC000, 0xD000, 0xFF00, 0xDF00
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
# CS, SS and DS; in ring 3 as Linux has them, and native.c.
SELECTORS = {
    World.USER: {64: (0x33, 0x2B, 0x2B), 32: (0x23, 0x2B, 0x2B), 16: (0x07, 0x17, 0x0F)},
    World.KERNEL: {64: (0x18, 0x10, 0x10), 32: (0x08, 0x10, 0x10), 16: (0x04, 0x14, 0x0C)},
}
IST1 = 36  # in the TSS (Intel SDM vol. 3, figure 7-11)
EXCEPTIONS = 0xE800  # the top of the stack that they are delivered on, whatever the program's is
AM = 1 << 18  # CR0: alignment is checked where AC says so


class Guest:
    """A guest that executes one program after the other; `close()` it."""

    def __init__(self, accelerator: Accelerator, world: World = World.USER) -> None:
        self._world = world
        self._bed = Testbed(accelerator, 64)
        for gpa, data in image(world):
            self._bed.memory.write(gpa, data)
        self._states = {bits: self._state(bits) for bits in SELECTORS[world]}

    def close(self) -> None:
        """Release the guest."""
        self._bed.close()

    def run(self, program: Program) -> Outcome:
        """Execute a program to its first exception."""
        bed, state = self._bed, self._states[program.bits]
        for gpa, data in pages_of(program):
            bed.memory.write(gpa, data)
        for name, value in zip(REGISTERS, program.registers, strict=True):
            setattr(state.regs, name, value)
        state.regs.rsp, state.regs.rip, state.regs.rflags = FRAME, ENTRY, 2
        bed.vcpu.sregs, bed.vcpu.regs = state.sregs, state.regs
        return self._outcome(bed.go())

    def _outcome(self, exit: Exit) -> Outcome:
        bed = self._bed
        vector = TIMEOUT if isinstance(exit, Interrupted) else bed.vector(exit)
        assert vector is not None, exit
        state = bed.vcpu.state
        registers = [getattr(state.regs, name) for name in REGISTERS]
        top = testbed.STACK if self._world is World.USER else EXCEPTIONS
        has_error = state.regs.rsp == top - 48  # bytes: INT 13 has none
        error, rip, cs, flags, rsp, ss = (bed.memory.read_int(top - at, 8) for at in range(48, 0, -8))
        registers[REGISTERS.index("rsp")] = rsp
        data, stack = bed.memory.read(DATA, PAGE), bed.memory.read(STACK, PAGE)
        segments: tuple[tuple[int, int], ...] = ()
        if self._world is World.KERNEL:  # of ring 3 the selectors are the host's own elsewhere
            now = state.sregs
            selectors = (now.es.selector, cs, ss, now.ds.selector, now.fs.selector, now.gs.selector)
            segments = tuple((selector, 0) for selector in selectors)
        return Outcome(
            vector, error if has_error else 0, state.sregs.cr2, tuple(registers), rip, flags, state.xsave[:512],
            data, stack, (), segments,
        )  # fmt: skip

    def _state(self, bits: int) -> CpuState:
        state = self._bed.initial_state(3 if self._world is World.USER else 0)
        state.sregs.cs, state.sregs.ss = self._bed.initial_state().sregs.cs, self._bed.initial_state().sregs.ss
        if bits == 16:
            ring, selector = (3 if self._world is World.USER else 0), SELECTORS[self._world][16][2]
            state.sregs.ds = Segment(selector=selector, base=DATA, limit=0xFFFF, type=3, dpl=ring)
            state.sregs.es = state.sregs.ds
        state.sregs.fs = state.sregs.gs = Segment(unusable=1, present=0)
        state.sregs.ldt = Segment(selector=0, base=LDT, limit=3 * 8 - 1, type=2, s=0)
        state.sregs.cr0 |= AM
        return state


def image(world: World) -> list[tuple[int, bytes]]:
    """Return what lies where before any program does: tables, pages, and the code that enters one."""
    ring = 3 if world is World.USER else 0
    segments = (
        code_segment(bits=16, dpl=ring, base=CODE, limit=0xFFFF),
        *(data_segment(bits=16, dpl=ring, base=base, limit=0xFFFF) for base in (DATA, STACK)),
    )
    made = [*testbed.layout(64), (testbed.PML4, _pages(ring))]
    made += [(LDT, b"".join(encode_segment(segment) for segment in segments))]
    made += [(ENTRY, assemble(f"fxrstor [{FPU_AREA:#x}]\niretq").code)]
    if world is World.USER:  # DPL 0
        return made + [(testbed.IDT + 16 * vector + 5, b"\x8e") for vector in set(range(256)) - FOR_RING3]
    made += [(testbed.TSS + IST1, EXCEPTIONS.to_bytes(8, "little"))]
    return made + [(testbed.IDT + 16 * vector + 4, b"\x01") for vector in range(256)]


def pages_of(program: Program) -> list[tuple[int, bytes]]:
    """Return what a program needs in memory: its pages, floating-point registers, and the frame that IRETQ takes."""
    cs, ss, _ = SELECTORS[program.world][program.bits]
    rip, rsp = 0 if program.bits == 16 else CODE, program.registers[REGISTERS.index("rsp")]
    frame = b"".join(word.to_bytes(8, "little") for word in (rip, cs, program.flags, rsp, ss))
    pages = [(CODE, program.page), (DATA, program.data), (ROM, program.rom), (STACK, program.stack)]
    return [*pages, (FPU_AREA, program.fpu), (FRAME, frame)]


def _pages(ring: int) -> bytes:
    """All of the memory for ring 0, the four pages for programs, with their rights."""
    pages = PageTables(testbed.PML4)
    pages.map(0, 0, CODE, page_size=PAGE_4K)
    for gva, writable, executable in (
        (CODE, True, True),
        (DATA, True, False),
        (ROM, False, False),
        (STACK, True, False),
    ):
        pages.map(gva, gva, PAGE, page_size=PAGE_4K, user=ring == 3, writable=writable, executable=executable)
    return pages.encode()
