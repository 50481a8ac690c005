"""Guests without sense on the software CPU, and devices that are none: an end that has a name, and nothing broken."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing

import pytest
from differential.rubbish import Rubbish
from machines import loaded

from kvmpy import SoftAccelerator, StopKind
from kvmpy.accel.exits import Hlt, MmioRead
from kvmpy.accel.testbed import CODE, DATA, Testbed
from kvmpy.asm import assemble
from kvmpy.devices.base import Device

MODES = (16, 32, 64)
PIECES = 150


@pytest.mark.parametrize("bits", MODES)
def test_random_bytes_end_as_something(bits: int) -> None:
    first = random.SystemRandom().getrandbits(32)
    print(f"seed {first}")
    with SoftAccelerator() as soft, closing(Rubbish(soft, bits)) as rubbish:
        for seed in range(first, first + PIECES):
            rubbish.run(seed)


@pytest.mark.parametrize("source", ["fadd st(0)", "pmovmskb eax, xmm0", "mov rax, cr0", "movq xmm0, xmm1"])
def test_a_long_block_of_instructions_that_cost_the_engine_variables(source: str) -> None:
    """It has 512 of them for a block, and no bound: a guest could end the process."""
    with SoftAccelerator() as soft, Testbed(soft, 64) as bed:
        state = bed.initial_state()
        state.sregs.cr0, state.sregs.cr4 = state.sregs.cr0 | 2, state.sregs.cr4 | 0x600
        bed.vcpu.state = state
        bed.memory.write(CODE, assemble(source).code * 700 + b"\xf4")
        assert bed.go() == Hlt()


class Raises(Device):
    """Its third read goes wrong."""

    name = "raises"

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        """Raise."""
        self.reads += 1
        if self.reads == 3:
            raise RuntimeError("out of ink")
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        """Take nothing."""


def test_a_device_that_raises_in_the_middle_of_a_string_instruction() -> None:
    """It is named, and the items before it are there; if the guest goes on, the one that nobody answered is ones."""
    source = "mov esi, 0xd0000000\nmov edi, 0x8000\nmov ecx, 5\nrep movsb\nhlt"
    with SoftAccelerator() as soft, loaded(soft, source, mode="protected") as machine:
        machine.bus.mmio.add(Raises(), 0xD000_0000, 0x1000)
        with pytest.raises(RuntimeError, match="out of ink"):
            machine.run(timeout=10)
        assert machine.memory.read(0x8000, 3) == b"\0\1\0"
        assert machine.vcpus[0].regs.rcx == 3
        assert machine.run(timeout=10).kind == StopKind.HALT
        assert machine.memory.read(0x8000, 5) == b"\0\1\xff\3\4"


NONSENSE: list[Callable[[int], int]] = [lambda _: 1 << 200, lambda _: -1, lambda size: 1 << 8 * size, lambda _: 0]


@pytest.mark.parametrize("answer", NONSENSE)
def test_a_device_that_answers_nonsense(answer: Callable[[int], int]) -> None:
    """What does not fit is refused, or cut, and never goes anywhere else."""
    with SoftAccelerator() as soft, Testbed(soft, 32) as bed:
        bed.load(assemble(f"mov esi, 0x300000\nmov edi, {DATA}\nmov ecx, 4\nrep movsd\nhlt", bits=32).code)
        bed.memory.write(DATA - 8, b"\x77" * 48)
        while isinstance(exit := bed.go(), MmioRead):
            exit.value = answer(exit.size)
        assert exit == Hlt()
        assert bed.memory.read(DATA - 8, 8) + bed.memory.read(DATA + 16, 24) == b"\x77" * 32
