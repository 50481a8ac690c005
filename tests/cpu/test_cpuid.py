"""The CPUID table: each name's bit as the manuals and as this machine's kernel have it; editing."""

from __future__ import annotations

import ctypes
import mmap
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.cpu.cpuid import FEATURES, REGISTERS, SIGNIFICANT_INDEX, CpuidEntry, CpuidTable
from kvmpy.errors import ConfigError

names = st.sampled_from(sorted(FEATURES))


@pytest.mark.parametrize(
    ("name", "leaf", "subleaf", "register", "bit"),
    [
        # Intel SDM vol. 2, CPUID, tables 3-8 to 3-11 and figure 3-9; the last name of each register and some between.
        ("fpu", 1, 0, "edx", 0),
        ("apic", 1, 0, "edx", 9),
        ("sep", 1, 0, "edx", 11),
        ("clfsh", 1, 0, "edx", 19),
        ("mmx", 1, 0, "edx", 23),
        ("sse2", 1, 0, "edx", 26),
        ("pbe", 1, 0, "edx", 31),
        ("vmx", 1, 0, "ecx", 5),
        ("fma", 1, 0, "ecx", 12),
        ("pcid", 1, 0, "ecx", 17),
        ("xsave", 1, 0, "ecx", 26),
        ("hypervisor", 1, 0, "ecx", 31),
        ("arat", 6, 0, "eax", 2),
        ("smep", 7, 0, "ebx", 7),
        ("smap", 7, 0, "ebx", 20),
        ("avx512vl", 7, 0, "ebx", 31),
        ("la57", 7, 0, "ecx", 16),
        ("rdpid", 7, 0, "ecx", 22),
        ("pks", 7, 0, "ecx", 31),
        ("fsrm", 7, 0, "edx", 4),
        ("serialize", 7, 0, "edx", 14),
        ("cet_ibt", 7, 0, "edx", 20),
        ("ssbd", 7, 0, "edx", 31),
        ("avx512_bf16", 7, 1, "eax", 5),
        ("fsrs", 7, 1, "eax", 11),
        ("xsaves", 0xD, 1, "eax", 3),
        # AMD APM vol. 3, appendix E.4.
        ("syscall", 0x8000_0001, 0, "edx", 11),
        ("nx", 0x8000_0001, 0, "edx", 20),
        ("page1gb", 0x8000_0001, 0, "edx", 26),
        ("lm", 0x8000_0001, 0, "edx", 29),
        ("3dnow", 0x8000_0001, 0, "edx", 31),
        ("svm", 0x8000_0001, 0, "ecx", 2),
        ("topoext", 0x8000_0001, 0, "ecx", 22),
        ("invariant_tsc", 0x8000_0007, 0, "edx", 8),
    ],
)
def test_bits(name: str, leaf: int, subleaf: int, register: str, bit: int) -> None:
    assert FEATURES[name] == (leaf, subleaf, register, bit)


def cpuid(leaf: int, subleaf: int) -> dict[str, int]:
    """Return what this processor answers; rbx is the caller's (System V ABI), so it is kept in r8."""
    code = bytes.fromhex("4989d2 89f8 89f1 4989d8 0fa2 418902 41895a04 41894a08 4189520c 4c89c3 c3".replace(" ", ""))
    # mov r10, rdx; mov eax, edi; mov ecx, esi; mov r8, rbx; cpuid; store eax, ebx, ecx, edx at r10; mov rbx, r8; ret
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        here = ctypes.c_char.from_buffer(page)
        answer = ctypes.create_string_buffer(16)
        ask = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(here))
        ask(leaf, subleaf, ctypes.addressof(answer))
        del here
    return dict(zip(REGISTERS, struct.unpack("<4I", answer), strict=True))


SYNTHETIC = {"ibrs", "stibp", "ssbd", "arat", "hypervisor"}  # the kernel sets these for reasons of its own too


def test_what_the_kernel_says_of_this_processor_has_the_bit_of_that_name() -> None:
    """/proc/cpuinfo's flags are the kernel's reading of the same answers; it may leave out some, and adds its own."""
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    shared = sorted(set(line.split()) & set(FEATURES) - SYNTHETIC)
    assert len(shared) > 20
    table = CpuidTable(
        [
            CpuidEntry(leaf, subleaf, SIGNIFICANT_INDEX, **cpuid(leaf, subleaf))
            for leaf, subleaf in {(FEATURES[name].function, FEATURES[name].subleaf) for name in shared}
        ]
    )
    assert [name for name in shared if not table.has(name)] == []


@given(name=names, other=names)
def test_enabling_and_disabling_touch_one_bit(name: str, other: str) -> None:
    table = CpuidTable()
    assert not table.has(name)
    table.enable(name)
    assert table.features() == [name]
    table.enable(other)
    table.disable(name)
    assert table.features() == ([other] if other != name else [])
    assert {value for entry in table.entries for value in (entry.eax, entry.ebx, entry.ecx, entry.edx)} <= {
        0,
        1 << FEATURES[other].bit,
    }


def test_a_subleaf_is_found_by_its_number_only_where_it_matters() -> None:
    plain, first, second = CpuidEntry(4), CpuidEntry(7, 0, SIGNIFICANT_INDEX), CpuidEntry(7, 1, SIGNIFICANT_INDEX)
    table = CpuidTable([plain, first, second])
    assert table.find(4, 9) is plain
    assert (table.find(7), table.find(7, 1), table.find(7, 2), table.find(5)) == (first, second, None, None)
    table.set(CpuidEntry(7, 1, SIGNIFICANT_INDEX, eax=5))
    assert [entry.eax for entry in table.entries] == [0, 0, 5]


def test_vendor_and_brand() -> None:
    """Leaf 0 spells "GenuineIntel" in EBX, EDX, ECX (SDM vol. 2, CPUID); the brand is 48 bytes over three leaves."""
    table = CpuidTable([CpuidEntry(0, ebx=0x756E6547, edx=0x49656E69, ecx=0x6C65746E)])
    assert table.vendor == "GenuineIntel"
    table.vendor = "AuthenticAMD"
    leaf = table.find(0)
    assert leaf
    assert (leaf.ebx, leaf.edx, leaf.ecx) == (0x68747541, 0x69746E65, 0x444D4163)
    assert table.brand == ""
    table.brand = "A processor of 2 GHz"
    assert table.brand == "A processor of 2 GHz"
    assert [entry.function for entry in table.entries] == [0, 0x8000_0002, 0x8000_0003, 0x8000_0004]


@pytest.mark.parametrize("text", ["thirteen letters", "x" * 13])
def test_a_vendor_that_is_too_long(text: str) -> None:
    with pytest.raises(ConfigError, match="12 characters"):
        CpuidTable().vendor = text


def test_a_name_that_is_not_known_says_what_is_near() -> None:
    with pytest.raises(ConfigError, match="did you mean sse4_2"):
        CpuidTable().enable("sse42")
    with pytest.raises(ConfigError, match="see kvmpy"):
        CpuidTable().has("%")
