"""What a processor says of itself, and what it has: CPUID, MSRs and chips say the same."""

from __future__ import annotations

import pytest
from machines import loaded

from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import IoOut
from kvmpy.accel.testbed import Testbed
from kvmpy.errors import ConfigError

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
