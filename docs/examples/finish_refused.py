"""Finish instructions that the accelerator refuses: POPCNT, INT3 and INT n, each in a few lines of Python.

KVM gives up on an instruction that it would have to emulate and does not know (KVM_EXIT_INTERNAL_ERROR). A handler
under the machine may carry it out instead: change the registers, move RIP behind it, and let the guest go on.
"""

import kvmpy
from kvmpy.accel.exits import InternalError

GUEST = """
    mov ebx, 0x00ff0f01
    popcnt eax, ebx
    out 0xf4, al
"""


def finish(vcpu: kvmpy.Vcpu, exit: InternalError) -> kvmpy.Stop | None:
    """Carry the refused instruction out, or leave the stop to the machine."""
    instruction = next(iter(kvmpy.disassemble(exit.instruction, bits=32)), None)
    if instruction is None:
        return refuse(vcpu, exit)
    name, _, operand = instruction.text.partition(" ")
    regs = vcpu.regs
    regs.rip += len(instruction.raw)
    if name == "popcnt" and operand == "eax, ebx":
        regs.rax = (regs.rbx & 0xFFFF_FFFF).bit_count()
        vcpu.regs = regs
    elif name in ("int3", "int"):
        vcpu.regs = regs
        vcpu.software_interrupt(3 if name == "int3" else int(operand, 0))
    else:
        return refuse(vcpu, exit)
    print(f"finished: {instruction.text}")
    return None


with kvmpy.open_accelerator() as accelerator, kvmpy.Machine(accelerator, memory=4 << 20, irqchip="none") as machine:
    refuse = machine.handlers[InternalError]
    machine.handlers[InternalError] = finish
    code = kvmpy.assemble(GUEST, bits=32, origin=0x100000).code
    machine.load(kvmpy.plan_code(code, mode="protected", memory=machine.memory.size))
    stop = machine.run(timeout=5)
    print(f"{stop.kind}, code {stop.code}")
