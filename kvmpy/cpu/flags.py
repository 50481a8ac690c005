"""The bits of RFLAGS, the control registers, EFER and the page-fault error code, and the exceptions, by name."""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

from kvmpy.cpu import bits


class RFLAGS(IntFlag):
    """Intel SDM vol. 3, 2.3, and vol. 1, 3.4.3. Bit 1 always reads as one; IOPL is a field of two bits."""

    CF = 1 << 0
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = bits.RFLAGS_IF
    DF = 1 << 10
    OF = 1 << 11
    IOPL1 = 1 << 12
    IOPL2 = 1 << 13
    NT = 1 << 14
    RF = 1 << 16
    VM = bits.RFLAGS_VM
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


class CR0(IntFlag):
    """Intel SDM vol. 3, 2.5."""

    PE = bits.CR0_PE
    MP = bits.CR0_MP
    EM = 1 << 2
    TS = bits.CR0_TS
    ET = bits.CR0_ET
    NE = bits.CR0_NE
    WP = bits.CR0_WP
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = bits.CR0_PG


class CR4(IntFlag):
    """Intel SDM vol. 3, 2.5."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = bits.CR4_TSD
    DE = 1 << 3
    PSE = 1 << 4
    PAE = bits.CR4_PAE
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = bits.CR4_OSFXSR
    OSXMMEXCPT = bits.CR4_OSXMMEXCPT
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    SMXE = 1 << 14
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    KL = 1 << 19
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23
    PKS = 1 << 24


class EFER(IntFlag):
    """Intel SDM vol. 3, 2.2.1; SVME and above: AMD APM vol. 2, 3.1.7."""

    SCE = bits.EFER_SCE
    LME = bits.EFER_LME
    LMA = bits.EFER_LMA
    NXE = bits.EFER_NXE
    SVME = 1 << 12
    LMSLE = 1 << 13
    FFXSR = 1 << 14
    TCE = 1 << 15


class PageFault(IntFlag):
    """The error code of #PF (Intel SDM vol. 3, 4.7). PRESENT clear means that an entry was not present."""

    PRESENT = 1 << 0
    WRITE = 1 << 1
    USER = 1 << 2
    RESERVED = 1 << 3
    FETCH = 1 << 4
    PROTECTION_KEY = 1 << 5
    SHADOW_STACK = 1 << 6


class ExceptionInfo(NamedTuple):
    """An exception: mnemonic, name, and whether it pushes an error code (Intel SDM vol. 3, table 6-1)."""

    mnemonic: str
    name: str
    has_error_code: bool = False


EXCEPTIONS = {
    0: ExceptionInfo("#DE", "divide error"),
    1: ExceptionInfo("#DB", "debug"),
    2: ExceptionInfo("NMI", "non-maskable interrupt"),
    3: ExceptionInfo("#BP", "breakpoint"),
    4: ExceptionInfo("#OF", "overflow"),
    5: ExceptionInfo("#BR", "bound range exceeded"),
    6: ExceptionInfo("#UD", "invalid opcode"),
    7: ExceptionInfo("#NM", "device not available"),
    8: ExceptionInfo("#DF", "double fault", has_error_code=True),
    10: ExceptionInfo("#TS", "invalid TSS", has_error_code=True),
    11: ExceptionInfo("#NP", "segment not present", has_error_code=True),
    12: ExceptionInfo("#SS", "stack-segment fault", has_error_code=True),
    13: ExceptionInfo("#GP", "general protection", has_error_code=True),
    14: ExceptionInfo("#PF", "page fault", has_error_code=True),
    16: ExceptionInfo("#MF", "x87 floating-point error"),
    17: ExceptionInfo("#AC", "alignment check", has_error_code=True),
    18: ExceptionInfo("#MC", "machine check"),
    19: ExceptionInfo("#XM", "SIMD floating-point exception"),
    20: ExceptionInfo("#VE", "virtualization exception"),
    21: ExceptionInfo("#CP", "control protection", has_error_code=True),
}


def describe_flags(kind: type[IntFlag], value: int) -> str:
    """Return the names of the bits that are set, lowest first; bits without a name as a number.

    >>> describe_flags(CR0, 0x80000011)
    'PE ET PG'
    """
    known = [bit for bit in kind if value & bit]
    rest = value & ~sum(known)
    if kind is RFLAGS:
        rest &= ~bits.RFLAGS_FIXED
    return " ".join([*(str(bit.name) for bit in known), *([f"{rest:#x}"] if rest else [])]) or "-"
