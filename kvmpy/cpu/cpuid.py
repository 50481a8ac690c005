"""The CPUID table: what a processor says it is and can do, edited by the names of its features.

Bits are from Intel SDM vol. 2, CPUID, and AMD APM vol. 3, appendix E; the names are the manuals', in lower case.
"""

from __future__ import annotations

from typing import NamedTuple

from kvmpy.errors import ConfigError
from kvmpy.record import record

SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the subleaf in ECX matters
BRAND_LEAVES = (0x8000_0002, 0x8000_0003, 0x8000_0004)
BRAND_LENGTH, VENDOR_LENGTH = 48, 12
REGISTERS = ("eax", "ebx", "ecx", "edx")


class Feature(NamedTuple):
    """Where a feature's bit lies."""

    function: int
    subleaf: int
    register: str
    bit: int


def _bits(function: int, index: int, register: str, names: str) -> dict[str, Feature]:
    """Name the bits of a register from 0 up; a dash leaves one without a name."""
    return {name: Feature(function, index, register, i) for i, name in enumerate(names.split()) if name != "-"}


FEATURES: dict[str, Feature] = {
    **_bits(
        1, 0, "edx",
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 psn clfsh - ds acpi mmx fxsr sse "
        "sse2 ss htt tm - pbe",
    ),
    **_bits(
        1, 0, "ecx",
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cnxt_id sdbg fma cmpxchg16b xtpr pdcm - pcid dca "
        "sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    **_bits(6, 0, "eax", "dts turbo arat"),
    **_bits(
        7, 0, "ebx",
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm pqm zero_fcs_fds mpx pqe "
        "avx512f avx512dq rdseed adx smap avx512_ifma - clflushopt clwb pt avx512pf avx512er avx512cd sha avx512bw "
        "avx512vl",
    ),
    **_bits(
        7, 0, "ecx",
        "prefetchwt1 avx512_vbmi umip pku ospke waitpkg avx512_vbmi2 cet_ss gfni vaes vpclmulqdq avx512_vnni "
        "avx512_bitalg tme - - la57 - - - - - rdpid kl bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    **_bits(
        7, 0, "edx",
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect - md_clear - - - serialize hybrid - "
        "- - - cet_ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp l1d_flush arch_capabilities - ssbd",
    ),
    **_bits(7, 1, "eax", "- - - - avx_vnni avx512_bf16 - - - - fzrm fsrs"),
    **_bits(0xD, 1, "eax", "xsaveopt xsavec xgetbv1 xsaves"),
    **_bits(
        0x8000_0001, 0, "edx",
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr_opt page1gb rdtscp - lm 3dnowext 3dnow",
    ),
    **_bits(
        0x8000_0001, 0, "ecx",
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp "
        "fma4 tce - - - tbm topoext",
    ),
    **_bits(0x8000_0007, 0, "edx", "- - - - - - - - invariant_tsc"),
}  # fmt: skip


@record
class CpuidEntry:
    """What CPUID answers for one leaf, EAX, and subleaf, ECX. `flags` as KVM has them: bit 0, the subleaf matters."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


class CpuidTable:
    """The leaves of one vCPU, edited in place: `vcpu.cpuid` gives a copy, assigning it back makes it the guest's.

    >>> table = CpuidTable([CpuidEntry(1)])
    >>> table.enable("sse", "avx")
    >>> table.has("avx"), hex(table.find(1).ecx)
    (True, '0x10000000')
    """

    def __init__(self, entries: list[CpuidEntry] | None = None) -> None:
        self.entries = entries or []

    def find(self, function: int, index: int = 0) -> CpuidEntry | None:
        """Return the entry that answers a leaf and subleaf, to be read or changed; None when there is none."""
        for entry in self.entries:
            if entry.function == function and (entry.index == index or not entry.flags & SIGNIFICANT_INDEX):
                return entry
        return None

    @property
    def address_bits(self) -> int:
        """How many bits a physical address has (MAXPHYADDR; Intel SDM vol. 2, CPUID, 80000008H:EAX[7:0])."""
        leaf = self.find(0x8000_0008)
        return leaf.eax & 0xFF if leaf else 36

    def set(self, entry: CpuidEntry) -> None:
        """Add an entry, in the place of the one that answered the same leaf and subleaf."""
        old = self.find(entry.function, entry.index)
        if old is None:
            self.entries.append(entry)
        else:
            self.entries[self.entries.index(old)] = entry

    def has(self, name: str) -> bool:
        """Tell whether a feature is announced; ConfigError when its name is not known."""
        feature = _feature(name)
        entry = self.find(feature.function, feature.subleaf)
        return entry is not None and bool(getattr(entry, feature.register) >> feature.bit & 1)

    def enable(self, *names: str) -> None:
        """Announce features. Whether they work is the accelerator's affair. A missing leaf is added."""
        for name in names:
            feature = _feature(name)
            entry = self.find(feature.function, feature.subleaf)
            if entry is None:
                entry = CpuidEntry(feature.function, feature.subleaf, SIGNIFICANT_INDEX if feature.subleaf else 0)
                self.entries.append(entry)
            _change(entry, feature, on=True)

    def disable(self, *names: str) -> None:
        """Announce features no longer."""
        for name in names:
            feature = _feature(name)
            entry = self.find(feature.function, feature.subleaf)
            if entry is not None:
                _change(entry, feature, on=False)

    def features(self) -> list[str]:
        """Return the names of all announced features, in the manuals' order."""
        return [name for name in FEATURES if self.has(name)]

    @property
    def vendor(self) -> str:
        """The vendor string of leaf 0: twelve characters, in EBX, EDX, ECX."""
        leaf = self.find(0) or CpuidEntry(0)
        return _text(leaf.ebx, leaf.edx, leaf.ecx)

    @vendor.setter
    def vendor(self, text: str) -> None:
        leaf = self.find(0) or CpuidEntry(0)
        leaf.ebx, leaf.edx, leaf.ecx = _words(text, VENDOR_LENGTH)
        self.set(leaf)

    @property
    def brand(self) -> str:
        """The brand string of leaves 0x80000002 to 0x80000004: up to 48 characters."""
        leaves = [self.find(leaf) or CpuidEntry(leaf) for leaf in BRAND_LEAVES]
        return _text(*(getattr(leaf, name) for leaf in leaves for name in REGISTERS))

    @brand.setter
    def brand(self, text: str) -> None:
        words = _words(text, BRAND_LENGTH)
        for i, leaf in enumerate(BRAND_LEAVES):
            self.set(CpuidEntry(leaf, 0, 0, *words[4 * i : 4 * i + 4]))


def _feature(name: str) -> Feature:
    try:
        return FEATURES[name]
    except KeyError:
        from difflib import get_close_matches

        close = get_close_matches(name, FEATURES) or ["see kvmpy.cpu.cpuid.FEATURES"]
        raise ConfigError(f"CPUID feature {name!r}: not known; did you mean {', '.join(close)}?") from None


def _change(entry: CpuidEntry, feature: Feature, *, on: bool) -> None:
    value = getattr(entry, feature.register) & ~(1 << feature.bit)
    setattr(entry, feature.register, value | on << feature.bit)


def _text(*words: int) -> str:
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0").decode("latin-1")


def _words(text: str, length: int) -> list[int]:
    data = text.encode("latin-1", "replace")
    if len(data) > length:
        raise ConfigError(f"CPUID text {text!r}: it has room for {length} characters")
    data = data.ljust(length, b"\0")
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, length, 4)]
