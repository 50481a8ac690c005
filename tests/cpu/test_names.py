"""Registers after RESET, and the names of flags, MSRs and exceptions, as the manuals have them."""

from __future__ import annotations

from enum import IntFlag

import pytest

from kvmpy.cpu.flags import CR0, CR4, EFER, EXCEPTIONS, RFLAGS, PageFault, describe_flags
from kvmpy.cpu.msrs import Msr, msr_name
from kvmpy.cpu.state import CpuState, Segment


def test_a_fresh_state_is_that_after_reset() -> None:
    """Intel SDM vol. 3, table 10-1."""
    state = CpuState()
    regs, sregs = state.regs, state.sregs
    assert (regs.rflags, regs.rip, regs.rsp) == (0x2, 0xFFF0, 0)
    assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (0xF000, 0xFFFF0000, 0xFFFF)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        assert segment == Segment(selector=0, base=0, limit=0xFFFF, type=3, s=1, present=1)
    assert (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer) == (0x60000010, 0, 0, 0, 0)
    assert (sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit) == (0, 0xFFFF, 0, 0xFFFF)
    assert (state.debug.db, state.debug.dr6, state.debug.dr7) == ([0, 0, 0, 0], 0xFFFF0FF0, 0x400)
    assert sregs.apic_base is None  # each processor has its own


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        # SDM vol. 3, figures 2-5 and 2-7; vol. 3, 2.2.1; figure 4-12.
        (RFLAGS, {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "IOPL1": 12,
                  "IOPL2": 13, "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21}),
        (CR0, {"PE": 0, "MP": 1, "EM": 2, "TS": 3, "ET": 4, "NE": 5, "WP": 16, "AM": 18, "NW": 29, "CD": 30, "PG": 31}),
        (CR4, {"VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7, "PCE": 8, "OSFXSR": 9,
               "OSXMMEXCPT": 10, "UMIP": 11, "LA57": 12, "VMXE": 13, "SMXE": 14, "FSGSBASE": 16, "PCIDE": 17,
               "OSXSAVE": 18, "KL": 19, "SMEP": 20, "SMAP": 21, "PKE": 22, "CET": 23, "PKS": 24}),
        (EFER, {"SCE": 0, "LME": 8, "LMA": 10, "NXE": 11, "SVME": 12, "LMSLE": 13, "FFXSR": 14, "TCE": 15}),
        (PageFault, {"PRESENT": 0, "WRITE": 1, "USER": 2, "RESERVED": 3, "FETCH": 4, "PROTECTION_KEY": 5,
                     "SHADOW_STACK": 6}),
    ],
)  # fmt: skip
def test_the_bits_of_registers(kind: type[IntFlag], bits: dict[str, int]) -> None:
    assert {flag.name: flag.bit_length() - 1 for flag in kind} == bits


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (CR0, 0x80000011, "PE ET PG"),
        (CR0, 0, "-"),
        (RFLAGS, 0x2, "-"),
        (RFLAGS, 0x3202, "IF IOPL1 IOPL2"),
        (CR4, 1 << 40 | 1 << 5, "PAE 0x10000000000"),
    ],
)
def test_flags_in_words(kind: type[IntFlag], value: int, text: str) -> None:
    assert describe_flags(kind, value) == text


def test_exceptions() -> None:
    """SDM vol. 3, table 6-1: the mnemonics, and which push an error code."""
    assert {vector: info.mnemonic for vector, info in EXCEPTIONS.items()} == {
        0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
        12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP",
    }  # fmt: skip
    assert [v for v, info in EXCEPTIONS.items() if info.has_error_code] == [8, 10, 11, 12, 13, 14, 17, 21]


def test_msrs() -> None:
    """Intel SDM vol. 4, table 2-2; AMD APM vol. 2, appendix A; Linux, Documentation/virt/kvm/x86/msr.rst."""
    assert {msr.name: int(msr) for msr in Msr} == {
        "TSC": 0x10, "APIC_BASE": 0x1B, "FEATURE_CONTROL": 0x3A, "TSC_ADJUST": 0x3B, "SPEC_CTRL": 0x48,
        "PRED_CMD": 0x49, "BIOS_SIGN_ID": 0x8B, "MTRRCAP": 0xFE, "ARCH_CAPABILITIES": 0x10A, "SYSENTER_CS": 0x174,
        "SYSENTER_ESP": 0x175, "SYSENTER_EIP": 0x176, "MCG_CAP": 0x179, "MCG_STATUS": 0x17A, "PERF_STATUS": 0x198,
        "MISC_ENABLE": 0x1A0, "DEBUGCTL": 0x1D9, "PAT": 0x277, "MTRR_DEF_TYPE": 0x2FF, "TSC_DEADLINE": 0x6E0,
        "X2APIC_ID": 0x802, "X2APIC_TPR": 0x808, "X2APIC_EOI": 0x80B, "X2APIC_SPURIOUS": 0x80F, "X2APIC_ICR": 0x830,
        "X2APIC_LVT_TIMER": 0x832, "X2APIC_TIMER_INITIAL": 0x838, "X2APIC_TIMER_DIVIDE": 0x83E,
        "X2APIC_SELF_IPI": 0x83F, "XSS": 0xDA0, "EFER": 0xC000_0080, "STAR": 0xC000_0081, "LSTAR": 0xC000_0082,
        "CSTAR": 0xC000_0083, "SFMASK": 0xC000_0084, "FS_BASE": 0xC000_0100, "GS_BASE": 0xC000_0101,
        "KERNEL_GS_BASE": 0xC000_0102, "TSC_AUX": 0xC000_0103, "VM_CR": 0xC001_0114,
        "KVM_WALL_CLOCK": 0x4B56_4D00, "KVM_SYSTEM_TIME": 0x4B56_4D01, "KVM_ASYNC_PF_EN": 0x4B56_4D02,
        "KVM_STEAL_TIME": 0x4B56_4D03, "KVM_PV_EOI_EN": 0x4B56_4D04,
    }  # fmt: skip
    assert (msr_name(0xC000_0082), msr_name(0x1234), msr_name(1 << 40)) == ("LSTAR", "0x1234", "0x10000000000")
