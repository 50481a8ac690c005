"""modes: the climb from real mode to long mode, one instruction at a time."""

from __future__ import annotations

from kvmpy.asm import disassemble
from kvmpy.cpu.flags import CR0, CR4, EFER
from kvmpy.cpu.modes import mode_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.base import Vcpu
    from kvmpy.demos.scene import Scene
    from kvmpy.machine.machine import Machine

CHECK = (
    "kvmpy disasm lessons/modes.bin    each part in its own mode",
    "kvmpy boot guest.bin              a kernel that climbs the same way, and goes on",
    "guest/lessons/modes.asm           the source, with the manual's sections",
)
MOST_STEPS = 50
LONGEST = 15
CLIMB = ["real", "protected-16", "protected-32", "compatibility-32", "long"]
REASONS = {
    "protected-16": "MOV CR0 set PE. What CS means is still cached from real mode: 16-bit code, until a far jump "
    "loads a descriptor (Intel SDM vol. 3, 9.9.1).",
    "protected-32": "The far jump loaded CS from the GDT: its D bit makes the code 32-bit.",
    "compatibility-32": "MOV CR0 set PG while EFER.LME and CR4.PAE were set, so the processor set EFER.LMA (9.8.5). "
    "CS is still a 32-bit segment: compatibility mode.",
    "long": "The far jump loaded a CS whose L bit is set: registers are 64 bits wide from here on.",
}


def run(scene: Scene) -> None:
    """Step through the guest and tell each change of mode."""
    scene.step("A processor wakes up in real mode, as in 1978. A few instructions later it runs 64-bit code.")
    if not scene.accelerator.features.single_step:
        scene.missing("this accelerator does not step; try --accel soft")
        return
    guest = scene.guest("lessons/modes.bin")
    vcpu = guest.vcpus[0]
    seen = ["real"]
    count = 0
    while not (text := instruction(guest, vcpu)).endswith("hlt") and count < MOST_STEPS:
        count += 1
        vcpu.step()
        scene.saw(f"{seen[-1]:17} {text}")
        mode = mode_of(vcpu.sregs, vcpu.regs.rflags)
        if mode != seen[-1]:
            scene.why(REASONS[mode])
            seen.append(mode)
    scene.claim(f"In {count} instructions, in this order: {', '.join(CLIMB)}.", seen == CLIMB)

    scene.step("What the processor's own registers say at the end.")
    sregs, regs = vcpu.sregs, vcpu.regs
    scene.saw(f"CR0 {sregs.cr0:#010x}  CR4 {sregs.cr4:#x}  EFER {sregs.efer:#x}  CS {sregs.cs.selector:#x}")
    scene.claim("CR0.PE, CR0.PG and CR4.PAE are set.", has(sregs.cr0, CR0.PE | CR0.PG) and has(sregs.cr4, CR4.PAE))
    scene.claim("EFER.LMA is set, though the guest only wrote LME.", has(sregs.efer, EFER.LME | EFER.LMA))
    scene.claim("RAX holds 64 bits: 0x1122334455667788.", regs.rax == 0x1122334455667788)


def instruction(guest: Machine, vcpu: Vcpu) -> str:
    """Return the address and the text of the instruction that comes next, read as its mode has it."""
    regs, sregs = vcpu.regs, vcpu.sregs
    mode = mode_of(sregs, regs.rflags)
    address = sregs.cs.base + regs.rip
    found = disassemble(guest.memory.read(address, LONGEST), bits=mode.bits, origin=address, count=1)
    return f"{address:#x}  {next(iter(found)).text}"


def has(value: int, bits: int) -> bool:
    """Whether all these bits are set."""
    return value & bits == bits
