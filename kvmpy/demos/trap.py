"""trap: the idea of virtualization in one instruction."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import resource
import signal

from kvmpy.accel import exits
from kvmpy.demos.scene import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.demos.scene import Scene

CHECK = (
    "kvmpy disasm lessons/trap.bin          the guest's instructions",
    "kvmpy boot lessons/trap.bin --debug    without an answer the port reads as all ones",
    "guest/lessons/trap.asm                 its source, with the reasons",
)
QUESTION, ANSWER, MSR = 0x42, 0x43, 0x12345678
EXECUTES = {"kvm": "KVM lets the guest run by itself", "soft": "The software CPU executes the guest's instructions"}
IN_AL_QUESTION, HLT = bytes((0xE4, QUESTION, 0xC3)), bytes((0xF4, 0xC3))  # each with a RET


def run(scene: Scene) -> None:
    """Execute the same instruction in a process and in a guest."""
    scene.step("An ordinary process executes IN AL, 0x42, and another one HLT.")
    for text, code in (("in al, 0x42", IN_AL_QUESTION), ("hlt", HLT)):
        ended = signal_of(code)
        scene.saw(f"{text}: killed by {signal.Signals(ended).name if ended else 'nothing'}")
        scene.claim(f"The processor refuses {text} in ring 3, and the kernel kills who tried.", ended == signal.SIGSEGV)
    scene.why(
        "HLT needs ring 0. IN needs as much privilege as RFLAGS.IOPL says, or a bit of the task's I/O bitmap, and "
        "Linux gives a process neither unless it asks (ioperm(2)). So both raise #GP (Intel SDM vol. 2, IN and HLT)."
    )

    guest = scene.guest("lessons/trap.bin")
    vcpu = guest.vcpus[0]
    scene.step("A guest executes the same IN, in ring 0 of a machine that is not there.")
    question = scene.next_exit(vcpu)
    scene.saw(f"exit: {shown(question)}")
    scene.claim(
        "Nothing faults: the vCPU leaves the guest and tells what it wanted.",
        isinstance(question, exits.IoIn) and question.port == QUESTION,
    )
    scene.why(f"{EXECUTES[scene.accelerator.name]}, and stops where it touches what is not its own.")

    scene.step("Python answers 41, and lets the guest go on.")
    assert isinstance(question, exits.IoIn)
    question.data = bytes([41])
    answer = scene.next_exit(vcpu)
    scene.saw(f"exit: {shown(answer)}")
    scene.claim(
        "The guest got 41, added one in its own register, and wrote 42: it cannot tell Python from a device.",
        isinstance(answer, exits.IoOut) and answer.port == ANSWER and answer.value == 42,
    )

    scene.step(f"The guest reads a model-specific register, {MSR:#x}, that no processor has.")
    if not scene.accelerator.features.msr_exit:
        scene.missing("this accelerator does not let MSRs exit; try --accel soft")
        return
    guest.vm.exit_on_msrs([MSR])
    read = scene.next_exit(vcpu)
    scene.saw(f"exit: {shown(read)}")
    assert isinstance(read, exits.Rdmsr)
    read.value = 0x1_0000_0041
    written = scene.next_exit(vcpu)
    scene.saw(f"exit: {shown(written)}")
    scene.claim(
        "RDMSR gave EDX:EAX what Python filled in, and the guest went on with EAX + 1.",
        isinstance(written, exits.IoOut) and written.value == 0x42 and vcpu.regs.rdx == 1,
    )

    scene.step("The last instruction is HLT.")
    halt = scene.next_exit(vcpu)
    scene.saw(f"exit: {shown(halt)}")
    scene.claim("The guest halted its processor; the host's goes on.", isinstance(halt, exits.Hlt))


def signal_of(code: bytes) -> int:
    """Execute machine code in a process of its own; return the signal that it died of, 0 if of none."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
