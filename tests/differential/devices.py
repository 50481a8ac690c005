"""Programs of ring 0 on an accelerator, where devices are: what exits is answered, and part of what is compared."""

from __future__ import annotations

from threading import Timer

from differential.guest import SEGMENTS, WITH_ERROR_CODE
from differential.program import CODE, DATA, DEVICE, HALTED, HLT, PAGE, REGISTERS, ROM, STACK, TIMEOUT, Outcome, Program

from kvmpy.accel import testbed
from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Shutdown
from kvmpy.accel.testbed import Testbed
from kvmpy.cpu.page_tables import PAGE_4K, PageTables
from kvmpy.cpu.state import CpuState, Segment
from kvmpy.memory import GuestMemory
from kvmpy.threads import start_thread

RAM_BEHIND, END = 0x118000, STACK + PAGE
MOST_EXITS, SECONDS = 400, 2.0
TRIPLE_FAULT = 257


class DeviceGuest:
    """A guest that executes one program after the other; `close()` it."""

    def __init__(self, accelerator: Accelerator, bits: int) -> None:
        memory = GuestMemory(ROM)
        memory.add(ROM, PAGE, readonly=True, name="rom")
        memory.add(RAM_BEHIND, END - RAM_BEHIND, name="behind")
        self._bed = Testbed(accelerator, bits, memory=memory)
        memory.write(testbed.HANDLERS, HLT * 4 * 256)  # which of them halts is the vector
        if bits == 64:
            pages = PageTables(testbed.PML4)
            pages.map(0, 0, DEVICE + PAGE, page_size=PAGE_4K)
            pages.map(RAM_BEHIND, RAM_BEHIND, END - RAM_BEHIND, page_size=PAGE_4K)
            memory.write(testbed.PML4, pages.encode())

    def close(self) -> None:
        """Release the guest."""
        self._bed.close()

    def run(self, program: Program) -> Outcome:
        """Execute a program to its end."""
        bed = self._bed
        for gpa, data in zip(
            (CODE, DATA, ROM, STACK), (program.page, program.data, program.rom, program.stack), strict=True
        ):
            bed.memory.write(gpa, data)
        bed.memory.write(CODE + PAGE, bytes(DATA - CODE - PAGE))
        bed.vcpu.state = self._state(program)
        watchdog = Timer(SECONDS, bed.vcpu.kick)
        start_thread(watchdog, "a deadline")
        try:
            last, exits = self._answer_all()
        finally:
            watchdog.cancel()
            watchdog.join()
        return self._outcome(last, exits)

    def _state(self, program: Program) -> CpuState:
        state = self._bed.initial_state()
        for name, value in zip(REGISTERS, program.registers, strict=True):
            setattr(state.regs, name, value)
        state.regs.rip, state.regs.rflags = CODE, program.flags
        state.xsave = program.fpu + (3).to_bytes(8, "little") + bytes(56)  # x87 and SSE are there (SDM vol. 1, 13.4.2)
        if program.bits == 16:
            state.regs.rip = 0
            state.sregs.cs = Segment(selector=0, base=CODE, limit=0xFFFF, type=0xB)
            state.sregs.ds = state.sregs.es = Segment(selector=0, base=DATA, limit=0xFFFF)
            state.sregs.ss = Segment(selector=0, base=STACK, limit=0xFFFF)
        return state

    def _answer_all(self) -> tuple[Exit, list[str]]:
        """Run to an exit that is no access; every device answers by its address, so that the order does not matter."""
        exits: list[str] = []
        while True:
            exit = self._bed.vcpu.run()
            if isinstance(exit, MmioRead):
                exit.value = int.from_bytes(bytes((exit.gpa + i) * 7 & 0x7F for i in range(exit.size)), "little")
                exits.append(f"read {exit.size} at {exit.gpa:#x}")
            elif isinstance(exit, MmioWrite):
                exits.append(f"write {exit.value:#x} ({exit.size}) at {exit.gpa:#x}")
            elif isinstance(exit, IoIn):
                exit.data = b"\x5a" * exit.size * exit.count
                exits += [f"in {exit.size} from {exit.port:#x}"] * exit.count
            elif isinstance(exit, IoOut):
                items = [exit.data[at : at + exit.size] for at in range(0, len(exit.data), exit.size)]
                exits += [f"out {item.hex()} to {exit.port:#x}" for item in items]
            else:
                return exit, exits
            if len(exits) > MOST_EXITS:
                return exit, exits

    def _outcome(self, last: Exit, exits: list[str]) -> Outcome:
        bed, state = self._bed, self._bed.vcpu.state
        registers = [getattr(state.regs, name) for name in REGISTERS]
        error, rip, flags, vector = 0, state.regs.rip, state.regs.rflags, TIMEOUT
        if isinstance(last, Shutdown):
            vector = TRIPLE_FAULT
        elif isinstance(last, Hlt):
            vector = (
                HALTED if rip >= CODE or (bed.bits == 16 and state.sregs.cs.base) else (rip - testbed.HANDLERS) // 4
            )
        if 0 <= vector < TIMEOUT:
            rip, flags, error = self._frame(vector, state, registers)
        data, stack = bed.memory.read(DATA, PAGE), self._stack(vector, state)
        segments = tuple((s.selector, s.base) for s in (getattr(state.sregs, name) for name in SEGMENTS))
        return Outcome(
            vector, error, state.sregs.cr2, tuple(registers), rip, flags, state.xsave[:512], data, stack,
            tuple(exits), segments,
        )  # fmt: skip

    def _frame_at(self, vector: int, state: CpuState) -> tuple[int, int]:
        """Return where the words of an exception lie that arrived, and how many; none where there is no stack."""
        count = (vector in WITH_ERROR_CODE and self._bed.bits != 16) + (5 if self._bed.bits == 64 else 3)
        top = (STACK if self._bed.bits == 16 else 0) + state.regs.rsp
        return (top, count) if 0 <= vector < TIMEOUT and STACK <= top < STACK + PAGE - 8 * count else (STACK, 0)

    def _frame(self, vector: int, state: CpuState, registers: list[int]) -> tuple[int, int, int]:
        """Return what a handler finds: RIP, flags and error code."""
        width = self._bed.bits // 8
        top, count = self._frame_at(vector, state)
        if not count:
            return 0, 0, 0
        words = [self._bed.memory.read_int(top + i * width, width) for i in range(count)]
        registers[4] = words[-2] if self._bed.bits == 64 else state.regs.rsp + width * count
        has_error = len(words) % 2 == 0
        rip, _, flags = words[has_error : has_error + 3]
        return rip, flags, words[0] if has_error else 0

    def _stack(self, vector: int, state: CpuState) -> bytes:
        """Return the stack without the frame, whose words are compared by themselves."""
        stack = bytearray(self._bed.memory.read(STACK, PAGE))
        top, count = self._frame_at(vector, state)
        size = count * self._bed.bits // 8
        stack[top - STACK : top - STACK + size] = bytes(size)
        return bytes(stack)
