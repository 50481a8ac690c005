"""The processor that the software CPU says it is: what Unicorn does, and no more."""

from __future__ import annotations

from kvmpy.cpu.cpuid import SIGNIFICANT_INDEX, CpuidEntry, CpuidTable
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.softcpu.binding import CData

BROADWELL = 0x306D4  # family 6, model 0x3D, stepping 4 (Intel SDM vol. 2, figure 3-6)
CLFLUSH_LINE = 8  # in units of 8 bytes
ADDRESS_BITS = 40 | 48 << 8  # physical, linear
LIMIT = 128
# Not fma, avx, avx2, f16c, rtm and hle: Unicorn lacks them. Not bmi1 and bmi2: it has BLSI, BEXTR, BZHI and PDEP wrong.
# Not x2apic and tsc_deadline: the local APIC, where there is one, is kvmpy/devices/lapic.py.
NAMES = (
    "fpu de pse tsc msr pae cx8 sep pge cmov pat pse36 clfsh mmx fxsr sse sse2 sse3 pclmulqdq ssse3 cmpxchg16b sse4_1 "
    "sse4_2 movbe popcnt aes xsave rdrand hypervisor fsgsbase smep adx smap "
    "syscall nx page1gb rdtscp lm lahf_lm abm 3dnowprefetch"
)
THERE = frozenset([*NAMES.split(), "apic", "osxsave"])


def default_cpuid(vcpu_id: int, cpus: int, *, local_apic: bool) -> CpuidTable:
    """Return the table of a vCPU in a machine with `cpus` of them."""
    table = CpuidTable(
        [
            CpuidEntry(0, eax=0xD),
            CpuidEntry(1, eax=BROADWELL, ebx=vcpu_id << 24 | cpus << 16 | CLFLUSH_LINE << 8),
            CpuidEntry(7, flags=SIGNIFICANT_INDEX),
            CpuidEntry(0xD, flags=SIGNIFICANT_INDEX, eax=3, ebx=576, ecx=576),  # x87 and SSE; bytes of their area
            CpuidEntry(0x8000_0000, eax=0x8000_0008),
            CpuidEntry(0x8000_0008, eax=ADDRESS_BITS),
        ]
    )
    table.vendor = "GenuineIntel"
    table.brand = "kvmpy software CPU"
    table.enable(*NAMES.split())
    if local_apic:
        table.enable("apic")
    return table


def load_cpuid(soft: CData) -> CpuidTable:
    """Return the table in force."""
    entries = (soft.cpuid[i] for i in range(soft.cpuid_count))
    return CpuidTable([CpuidEntry(e.function, e.index, e.by_index, e.eax, e.ebx, e.ecx, e.edx) for e in entries])


def store_cpuid(soft: CData, table: CpuidTable) -> None:
    """Make a table the guest's; ConfigError when it is too long."""
    if len(table.entries) > LIMIT:
        raise ConfigError(f"CPUID table of {len(table.entries)} entries: there is room for {LIMIT}")
    for i, e in enumerate(table.entries):
        soft.cpuid[i] = (e.function, e.index, e.flags & SIGNIFICANT_INDEX, e.eax, e.ebx, e.ecx, e.edx)
    soft.cpuid_count = len(table.entries)
