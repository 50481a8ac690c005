"""The same programs in a guest, on an accelerator: entered by IRETQ from ring 0, left through the IDT."""

from __future__ import annotations

from differential.program import CODE, DATA, PAGE, REGISTERS, ROM, STACK, TIMEOUT, Outcome, Program

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
CS_SS = {64: (0x33, 0x2B), 32: (0x23, 0x2B), 16: (0x07, 0x17)}  # as Linux has them, and native.c
LDT_DATA = 0x0F
AM = 1 << 18  # CR0: alignment is checked where AC says so


class Guest:
    """A guest that executes one program after the other; `close()` it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._bed = Testbed(accelerator, 64)
        memory = self._bed.memory
        memory.write(testbed.PML4, _pages())
        segments = (
            code_segment(bits=16, dpl=3, base=CODE, limit=0xFFFF),
            *(data_segment(bits=16, dpl=3, base=base, limit=0xFFFF) for base in (DATA, STACK)),
        )
        memory.write(LDT, b"".join(encode_segment(segment) for segment in segments))
        for vector in set(range(256)) - FOR_RING3:
            memory.write(testbed.IDT + 16 * vector + 5, b"\x8e")  # DPL 0
        memory.write(ENTRY, assemble(f"fxrstor [{FPU_AREA:#x}]\niretq").code)
        self._states = {bits: self._state(bits) for bits in CS_SS}

    def close(self) -> None:
        """Release the guest."""
        self._bed.close()

    def run(self, program: Program) -> Outcome:
        """Execute a program to its first exception."""
        bed, state = self._bed, self._states[program.bits]
        for gpa, data in zip(
            (CODE, DATA, ROM, STACK), (program.page, program.data, program.rom, program.stack), strict=True
        ):
            bed.memory.write(gpa, data)
        bed.memory.write(FPU_AREA, program.fpu)
        for name, value in zip(REGISTERS, program.registers, strict=True):
            setattr(state.regs, name, value)
        cs, ss = CS_SS[program.bits]
        rip = 0 if program.bits == 16 else CODE
        for number, word in enumerate((rip, cs, program.flags, state.regs.rsp, ss)):
            bed.memory.write_int(FRAME + 8 * number, 8, word)
        state.regs.rsp, state.regs.rip, state.regs.rflags = FRAME, ENTRY, 2
        bed.vcpu.sregs, bed.vcpu.regs = state.sregs, state.regs
        return self._outcome(bed.go())

    def _outcome(self, exit: Exit) -> Outcome:
        bed = self._bed
        vector = TIMEOUT if isinstance(exit, Interrupted) else bed.vector(exit)
        assert vector is not None, exit
        state = bed.vcpu.state
        registers = [getattr(state.regs, name) for name in REGISTERS]
        error, rip, _, flags, rsp, _ = bed.frame() if vector in WITH_ERROR_CODE else [0, *bed.frame(5)]
        registers[REGISTERS.index("rsp")] = rsp
        data, stack = bed.memory.read(DATA, PAGE), bed.memory.read(STACK, PAGE)
        return Outcome(vector, error, state.sregs.cr2, tuple(registers), rip, flags, state.xsave[:512], data, stack)

    def _state(self, bits: int) -> CpuState:
        state, user = self._bed.initial_state(), self._bed.initial_state(3)
        data = Segment(selector=LDT_DATA, base=DATA, limit=0xFFFF, type=3, dpl=3) if bits == 16 else user.sregs.ds
        state.sregs.ds = state.sregs.es = data
        state.sregs.fs = state.sregs.gs = Segment(unusable=1, present=0)
        state.sregs.ldt = Segment(selector=0, base=LDT, limit=3 * 8 - 1, type=2, s=0)
        state.sregs.cr0 |= AM
        return state


def _pages() -> bytes:
    """All of the memory for ring 0, the four pages for ring 3, with their rights."""
    pages = PageTables(testbed.PML4)
    pages.map(0, 0, CODE, page_size=PAGE_4K)
    for gva, writable, executable in (
        (CODE, True, True),
        (DATA, True, False),
        (ROM, False, False),
        (STACK, True, False),
    ):
        pages.map(gva, gva, PAGE, page_size=PAGE_4K, user=True, writable=writable, executable=executable)
    return pages.encode()
