"""Guests without sense: random bytes as code, over random tables, beside devices that answer anything.

Whatever they do ends as an exit, an exception or an error that names it; memory outside of theirs is as it was.
"""

from __future__ import annotations

from random import Random
from threading import Timer

from differential.program import REGISTERS

from kvmpy.accel import testbed
from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import Hlt, Hypercall, InternalError, Interrupted, IoIn, MmioRead, Rdmsr, Shutdown, UnknownExit
from kvmpy.accel.testbed import Testbed
from kvmpy.cpu.state import CpuState
from kvmpy.memory import GuestMemory
from kvmpy.threads import start_thread

MEMORY, ROM, BEHIND, HOLE = 0x1C_0000, 0x1C_0000, 0x1D_0000, 0x1F_0000
PIECE = 64  # bytes
SECONDS, MOST_EXITS = 0.2, 60
BEFORE, AFTER = b"\xa5" * 0x1000, b"\x5a" * 0x1000
# What a guest tampers with: its interrupt table, descriptors, page tables, code.
TABLES = ((testbed.GDT, 0x48), (testbed.IDT, 0x800), (testbed.PML4, 0x4000), (testbed.CODE, 0x1000), (0, 0x400))

# Where registers point: to data, over the edges of memories, to nobody, to what the guest stands on.
EDGES = (ROM - 3, ROM + 0xFFE, ROM + 0x1FFD, BEHIND + 0x1FFC)
PLACES = (testbed.DATA, *EDGES, HOLE, testbed.IDT, testbed.CODE)


class Rubbish:
    """Runs one piece of rubbish after the other; `close()` it."""

    def __init__(self, accelerator: Accelerator, bits: int) -> None:
        self._accelerator, self._bits = accelerator, bits
        self._make()

    def _make(self) -> None:
        memory = GuestMemory(MEMORY)
        memory.add(ROM, 0x2000, readonly=True, name="rom")
        memory.add(BEHIND, 0x2000, name="behind")
        self._bed = Testbed(self._accelerator, self._bits, memory=memory)

    def close(self) -> None:
        """Release the guest."""
        self._bed.close()

    def run(self, seed: int) -> None:
        """Run PIECE random bytes and what comes of them; AssertionError when it is not an end that has a name."""
        random, bed = Random(seed), self._bed
        for gpa, data in testbed.layout(self._bits):
            bed.memory.write(gpa, data)
        bed.memory.write(ROM, BEFORE + AFTER)
        bed.memory.write(testbed.CODE, random.randbytes(PIECE))
        for at, length in TABLES:
            if random.random() < 0.2:
                bed.memory.write(at + random.randrange(length), random.randbytes(random.choice((1, 2, 8))))
        bed.vcpu.state = self._state(random)
        watchdog = Timer(SECONDS, bed.vcpu.kick)
        start_thread(watchdog, "a deadline")
        try:
            self._until_end(random)
        finally:
            watchdog.cancel()
            watchdog.join()
            bed.vcpu.forget_kick()
        assert bed.memory.read(ROM, 0x2000) == BEFORE + AFTER, f"seed {seed}: read-only memory was written"

    def _state(self, random: Random) -> CpuState:
        state = self._bed.initial_state(3 if self._bits != 16 and random.random() < 0.4 else 0)
        for name in REGISTERS:
            if name != "rsp":
                setattr(state.regs, name, random.choice((*PLACES, random.getrandbits(64), random.randrange(64))))
        if random.random() < 0.3:
            state.regs.rsp = random.choice(PLACES)
        state.regs.rflags = 2 | random.getrandbits(12) & 0xFFF & ~(1 << 3 | 1 << 5)
        state.sregs.cr4 |= random.choice((0, 0x600))
        return state

    def _until_end(self, random: Random) -> None:
        for _ in range(MOST_EXITS):
            exit = self._bed.vcpu.run()
            assert not isinstance(exit, UnknownExit), exit
            if isinstance(exit, MmioRead):
                exit.value = random.getrandbits(8 * exit.size)
            elif isinstance(exit, IoIn):
                exit.data = random.randbytes(exit.size * exit.count)
            elif isinstance(exit, Rdmsr):
                exit.fault = random.random() < 0.5
            elif isinstance(exit, Hypercall):
                exit.result = random.getrandbits(64)
            elif isinstance(exit, (Hlt, Shutdown, InternalError, Interrupted)):
                return
