"""Classic mistakes of a kernel's beginning, judged by the manual's rules; the report never says that there is none."""

from __future__ import annotations

import pytest
from conftest import Guests
from lab.test_autopsy import report

from kvmpy.accel.base import Accelerator
from kvmpy.accel.testbed import CODE
from kvmpy.cpu.state import DescriptorTable
from kvmpy.lab.judgement import judge
from kvmpy.lab.postmortem import NOTHING_RAISED

UD, NP, SS, GP, PF = 6, 11, 12, 13, 14
GDT = 0x6000
NOT_PRESENT_TSS, CODE_SEGMENT = 0x20, 0x28
# Bits, source, and what the last instruction raises: vector, error code, words of the reason.
MISTAKES = [
    (32, "mov ecx, 0x12345678\nrdmsr", GP, 0, "there is no MSR 0x12345678 here, and no handler answered"),
    (64, "mov ecx, 0xc0000080\nrdmsr", GP, 0, "there is no MSR 0xc0000080 (EFER) here"),
    (64, "mov ecx, 0x12345678\nxor edx, edx\nmov eax, 5\nwrmsr", GP, 0, "or it does not take 0x5"),
    (64, "mov ecx, 0xc0000080\nxor edx, edx\nmov eax, -1\nwrmsr", GP, 0, "0xffff02fe"),  # 0-7 but SCE, 9, above TCE
    (64, "mov ecx, 0xc0000080\nxor eax, eax\nxor edx, edx\nwrmsr", GP, 0, "LME cannot be changed while paging is on"),
    (64, "mov ecx, 0xc0000100\nmov edx, 0x8000\nxor eax, eax\nwrmsr", GP, 0, "is no canonical address, which FS_BASE"),
    (32, "mov eax, 0x80000000\nmov cr0, eax", GP, 0, "paging (CR0.PG) needs protected mode"),
    (32, "mov eax, 0x20000001\nmov cr0, eax", GP, 0, "CR0.NW needs CR0.CD"),
    (64, "mov eax, 1\nmov cr0, rax", GP, 0, "64-bit code cannot turn paging off"),
    (64, "mov rax, 0x180000001\nmov cr0, rax", GP, 0, "the upper half of CR0 must be zero"),
    (32, "mov eax, 0x80000001\nmov cr0, eax", PF, 0, "the next instruction is not mapped"),
    (64, "mov eax, 0x30000\nmov cr3, rax", PF, 0x10, "by the tables at 0x30000 the next instruction is not mapped"),
    (64, "mov rax, 0x10000000000000\nmov cr3, rax", GP, 0, "reserved bits of CR3"),
    (64, "mov rax, cr3\nbts rax, 63\nmov cr3, rax", GP, 0, "reserved bits of CR3"),
    (64, "mov eax, 0x10\nmov cr8, rax", GP, 0, "reserved bits of CR8"),
    (64, "mov rax, -1\nmov dr7, rax", GP, 0, "the upper half of DR7 must be zero"),
    (64, "mov rdi, 0xd001\nmovaps xmm0, [rdi]", GP, 0, "0xd001 is not aligned on 16 bytes"),
    (64, "mov ecx, 4\nmov edi, 0xd000\npaddb xmm0, [rdi+rcx*2-1]", GP, 0, "0xd007 is not aligned on 16 bytes"),
    (64, "mov rsp, 0x8000000000000000\npush rax", SS, 0, "RSP, 0x8000000000000000, is no canonical address"),
    (64, "mov rbp, 0x8000000000000000\nleave", SS, 0, "RBP, 0x8000000000000000, is no canonical address"),
    (64, "mov rbp, 0x8000000000000000\nmov eax, [rbp+8]", SS, 0, "0x8000000000000008 is no canonical address"),
    (64, "xor eax, eax\nmov cr4, rax", GP, 0, "CR4.PAE cannot be cleared in long mode"),
    (64, "mov eax, 0x80000020\nmov cr4, rax", GP, 0, "sets bits that CR4 does not have: 0x80000000"),
    (32, "mov eax, 0x20000\nmov cr4, eax", GP, 0, "CR4.PCIDE needs long mode"),
    (64, "xor eax, eax\nltr ax", GP, 0, "the task register takes no null selector"),
    (64, "mov ax, 0x7ff8\nltr ax", GP, 0x7FF8, "beyond the GDT's limit"),
    (64, "mov ax, 0x1c\nltr ax", GP, 0x1C, "in the local table"),
    (32, f"mov ax, {CODE_SEGMENT}\nltr ax", GP, CODE_SEGMENT, "no available task-state segment"),
    (32, f"mov ax, {NOT_PRESENT_TSS}\nltr ax", NP, NOT_PRESENT_TSS, "not present"),
    (64, "vmcall", UD, None, "nobody answers vmcall here"),
    (64, "vmmcall", UD, None, "nobody answers vmmcall here"),
]


@pytest.mark.parametrize(("bits", "source", "vector", "error_code", "why"), MISTAKES)
def test_a_mistake_is_judged(
    guests: Guests, bits: int, source: str, vector: int, error_code: int | None, why: str
) -> None:
    *before, _last = source.split("\n")
    bed = guests.load(bits, source)
    bed.memory.write(GDT, bytes(NOT_PRESENT_TSS) + bytes.fromhex("6700000000090000 ffff0000009bcf00"))
    sregs = bed.vcpu.sregs
    sregs.gdt = DescriptorTable(GDT, 0x2F)
    if "EFER) here" in why:
        sregs.efer = bed.vcpu.sregs.efer
    bed.vcpu.sregs = sregs
    for _ in before:
        bed.vcpu.step()
    judged = judge(bed.memory, bed.vcpu.regs, bed.vcpu.sregs)
    assert judged
    assert (judged.vector, judged.error_code) == (vector, error_code)
    assert why in judged.why
    assert judged.address == (bed.vcpu.regs.rip + 3 if vector == PF else None)  # MOV to CRn has three bytes


@pytest.mark.parametrize("source", ["nop", "mov rax, cr0", "mov rax, cr4\nmov cr0, rax", "lgdt [0x1000]", "hlt"])
def test_of_what_no_rule_speaks_there_is_no_judgement(guests: Guests, source: str) -> None:
    bed = guests.load(64, source.split("\n")[0])
    assert judge(bed.memory, bed.vcpu.regs, bed.vcpu.sregs) is None


def test_code_that_is_not_mapped_is_judged_by_nobody(guests: Guests) -> None:
    bed = guests.load(64, "hlt")
    regs = bed.vcpu.regs
    regs.rip = CODE + (1 << 40)
    assert judge(bed.memory, regs, bed.vcpu.sregs) is None


CRASHES = {
    "rdmsr": ("mov ecx, 0x12345678\nrdmsr", "#GP, general protection, error code 0x0: there is no MSR 0x12345678"),
    "wrmsr": ("mov ecx, 0x12345678\nwrmsr", "#GP, general protection, error code 0x0: there is no MSR"),
    "mov cr0": ("mov eax, 0x80000000\nmov cr0, eax", "#GP"),
    "mov cr4": ("mov eax, -1\nmov cr4, eax", "#GP"),
    "div": ("xor ecx, ecx\ndiv ecx", "#DE"),
    "ud2": ("ud2", "#UD"),
    "int": ("int 0x42", "#GP"),
    "selector": ("mov ax, 0x700\nmov ds, ax", "#GP"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_the_report_says_what_a_crash_was(accelerator: Accelerator, name: str) -> None:
    feature = {"int": "int_n_32", "selector": "exceptions_32"}.get(name)
    if feature and not getattr(accelerator.features, feature):
        pytest.skip(f"this host does not have the feature {feature!r}")
    source, wanted = CRASHES[name]
    [told] = report(accelerator, source, mode="protected")["exception"]
    assert wanted in told
    assert told != NOTHING_RAISED


def test_the_demo_s_student_is_told_of_the_gp(accelerator: Accelerator) -> None:
    """`kvmpy boot lessons/trap.bin --debug`, to which the first demo sends."""
    import os
    import subprocess

    from console import KVMPY

    command = [*KVMPY, "boot", "lessons/trap.bin", "--debug", "--accel", accelerator.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=dict(os.environ))
    assert "#GP, general protection, error code 0x0: there is no MSR 0x12345678 here" in done.stderr


def test_what_only_the_rules_say_is_called_probable(guests: Guests) -> None:
    bed = guests.load(64, "vmcall")
    assert str(judge(bed.memory, bed.vcpu.regs, bed.vcpu.sregs)) == (
        "probably #UD, invalid opcode: nobody answers vmcall here"
    )
