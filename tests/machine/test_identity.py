"""What a processor says of itself, and what it has: CPUID, MSRs and chips say the same."""

from __future__ import annotations

import pytest
from machines import loaded

from kvmpy import StopKind
from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import IoOut
from kvmpy.accel.testbed import Testbed
from kvmpy.asm import assemble
from kvmpy.errors import ConfigError
from kvmpy.machine.python_chips import FROM_PICS, PythonChips

APIC, X2APIC, TSC_DEADLINE, BSP = 1 << 9, 1 << 21, 1 << 24, 1 << 8
# CPUID.1 into EBX (EDX) and ESI (ECX), IA32_APIC_BASE into EDI, the version of the local APIC into EBP.
ASKS = """
    mov eax, 1
    cpuid
    push edx
    push ecx
    mov ecx, 0x1b
    rdmsr
    mov edi, eax
    pop esi
    pop ebx
"""


@pytest.mark.parametrize("irqchip", ["python", "none", "kernel"])
def test_cpuid_tells_of_the_local_apic_that_there_is(accelerator: Accelerator, irqchip: str) -> None:
    if irqchip == "kernel" and not accelerator.features.chips:
        pytest.skip("the software CPU has no chips of its own")
    with loaded(accelerator, f"{ASKS}\nmov ebp, [0xfee00030]\nhlt", mode="protected", irqchip=irqchip) as machine:
        machine.run(timeout=10)
        regs = machine.vcpus[0].regs
    there = irqchip != "none"
    assert bool(regs.rbx & APIC) == there
    if there:
        assert regs.rdi == 0xFEE0_0900
        assert regs.rbp & 0xF0 == 0x10  # integrated (Intel SDM vol. 3, 10.4.8)
    if irqchip != "kernel":
        assert not regs.rsi & (X2APIC | TSC_DEADLINE)


def test_only_the_first_is_the_bootstrap_processor(accelerator: Accelerator) -> None:
    """And it stays so when INIT and SIPI start the others."""
    start = """
        mov eax, 0xc4500
        mov [0xfee00300], eax
        mov eax, 0xc4602                # SIPI: at 0x2000
        mov [0xfee00300], eax
        mov ecx, 0x1b
        rdmsr
        mov edi, eax
        wait_: cmp dword ptr [0x3000], 0
        je wait_
        mov ebx, [0x3000]
        hlt
    """.replace("#", ";")
    second = "66b91b000000 0f32 2e66a30030 f4"  # mov ecx, 0x1b; rdmsr; mov cs:[0x3000], eax; hlt: CS is at 0x2000
    with loaded(accelerator, start, mode="protected", irqchip="python", cpus=2) as machine:
        machine.memory.write(0x2000, bytes.fromhex(second.replace("2e66a30030", "2e66a30010")))
        machine.run(timeout=10)
        regs = machine.vcpus[0].regs
        assert machine.vcpus[1].sregs.apic_base == 0xFEE0_0800
    assert (regs.rdi, regs.rbx) == (0xFEE0_0900, 0xFEE0_0800)


def test_a_feature_that_is_not_there_is_refused(accelerator: Accelerator) -> None:
    with Testbed(accelerator, 64) as bed:
        table = bed.vcpu.cpuid
        table.enable("sse4a", "3dnow")  # AMD's, and gone
        with pytest.raises(ConfigError, match=r"CPUID: .* has no .*(3dnow|sse4a).*; leave it out with disable"):
            bed.vcpu.cpuid = table
        table.disable("sse4a", "3dnow")
        bed.vcpu.cpuid = table
        assert bed.run(b"\xe6\x10") == IoOut(0x10, 1, b"\0")


def test_there_is_no_apic_base_without_one(accelerator: Accelerator) -> None:
    with loaded(accelerator, "mov ecx, 0x1b\nrdmsr\nhlt", mode="protected") as machine:
        machine.run(timeout=10)
        assert not machine.vcpus[0].regs.rax & 1 << 11


def test_sipi_to_a_processor_that_runs_is_lost(accelerator: Accelerator) -> None:
    """It is heard only by one that waits for it (Intel SDM vol. 3, 8.4.1): what comes later starts it elsewhere."""
    start = """
        mov edi, 0xfee00300
        mov dword ptr [edi], 0xc4500        ; INIT to all others
        mov dword ptr [edi], 0xc4602        ; SIPI: at 0x2000
        first: cmp byte ptr [0x5000], 1
        jne first
        mov dword ptr [edi], 0xc4603        ; SIPI: at 0x3000, and it runs
        mov dword ptr [edi], 0xc4500        ; INIT
        mov ecx, 100000
        wait_: loop wait_
        mov dword ptr [edi], 0xc4604        ; SIPI: at 0x4000
        second: cmp byte ptr [0x5001], 0
        je second
        mov al, [0x5001]
        hlt
    """
    with loaded(accelerator, start, mode="protected", irqchip="python", cpus=2) as machine:
        for number, at in ((1, 0x2000), (3, 0x3000), (4, 0x4000)):
            where = 0x5000 if number == 1 else 0x5001
            then = "spin: jmp spin" if number == 1 else "cli\nhlt"
            code = f"xor ax, ax\nmov ds, ax\nmov byte ptr [{where:#x}], {number}\n{then}"
            machine.memory.write(at, assemble(code, bits=16).code)
        assert machine.run(timeout=20).kind == StopKind.HALT
        assert machine.memory.read(0x5000, 2) == b"\1\4"


def test_an_extint_entry_of_the_io_apic_leads_to_the_pics(accelerator: Accelerator) -> None:
    """LINT0 is masked, so this is the only way for the PICs' vector."""
    source = """
        mov dword ptr [0xfee000f0], 0x1ff       ; the local APIC is on
        mov dword ptr [0xfec00000], 0x21        ; the I/O APIC's pin 8, high half: to processor 0
        mov dword ptr [0xfec00010], 0
        mov dword ptr [0xfec00000], 0x20
        mov dword ptr [0xfec00010], 0x700       ; ExtINT
        hlt
    """
    with loaded(accelerator, source, mode="protected", irqchip="python") as machine:
        assert machine.run(timeout=10).kind == StopKind.HALT
        chips = machine.chips
        assert isinstance(chips, PythonChips)
        for value, port in (
            (0x11, 0x20),
            (0x30, 0x21),
            (4, 0x21),
            (1, 0x21),
            (0x11, 0xA0),
            (0x38, 0xA1),
            (2, 0xA1),
            (1, 0xA1),
        ):
            machine.bus.ports.write(port, 1, value)
        chips.set_line(8, 1)
        (processor,) = chips._processors
        assert chips._requested(processor) == FROM_PICS
        assert chips.pics.acknowledge() == 0x38
