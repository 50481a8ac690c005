"""Model-specific registers by name (Intel SDM vol. 4, table 2-2; AMD APM vol. 2, appendix A; KVM's own: msr.rst)."""

from __future__ import annotations

from enum import IntEnum


class Msr(IntEnum):
    """The index of an MSR, as ECX gives it to RDMSR and WRMSR."""

    TSC = 0x10
    APIC_BASE = 0x1B
    FEATURE_CONTROL = 0x3A
    TSC_ADJUST = 0x3B
    SPEC_CTRL = 0x48
    PRED_CMD = 0x49
    BIOS_SIGN_ID = 0x8B
    MTRRCAP = 0xFE
    ARCH_CAPABILITIES = 0x10A
    SYSENTER_CS = 0x174
    SYSENTER_ESP = 0x175
    SYSENTER_EIP = 0x176
    MCG_CAP = 0x179
    MCG_STATUS = 0x17A
    PERF_STATUS = 0x198
    MISC_ENABLE = 0x1A0
    DEBUGCTL = 0x1D9
    PAT = 0x277
    MTRR_DEF_TYPE = 0x2FF
    TSC_DEADLINE = 0x6E0
    X2APIC_ID = 0x802
    X2APIC_TPR = 0x808
    X2APIC_EOI = 0x80B
    X2APIC_SPURIOUS = 0x80F
    X2APIC_ICR = 0x830
    X2APIC_LVT_TIMER = 0x832
    X2APIC_TIMER_INITIAL = 0x838
    X2APIC_TIMER_DIVIDE = 0x83E
    X2APIC_SELF_IPI = 0x83F
    XSS = 0xDA0
    EFER = 0xC0000080
    STAR = 0xC0000081
    LSTAR = 0xC0000082
    CSTAR = 0xC0000083
    SFMASK = 0xC0000084
    FS_BASE = 0xC0000100
    GS_BASE = 0xC0000101
    KERNEL_GS_BASE = 0xC0000102
    TSC_AUX = 0xC0000103
    VM_CR = 0xC0010114
    KVM_WALL_CLOCK = 0x4B564D00
    KVM_SYSTEM_TIME = 0x4B564D01
    KVM_ASYNC_PF_EN = 0x4B564D02
    KVM_STEAL_TIME = 0x4B564D03
    KVM_PV_EOI_EN = 0x4B564D04


def msr_name(index: int) -> str:
    """Return the name of an MSR, or its index in hexadecimal.

    >>> msr_name(0xC0000082), msr_name(0x1234)
    ('LSTAR', '0x1234')
    """
    try:
        return Msr(index).name
    except ValueError:
        return f"{index:#x}"


def reset_apic_base(number: int, there: bool) -> int:
    """Return IA32_APIC_BASE of a processor after RESET: its address, on (bit 11), the first one's BSP (bit 8).

    0 where it has no local APIC (Intel SDM vol. 3, 10.4.4).
    """
    return (0xFEE0_0800 | (number == 0) << 8) if there else 0
