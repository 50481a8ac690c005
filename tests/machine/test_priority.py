"""CR8 and the local APIC's task priority are one thing (Intel SDM vol. 3, 10.8.6), whoever has the chips."""

from __future__ import annotations

import struct

import pytest
from machines import loaded

from kvmpy.accel.base import Accelerator, Vcpu
from kvmpy.accel.exits import Hlt, IoOut, SetTpr
from kvmpy.accel.testbed import CODE, Testbed
from kvmpy.asm import assemble
from kvmpy.boot.flat import plan_code
from kvmpy.machine.machine import Machine
from kvmpy.machine.stop import StopKind

VECTOR, HANDLER, IDT, IDTR = 0x41, 0x9000, 0xA000, 0x9800
HANDLER_SOURCE = "out 0x92, al\nmov byte ptr [0x9900], 1\nmov dword ptr [rsi + 0xb0], 0\niretq"
HOLDS = f"""
    mov esi, 0xfee00000
    mov dword ptr [rsi + 0xf0], 0x1ff       ; SVR: the APIC is on
    lidt [{IDTR}]
    mov eax, 15
    mov cr8, rax
    sti
    mov dword ptr [rsi + 0x300], {0x44000 | VECTOR:#x}  ; to itself
    out 0x91, al
    mov edx, [rsi + 0x80]
    LOWER
    mov ecx, 200000                         ; KVM's emulator does not exit for CR8: a kick has to come
wait:
    cmp byte ptr [0x9900], 1
    je done
    dec ecx
    jnz wait
done:
    out 0x93, al
    mov dword ptr [rsi + 0x80], 0x53
    mov rbx, cr8
    cli
    hlt
"""
BY_CR8 = "xor eax, eax\nmov cr8, rax"
BY_APIC = "mov dword ptr [rsi + 0x80], 0x30"
TOO_HIGH = "mov eax, 4\nmov cr8, rax"  # the class of 41H is 4


def run(machine: Machine, source: str) -> list[int]:
    """Run a guest to its end and return the ports that it wrote to."""
    seen = []

    def note(_vcpu: Vcpu, exit: IoOut) -> None:
        seen.append(exit.port)

    machine.load(plan_code(assemble(source, bits=64, origin=0x10_0000).code, mode="long", memory=machine.memory.size))
    machine.memory.write(HANDLER, assemble(HANDLER_SOURCE, bits=64, origin=HANDLER).code)
    selector = machine.vcpus[0].sregs.cs.selector
    machine.memory.write(IDT + 16 * VECTOR, struct.pack("<HHBBHII", HANDLER, selector, 0, 0x8E, 0, 0, 0))
    machine.memory.write(IDTR, struct.pack("<HQ", 0xFFF, IDT))
    machine.handlers[IoOut] = note
    assert machine.run(timeout=20).kind == StopKind.HALT
    return seen


@pytest.mark.parametrize("irqchip", ["python", "kernel"])
@pytest.mark.parametrize(("lower", "seen"), [(BY_CR8, True), (BY_APIC, True), (TOO_HIGH, False)])
def test_an_interrupt_waits_for_a_lower_priority(
    accelerator: Accelerator, irqchip: str, lower: str, seen: bool
) -> None:
    if irqchip == "kernel" and accelerator.name == "soft":
        pytest.skip("the software CPU has no chips of its own")
    with loaded(accelerator, "hlt", mode="long", irqchip=irqchip) as machine:
        assert run(machine, HOLDS.replace("LOWER", lower)) == ([0x91, 0x92, 0x93] if seen else [0x91, 0x93])
        regs = machine.vcpus[0].regs
    assert (regs.rdx & 0xFF, regs.rbx) == (0xF0, 5)


def test_without_chips_a_lower_priority_exits(accelerator: Accelerator) -> None:
    """A higher one does not; the vCPU keeps both. KVM exits where VT-x or SVM does; its emulator does not."""
    with Testbed(accelerator, 64) as bed:
        source = "mov eax, 9\nmov cr8, rax\nmov eax, 3\nmov cr8, rax\nmov rbx, cr8\nhlt"
        exit = bed.run(assemble(source, bits=64, origin=CODE).code)
        assert exit == SetTpr() or accelerator.name == "kvm"
        if exit == SetTpr():
            assert (bed.vcpu.cr8, bed.vcpu.regs.rip) == (3, CODE + len(assemble(source, bits=64).code) - 5)
            exit = bed.go()
        assert exit == Hlt()
        assert bed.vcpu.regs.rbx == 3


def test_the_host_sets_it(accelerator: Accelerator) -> None:
    """By the whole state, by the system registers, and alone: the guest sees the last one."""
    with Testbed(accelerator, 64) as bed:
        bed.memory.write(CODE, assemble("mov rbx, cr8\nhlt", bits=64).code)
        state = bed.initial_state()
        state.sregs.cr8 = 6
        for value in (6, 7, 8):
            bed.vcpu.state = state
            if value > 6:
                sregs = bed.vcpu.sregs
                sregs.cr8 = 7
                bed.vcpu.sregs = sregs
            if value > 7:
                bed.vcpu.cr8 = 8
            assert bed.go() == Hlt()
            assert (bed.vcpu.regs.rbx, bed.vcpu.sregs.cr8, bed.vcpu.cr8) == (value, value, value)
