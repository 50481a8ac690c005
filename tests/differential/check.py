"""Compares many random programs, and makes the first that differs small."""

from __future__ import annotations

from collections.abc import Callable

from differential.generator import programs
from differential.program import CODE, PAGE, REGISTERS, TIMEOUT, Outcome, Program, World, differences
from hypothesis import HealthCheck, Phase, assume, given, seed, settings

from kvmpy.asm import disassemble

INVALID_OPCODE = 6
VEX = (0xC4, 0xC5)  # Intel SDM vol. 2, 2.3.5
Processor = Callable[[Program], Outcome]


def check(
    bits: int, right: Processor, other: Processor, *, number: int, examples: int, world: World = World.USER
) -> None:
    """Run programs on both; AssertionError with the smallest that differs, and the seed that makes it again."""

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(programs(bits, world))
    def same(program: Program) -> None:
        outcome = right(program)
        assume(outcome.vector != TIMEOUT)  # a loop without an end, or what the right one cannot
        theirs = other(program)
        assume(not _is_vex(program, theirs))
        found = differences(program, outcome, theirs)
        assert not found, describe(program, found, number)

    same()


def _is_vex(program: Program, outcome: Outcome) -> bool:
    """Tell whether a branch into an instruction has found one of AVX, which the software CPU has not."""
    return outcome.vector == INVALID_OPCODE and program.page[outcome.rip % PAGE] in VEX


def describe(program: Program, found: list[str], number: int) -> str:
    """Return a report: what it is, what it begins with, and what differs."""
    code = program.code
    listing = [f"  {line.raw.hex(' '):30}{line.text}" for line in disassemble(code, bits=program.bits, origin=CODE)]
    registers = [f"{name}={value:#x}" for name, value in zip(REGISTERS, program.registers, strict=True)]
    title = f"{program.bits}-bit code, {program.world.name}, seed {number}, flags {program.flags:#x}:"
    return "\n".join(["", title, *listing, " ".join(registers), *(f"- {line}" for line in found)])
