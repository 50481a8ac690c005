"""A program and what came of it: the same two things, whoever executes it.

Four pages are there for it, at the same addresses in each of its worlds. A program ends by its first exception; it is
followed by INT3, or by HLT where a processor is emulated that has no INT3.

    0x100000  code     readable, writable, executable      CS has its base here in 16-bit code
    0x110000  data     readable, writable                  DS and ES
    0x111000  ROM      readable
    0x112000  nothing, or in the world of devices one
    0x113000  nothing, or in its code of 16 and 32 bits, which has no page tables, a device
    0x120000  stack    readable, writable                  SS
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from differential.errata import Made, not_known

CODE, DATA, ROM, DEVICE, STACK, PAGE = 0x100000, 0x110000, 0x111000, 0x112000, 0x120000, 4096
PAGES = (CODE, DATA, ROM, STACK)
# The order of their numbers in an instruction (Intel SDM vol. 2, table 2-2).
REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
INT3, HLT = b"\xcc", b"\xf4"
PAGE_FAULT, HALTED, TIMEOUT = 14, -1, 256
CF, PF, AF, ZF, SF, TF, IF, DF, OF = (1 << bit for bit in (0, 2, 4, 6, 7, 8, 9, 10, 11))
NT, AC, ID = 1 << 14, 1 << 18, 1 << 21
ARITHMETIC = CF | PF | AF | ZF | SF | OF
COMPARED_FLAGS = ARITHMETIC | TF | DF | NT | AC | ID


class World(Enum):
    """Where a program runs: in ring 3; in ring 0 of long mode; in ring 0 of any mode, beside devices."""

    USER = auto()
    KERNEL = auto()
    DEVICES = auto()


@dataclass(frozen=True, repr=False)
class Program:
    """Code of 16, 32 or 64 bits, the registers and pages that it begins with, and the flags that nobody defines."""

    bits: int
    code: bytes
    registers: tuple[int, ...]
    flags: int
    fpu: bytes  # 512 bytes, as FXRSTOR takes them (Intel SDM vol. 1, 10.5.1)
    data: bytes
    rom: bytes
    stack: bytes
    undefined: int = 0  # flags that the manual leaves undefined behind the last instruction
    ever_undefined: int = 0  # and behind any: where it did not come to the last
    instructions: tuple[Made, ...] = ()
    world: World = World.USER

    def __repr__(self) -> str:
        return f"Program of {self.bits} bits, {self.world.name}: {self.code.hex(' ')}"  # and not 12 KiB of pages

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # hypothesis' own repr of a dataclass
        printer.text(repr(self))

    @property
    def page(self) -> bytes:
        """The page of the code."""
        end = HLT if self.world is World.DEVICES else INT3
        return self.code + end * (PAGE - len(self.code))


@dataclass(frozen=True)
class Outcome:
    """The exception that ended a program, and what it left."""

    vector: int
    error: int
    cr2: int
    registers: tuple[int, ...]
    rip: int
    flags: int
    fpu: bytes
    data: bytes
    stack: bytes
    exits: tuple[str, ...] = ()
    segments: tuple[tuple[int, int], ...] = ()  # selector and base of ES, CS, SS, DS, FS, GS


def differences(program: Program, right: Outcome, other: Outcome) -> list[str]:
    """Return what another processor left that the right one did not, one line for each thing; but for errata."""
    return not_known(compare(program, right, other), program.instructions, program.bits, right.vector)


def compare(program: Program, right: Outcome, other: Outcome) -> list[str]:
    """Return all differences, also those of errata."""
    if right.vector != other.vector:
        return [f"vector {other.vector}, right {right.vector} (rip {other.rip:#x}, right {right.rip:#x})"]
    pairs = [("rip", other.rip, right.rip)]
    pairs += [("error code", _error(program, other), _error(program, right))]
    pairs += [("cr2", other.cr2, right.cr2)] if right.vector == PAGE_FAULT else []
    at_end = right.rip % PAGE == len(program.code) + 1
    told = COMPARED_FLAGS | (0 if program.world is World.USER else IF)
    compared = told & ~(program.undefined if at_end else program.ever_undefined)
    pairs += [("flags", other.flags & compared, right.flags & compared)]
    width = 64 if program.bits == 64 else 32
    names = REGISTERS if program.bits == 64 else REGISTERS[:8]
    pairs += [
        (name, theirs % (1 << width), ours % (1 << width))
        for name, theirs, ours in zip(names, other.registers, right.registers, strict=False)
    ]
    found = [f"{name} {theirs:#x}, right {ours:#x}" for name, theirs, ours in pairs if theirs != ours]
    found += [f"exits {other.exits}, right {right.exits}"] if other.exits != right.exits else []
    found += [f"segments {other.segments}, right {right.segments}"] if other.segments != right.segments else []
    found += _different_bytes("data", other.data, right.data) + _different_bytes("stack", other.stack, right.stack)
    return found + _different_fpu(other.fpu, right.fpu)


def _error(program: Program, outcome: Outcome) -> int:
    """The error code without P, of a page fault, where the right one does not tell whether the page is there.

    The host says yes of its own half of the addresses, and QEMU before version 8 says no of all that is written to.
    """
    told = program.world is World.USER and outcome.cr2 & -PAGE in PAGES
    return outcome.error if outcome.vector != PAGE_FAULT or told else outcome.error & ~1


def _different_bytes(name: str, other: bytes, right: bytes) -> list[str]:
    at = next((i for i, pair in enumerate(zip(other, right, strict=True)) if pair[0] != pair[1]), None)
    return [] if at is None else [f"{name} + {at:#x}: {other[at : at + 16].hex()}, right {right[at : at + 16].hex()}"]


# Of the image of FXSAVE: FCW FSW FTW, MXCSR, ST0 to ST7 (10 bytes of 16), XMM0 to XMM15. Where the last x87 instruction
# was, and its operand, the kernel and the engine fill in differently.
_FPU = {"fcw": (0, 2), "fsw": (2, 2), "ftw": (4, 1), "mxcsr": (24, 4)}
_FPU |= {f"st{n}": (32 + 16 * n, 10) for n in range(8)} | {f"xmm{n}": (160 + 16 * n, 16) for n in range(16)}


def _different_fpu(other: bytes, right: bytes) -> list[str]:
    found = []
    for name, (at, size) in _FPU.items():
        theirs, ours = (int.from_bytes(image[at : at + size], "little") for image in (other, right))
        if theirs != ours:
            found.append(f"{name} {theirs:#x}, right {ours:#x}")
    return found
