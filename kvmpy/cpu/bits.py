"""Bits that are asked for on the path of every boot, as plain numbers; `kvmpy.cpu.flags` has all, with their names.

Making the flags takes a processor 2 ms, which a boot does not have.
"""

from __future__ import annotations

# Control registers and EFER (Intel SDM vol. 3, 2.5 and 2.2.1).
CR0_PE, CR0_MP, CR0_TS, CR0_ET, CR0_NE, CR0_WP, CR0_PG = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5, 1 << 16, 1 << 31
CR4_TSD, CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT = 1 << 2, 1 << 5, 1 << 9, 1 << 10
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11
# RFLAGS (SDM vol. 1, 3.4.3): bit 1 always reads as one.
RFLAGS_FIXED, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_VM = 1 << 1, 1 << 9, 3 << 12, 1 << 17
# Entries of page tables (SDM vol. 3, tables 4-15 to 4-20).
PRESENT, WRITABLE, USER, LARGE, GLOBAL, NO_EXECUTE = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 8, 1 << 63
LAST_VECTOR = 255
MASK64 = (1 << 64) - 1


def is_canonical(address: int, width: int = 48) -> bool:
    """Tell whether all bits from the highest of a linear address's `width` on are equal (Intel SDM vol. 1, 3.3.7.1)."""
    return address >> width - 1 in (0, (1 << 65 - width) - 1)
