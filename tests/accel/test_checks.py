"""What a processor refuses, the software CPU refuses: values, selectors and addresses, by the manual."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy import SoftAccelerator
from kvmpy.accel.exits import Exit, Hlt, IoOut, Rdmsr
from kvmpy.accel.testbed import CODE, GDT, Testbed
from kvmpy.asm import assemble
from kvmpy.cpu.msrs import Msr

DB, UD, GP = 1, 6, 13
NOT_CANONICAL = 1 << 47
EFER, APIC_BASE, TSC, PAT = 0xC000_0080, 0x1B, 0x10, 0x277
LONG = 0xD00  # LME, LMA, NXE: as the testbed has it, and SCE may come
BOTH = 0x00AF_9A00_0000_FFFF | 1 << 54  # code with L and D
STATE_MSRS = (Msr.LSTAR, Msr.CSTAR, 0xC000_0100, 0xC000_0101, Msr.KERNEL_GS_BASE, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP)


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with SoftAccelerator() as accelerator, Testbed(accelerator, 64) as made:
        yield made


def run(bed: Testbed, source: str, *, at: int = CODE) -> Exit:
    """Run it to its first exit; HLT is behind it."""
    bed.load(assemble(f"{source}\nhlt", origin=at).code)
    sregs = bed.vcpu.sregs
    sregs.cr4 |= 0x600
    bed.vcpu.sregs = sregs
    return bed.go()


def wrmsr(index: int, value: int) -> str:
    return f"mov ecx, {index:#x}\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nwrmsr"


@pytest.mark.parametrize("index", STATE_MSRS)
def test_addresses_in_msrs_are_canonical(bed: Testbed, index: int) -> None:
    assert run(bed, wrmsr(index, NOT_CANONICAL)) == IoOut(GP, 1, bytes([0]))
    assert isinstance(run(bed, wrmsr(index, 0xFFFF_8000_0000_0000)), Hlt)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (EFER, LONG | 1 << 1), (EFER, LONG | 1 << 12), (EFER, LONG | 1 << 63), (EFER, LONG & ~0x100),
        (PAT, 2), (PAT, 3 << 8), (PAT, 0xFF << 56),
        (APIC_BASE, 0xFEE0_0000 | 1), (APIC_BASE, 1 << 40), (APIC_BASE, 0xFEE0_0C00),
    ],
)  # fmt: skip
def test_reserved_values_of_msrs(bed: Testbed, index: int, value: int) -> None:
    assert bed.vector(run(bed, wrmsr(index, value))) == GP


@pytest.mark.parametrize(("index", "value"), [(EFER, LONG | 1), (PAT, 0x0007040600070406), (APIC_BASE, 0xFEE0_0900)])
def test_values_that_msrs_take(bed: Testbed, index: int, value: int) -> None:
    assert isinstance(run(bed, f"{wrmsr(index, value)}\nrdmsr"), Hlt)
    regs = bed.vcpu.regs
    assert regs.rdx << 32 | regs.rax == value


@pytest.mark.parametrize(
    ("source", "vector"),
    [
        ("mov eax, 16\nmov cr8, rax", GP),
        ("mov rax, 0x100000400\nmov dr7, rax", GP),
        ("mov rax, 0x100000000\nmov dr6, rax", GP),
        ("mov rax, cr3\nbts rax, 50\nmov cr3, rax", GP),
        ("mov rax, cr3\nbts rax, 40\nmov cr3, rax", GP),
        ("mov rax, cr4\nbts rax, 11\nmov cr4, rax", GP),  # UMIP, which CPUID does not announce
        ("mov rax, cr4\nbts rax, 17\nmov cr4, rax", GP),  # PCIDE
        ("mov rax, cr4\nbts rax, 0\nmov cr4, rax", GP),  # VME
        ("mov rax, cr4\nbts rax, 32\nmov cr4, rax", GP),
        ("mov rax, cr4\nbtr rax, 5\nmov cr4, rax", GP),  # PAE, of long mode
        ("mov eax, 0x10000\npush rax\nldmxcsr [rsp]", GP),
        ("xor eax, eax\nltr ax", GP),
        ("mov eax, 3\nmov ss, eax", GP),
    ],
)
def test_values_that_are_refused(bed: Testbed, source: str, vector: int) -> None:
    assert bed.vector(run(bed, source)) == vector
    last = source.rpartition("\n")[2]
    assert bed.frame(2) == [0, CODE + len(assemble(source).code) - len(assemble(last).code)]


@pytest.mark.parametrize(
    "source",
    [
        "mov eax, 15\nmov cr8, rax",
        "mov rax, cr3\nmov cr3, rax",
        "mov rax, cr4\nbts rax, 18\nmov cr4, rax",
        "mov rax, cr8",
    ],
)
def test_values_that_are_taken(bed: Testbed, source: str) -> None:
    assert isinstance(run(bed, source), Hlt)


@pytest.mark.parametrize("access", ["mov rax, dr0", "mov dr0, rax", "mov rax, dr7", "mov dr6, rax"])
def test_general_detection_of_debug_registers(bed: Testbed, access: str) -> None:
    """In front of the instruction, with DR6.BD; and it is off for the handler (Intel SDM vol. 3, 17.2.4)."""
    source = "mov eax, 0x2400\nmov dr7, rax"
    assert bed.vector(run(bed, f"{source}\n{access}")) == DB
    assert bed.frame(1) == [CODE + len(assemble(source).code)]
    debug = bed.vcpu.state.debug
    assert (debug.dr6 & 1 << 13, debug.dr7 & 1 << 13) == (1 << 13, 0)


@pytest.mark.parametrize(
    "source",
    [
        "push 0x40\npush 0xc800\nretf",
        "mov rax, rsp\npush 0x10\npush rax\npush 2\npush 0x40\npush 0xc800\niretq",
        "mov dword ptr [0xd000], 0xc800\nmov word ptr [0xd004], 0x40\njmp far ptr [0xd000]",
        "mov dword ptr [0xd000], 0xc800\nmov word ptr [0xd004], 0x40\ncall far ptr [0xd000]",
    ],
    ids=["retf", "iretq", "jmp far", "call far"],
)
def test_code_is_of_64_bits_or_of_32(bed: Testbed, source: str) -> None:
    bed.memory.write_int(GDT + 0x40, 8, BOTH)
    source = source.replace("far ptr", "fword ptr").replace("retf", "retfq")
    assert bed.vector(run(bed, source)) == GP
    assert bed.frame(1) == [0x40]


def test_no_site_of_an_msr_is_one_too_many(bed: Testbed) -> None:
    """There was a limit of 512: a filter that can be exhausted is none."""
    sites = 2000
    bed.vm.exit_on_msrs([0x10])
    bed.memory.write(0x100000, assemble("\n".join(["rdmsr"] * sites) + "\nhlt").code)
    bed.load(assemble("mov ecx, 0x10\nmov rax, 0x100000\njmp rax").code)
    exits = 0
    while isinstance(bed.go(), Rdmsr):
        exits += 1
    assert exits == sites


def test_translate_refuses_what_is_not_canonical(bed: Testbed) -> None:
    bed.load(b"\xf4")
    assert bed.vcpu.translate(0x1000) == 0x1000
    assert bed.vcpu.translate(1 << 63 | 0x1000) is None
    assert bed.vcpu.translate(NOT_CANONICAL) is None


def test_osxsave_follows_cr4(bed: Testbed) -> None:
    """Who wants to know whether XGETBV works asks CPUID.1:ECX[27]."""
    ask = "mov eax, 1\ncpuid\nmov {}, rcx"
    source = f"{ask.format('rsi')}\nmov rax, cr4\nbts rax, 18\nmov cr4, rax\n{ask.format('rdi')}\nxor ecx, ecx\nxgetbv"
    assert isinstance(run(bed, source), Hlt)
    regs = bed.vcpu.regs
    assert (regs.rsi >> 27 & 1, regs.rdi >> 27 & 1) == (0, 1)
    assert regs.rax & 1


def test_the_time_stamp_counter_is_one_by_every_name(bed: Testbed) -> None:
    read = "rdtsc\nshl rdx, 32\nor rax, rdx\nmov {}, rax"
    msr = f"mov ecx, {TSC}\nrdmsr\nshl rdx, 32\nor rax, rdx\nmov {{}}, rax"
    assert isinstance(run(bed, "\n".join([read.format("r8"), msr.format("r9"), read.format("r10")])), Hlt)
    regs = bed.vcpu.regs
    assert regs.r8 < regs.r9 < regs.r10
    assert isinstance(run(bed, "\n".join([wrmsr(TSC, 5), read.format("r8"), "rdtscp", msr.format("r9")])), Hlt)
    regs = bed.vcpu.regs
    assert 5 < regs.r8 < regs.r9 < 10**12


def test_the_time_stamp_counter_in_ring_3_is_cr4_s_to_allow(bed: Testbed) -> None:
    for code, tsd, vector in ((b"\x0f\x31", 4, GP), (b"\x0f\x01\xf9", 4, GP), (b"\x0f\x31\x0f\x0b", 0, UD)):
        bed.load(code, ring=3)
        sregs = bed.vcpu.sregs
        sregs.cr4 |= tsd
        bed.vcpu.sregs = sregs
        assert bed.vector(bed.go()) == vector
