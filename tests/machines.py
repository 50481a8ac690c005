"""Machines with a guest of a few instructions in them."""

from __future__ import annotations

from typing import Any

from kvmpy.accel.base import Accelerator
from kvmpy.asm import assemble
from kvmpy.boot.flat import plan_code
from kvmpy.machine.machine import Machine

MEMORY = 4 << 20
BITS = {"real": 16, "protected": 32, "long": 64}
ORIGIN = {"real": 0x7C00, "protected": 0x10_0000, "long": 0x10_0000}


def loaded(accelerator: Accelerator, source: str, *, mode: str = "real", **options: Any) -> Machine:
    """Return a machine about to run `source`; it has no interrupt chips unless `irqchip` says so."""
    machine = Machine(accelerator, **{"memory": MEMORY, "irqchip": "none", **options})
    try:
        load(machine, source, mode=mode)
    except BaseException:
        machine.close()
        raise
    return machine


def load(machine: Machine, source: str, *, mode: str = "real") -> None:
    """Put a guest into an idle machine."""
    code = assemble(source, bits=BITS[mode], origin=ORIGIN[mode]).code
    machine.load(plan_code(code, mode=mode, memory=machine.memory.size))


START_SECOND = """
        mov esi, 0xfee00300
        mov dword ptr [esi], 0x000c4500     ; INIT to all but self (SDM vol. 3, 10.6.1)
        mov dword ptr [esi], 0x000c4608     ; SIPI: start at 0x8000
"""


def on_second_cpu(first: str, second: str) -> str:
    """Return 32-bit source: it starts the second CPU on 16-bit `second` at 0x8000, then goes on with `first`."""
    return f"""
        mov edi, 0x8000
        mov esi, second_code
        mov ecx, 64
        rep movsb
        {START_SECOND}
        {first}
    second_code:
    .code16
        xor ax, ax
        mov ds, ax
        {second}
    """
