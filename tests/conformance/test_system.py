"""System instructions: HLT, CPUID, MSRs, control registers, descriptor tables, INVLPG, RDTSC, VMCALL."""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy.accel.exits import Hlt, Hypercall, IoOut, Rdmsr, Wrmsr
from kvmpy.accel.testbed import CODE, DATA, PRESENT_WRITABLE_USER, PT
from kvmpy.cpu.cpuid import CpuidEntry
from kvmpy.cpu.flags import CR0, CR4

MODES = (16, 32, 64)
UD, GP = 6, 13
MISC_ENABLE = 0x1A0
WINDOW = 0x1F_0000


@pytest.mark.parametrize("bits", MODES)
def test_hlt_leaves_rip_behind_it(guests: Guests, bits: int) -> None:
    bed, exit = guests.run(bits, "nop\nhlt\nnop")
    assert isinstance(exit, Hlt)
    assert bed.vcpu.regs.rip == CODE + 2


@pytest.mark.parametrize("bits", MODES)
def test_cpuid_answers_what_the_table_says(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, "xor ecx, ecx\nmov eax, 0x4000abcd\ncpuid\nhlt")
    table = bed.vcpu.cpuid
    table.set(CpuidEntry(0x4000_0000, eax=0x4000_ABCD))
    table.set(CpuidEntry(0x4000_ABCD, eax=0x11111111, ebx=0x22222222, ecx=0x33333333, edx=0x44444444))
    bed.vcpu.cpuid = table
    bed.go()
    regs = bed.vcpu.regs
    assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == (0x11111111, 0x22222222, 0x33333333, 0x44444444)


@pytest.mark.needs("cpuid_features")
def test_a_feature_can_be_taken_from_the_guest(guests: Guests) -> None:
    bed = guests.load(64, "mov eax, 1\ncpuid\nhlt")
    table = bed.vcpu.cpuid
    table.disable("rdrand")
    bed.vcpu.cpuid = table
    bed.go()
    assert not bed.vcpu.regs.rcx >> 30 & 1  # CPUID.01H:ECX.RDRAND[bit 30]


@pytest.mark.needs("msr_exit")
@pytest.mark.parametrize("bits", MODES)
def test_rdmsr_of_a_filtered_msr_is_answered_by_user_space(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, f"mov ecx, {MISC_ENABLE}\nrdmsr\nhlt")
    bed.vm.exit_on_msrs([MISC_ENABLE])
    exit = bed.go()
    assert exit == Rdmsr(MISC_ENABLE)
    exit.value = 0x1122334455667788
    assert isinstance(bed.go(), Hlt)
    assert (bed.vcpu.regs.rdx, bed.vcpu.regs.rax) == (0x11223344, 0x55667788)


@pytest.mark.needs("msr_exit")
@pytest.mark.parametrize("bits", MODES)
def test_wrmsr_to_a_filtered_msr_shows_its_value(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, f"mov ecx, {MISC_ENABLE}\nmov edx, 0x11223344\nmov eax, 0x55667788\nwrmsr\nhlt")
    bed.vm.exit_on_msrs([MISC_ENABLE])
    assert bed.go() == Wrmsr(MISC_ENABLE, 0x1122334455667788)
    assert isinstance(bed.go(), Hlt)


EXCEPTION_MODES = [pytest.param(bits, marks=pytest.mark.needs(f"exceptions_{bits}")) for bits in MODES]


@pytest.mark.needs("msr_exit")
@pytest.mark.parametrize("bits", EXCEPTION_MODES)
@pytest.mark.parametrize("instruction", ["rdmsr", "wrmsr"])
def test_user_space_can_refuse_an_msr(guests: Guests, instruction: str, bits: int) -> None:
    bed = guests.load(bits, f"mov ecx, {MISC_ENABLE}\n{instruction}\nhlt")
    bed.vm.exit_on_msrs([MISC_ENABLE])
    exit = bed.go()
    assert isinstance(exit, (Rdmsr, Wrmsr))
    exit.fault = True
    assert bed.vector(bed.go()) == GP


@pytest.mark.parametrize("bits", EXCEPTION_MODES)
@pytest.mark.parametrize("instruction", ["rdmsr", "wrmsr"])
def test_an_msr_that_there_is_not_is_gp(guests: Guests, instruction: str, bits: int) -> None:
    """SDM vol. 2, RDMSR and WRMSR: "if the value in ECX specifies a reserved or unimplemented MSR address"."""
    bed, exit = guests.run(bits, f"mov ecx, 0x1234567\n{instruction}\nhlt")
    assert bed.vector(exit) == GP
    # MOV ECX is a byte longer in 16-bit code (66 prefix), and real mode pushes no error code (vol. 3, 20.1.4).
    assert bed.frame(2) == ([CODE + 6, 0] if bits == 16 else [0, CODE + 5])


@pytest.mark.needs("msr_exit")
def test_an_msr_that_there_is_not_exits_where_msrs_do(guests: Guests) -> None:
    bed = guests.load(64, "mov ecx, 0x1234567\nrdmsr\nhlt")
    bed.vm.exit_on_msrs([MISC_ENABLE])
    exit = bed.go()
    assert exit == Rdmsr(0x1234567)
    exit.value = 7
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == 7


@pytest.mark.needs("msr_exit")
def test_other_msrs_do_not_exit(guests: Guests) -> None:
    bed = guests.load(64, "mov ecx, 0xc0000080\nrdmsr\nhlt")
    bed.vm.exit_on_msrs([MISC_ENABLE])
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == bed.vcpu.sregs.efer


@pytest.mark.parametrize(("bits", "register"), [(16, "eax"), (32, "eax"), (64, "rax")])
def test_control_registers_read_back_what_was_written(guests: Guests, bits: int, register: str) -> None:
    source = f"mov {register}, cr0\nor eax, {int(CR0.WP | CR0.AM)}\nmov cr0, {register}\nmov {register}, cr0\nhlt"
    bed, exit = guests.run(bits, source)
    assert isinstance(exit, Hlt)
    wanted = CR0.WP | CR0.AM
    assert bed.vcpu.regs.rax & wanted == wanted
    assert bed.vcpu.sregs.cr0 & wanted == wanted


@pytest.mark.parametrize(("bits", "register"), [(16, "eax"), (32, "eax"), (64, "rax")])
def test_cr4_reads_back_what_was_written(guests: Guests, bits: int, register: str) -> None:
    wanted = int(CR4.PGE | CR4.DE)
    bed, exit = guests.run(bits, f"mov {register}, cr4\nor eax, {wanted}\nmov cr4, {register}\nhlt")
    assert isinstance(exit, Hlt)
    assert bed.vcpu.sregs.cr4 & wanted == wanted


@pytest.mark.parametrize(("bits", "register"), [(16, "eax"), (32, "eax")])
def test_cr3_without_paging_is_only_a_register(guests: Guests, bits: int, register: str) -> None:
    bed, _ = guests.run(bits, f"mov {register}, 0x5000\nmov cr3, {register}\nhlt")
    assert bed.vcpu.sregs.cr3 == 0x5000


def test_cr3_changes_the_address_space(guests: Guests) -> None:
    """Two sets of tables that map WINDOW to different pages; the second shares everything below the PD."""
    pml4, pdpt, pd, pt = 0x100000, 0x101000, 0x102000, 0x103000
    bed = guests.load(64, f"mov rbx, {WINDOW}\nmov rcx, [rbx]\nmov rax, {pml4}\nmov cr3, rax\nmov rdx, [rbx]\nhlt")
    for at, value in ((pml4, pdpt), (pdpt, pd), (pd, pt)):
        bed.memory.write_int(at, 8, value | PRESENT_WRITABLE_USER)
    bed.memory.write(pt, bed.memory.read(PT, 0x1000))
    bed.memory.write_int(pt + (WINDOW >> 12) * 8, 8, DATA & ~0xFFF | PRESENT_WRITABLE_USER)
    bed.memory.write_int(WINDOW, 8, 1)
    bed.memory.write_int(DATA, 8, 2)
    assert isinstance(bed.go(), Hlt)
    assert (bed.vcpu.regs.rcx, bed.vcpu.regs.rdx) == (1, 2)


def test_invlpg_makes_a_changed_entry_count(guests: Guests) -> None:
    entry = PT + (WINDOW >> 12) * 8
    other = DATA & ~0xFFF
    bed = guests.load(
        64,
        f"mov rbx, {WINDOW}\nmov rcx, [rbx]\nmov rsi, {entry}\nmov eax, {other | 7}\nmov [rsi], rax\n"
        "invlpg [rbx]\nmov rdx, [rbx]\nhlt",
    )
    bed.memory.write_int(WINDOW, 8, 0xAAAA)
    bed.memory.write_int(other, 8, 0xBBBB)
    assert isinstance(bed.go(), Hlt)
    assert (bed.vcpu.regs.rcx, bed.vcpu.regs.rdx) == (0xAAAA, 0xBBBB)


@pytest.mark.parametrize("bits", [16, 32])
def test_invlpg_runs_without_paging_too(guests: Guests, bits: int) -> None:
    """SDM vol. 2, INVLPG: no exception in real-address mode, and none in ring 0 for any address."""
    pointer = {16: "bx", 32: "ebx"}[bits]
    bed, exit = guests.run(bits, f"mov {pointer}, 0xffff\ninvlpg [{pointer}]\nmov al, 7\nhlt")
    assert isinstance(exit, Hlt)
    assert bed.vcpu.regs.rax & 0xFF == 7


@pytest.mark.needs("exceptions_64", "control_checks")
def test_a_reserved_bit_of_cr4_is_refused(guests: Guests) -> None:
    bed, exit = guests.run(64, "mov rax, cr4\nbts eax, 15\nmov cr4, rax\nhlt")
    assert bed.vector(exit) == GP  # SDM vol. 3, 2.5
    assert bed.frame(2) == [0, CODE + 7]


@pytest.mark.needs("exceptions_64", "control_checks")
def test_paging_cannot_be_switched_off_in_64_bit_mode(guests: Guests) -> None:
    bed, exit = guests.run(64, "mov rax, cr0\nbtr rax, 31\nmov cr0, rax\nhlt")
    assert bed.vector(exit) == GP  # SDM vol. 3, 9.8.5.4


@pytest.mark.parametrize(("table", "field"), [("gdt", "gdt"), ("idt", "idt")])
@pytest.mark.parametrize(("bits", "base"), [(16, 0x123456), (32, 0x12345678), (64, 0x123456789ABC)])
def test_lgdt_and_lidt_load_limit_and_base(guests: Guests, bits: int, base: int, table: str, field: str) -> None:
    pointer = {16: "bx", 32: "ebx", 64: "rbx"}[bits]
    bed = guests.load(bits, f"mov {pointer}, {DATA}\nl{table} [{pointer}]\nhlt")
    bed.memory.write(DATA, (0x7F).to_bytes(2, "little") + base.to_bytes(8, "little"))
    assert isinstance(bed.go(), Hlt)
    loaded = getattr(bed.vcpu.sregs, field)
    assert (loaded.base, loaded.limit) == (base, 0x7F)


@pytest.mark.parametrize("table", ["gdt", "idt"])
def test_sgdt_and_sidt_store_what_was_loaded(guests: Guests, table: str) -> None:
    bed, exit = guests.run(64, f"mov rbx, {DATA}\ns{table} [rbx]\nhlt")
    assert isinstance(exit, Hlt)
    loaded = getattr(bed.vcpu.sregs, table)
    assert bed.memory.read(DATA, 10) == loaded.limit.to_bytes(2, "little") + loaded.base.to_bytes(8, "little")


@pytest.mark.parametrize("bits", MODES)
def test_rdtsc_counts_up(guests: Guests, bits: int) -> None:
    bed, exit = guests.run(bits, "rdtsc\nmov esi, eax\nmov edi, edx\nrdtsc\nhlt")
    assert isinstance(exit, Hlt)
    regs = bed.vcpu.regs
    assert regs.rdx << 32 | regs.rax > regs.rdi << 32 | regs.rsi


@pytest.mark.needs("hypercall", "exceptions_64")
@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_a_hypercall_is_unknown_or_answered(guests: Guests, instruction: str) -> None:
    """The instruction of the other vendor raises #UD; the host's own, KVM answers with -KVM_ENOSYS for number 0."""
    bed, exit = guests.run(64, f"xor eax, eax\n{instruction}\nhlt")
    if isinstance(exit, Hypercall):  # the accelerator leaves it to us
        assert exit.number == 0
        exit.result = (1 << 64) - 1000
        exit = bed.go()
    if isinstance(exit, Hlt):
        assert bed.vcpu.regs.rax == (1 << 64) - 1000  # <linux/kvm_para.h>
    else:
        assert bed.vector(exit) == UD


def test_smsw_and_mov_cr0_agree(guests: Guests) -> None:
    bed, exit = guests.run(32, "smsw ax\nmov ebx, cr0\nhlt")
    assert isinstance(exit, Hlt)
    assert bed.vcpu.regs.rax & 0xFFFF == bed.vcpu.regs.rbx & 0xFFFF


def test_a_far_jump_enters_protected_mode(guests: Guests) -> None:
    """Real mode to 32-bit protected mode, as every boot does (SDM vol. 3, 9.9.1)."""
    source = """
        lgdt [gdt_register]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword 8:protected
    .code32
    protected:
        mov ax, 0x10
        mov ss, ax
        out 0xf0, eax
        hlt
    gdt:
        .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
    gdt_register:
        .word 23
        .long gdt
    """
    bed, exit = guests.run(16, source)
    assert isinstance(exit, IoOut)
    sregs = bed.vcpu.sregs
    assert sregs.cr0 & CR0.PE
    assert (sregs.cs.selector, sregs.cs.db, sregs.cs.limit) == (8, 1, 0xFFFFFFFF)
    assert (sregs.ss.selector, sregs.ss.dpl) == (0x10, 0)


def test_long_mode_is_reached_from_protected_mode(guests: Guests) -> None:
    """PAE, CR3, EFER.LME, CR0.PG, and a far jump to a segment with L set (SDM vol. 3, 9.8.5)."""
    source = """
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov eax, 0x100000
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        jmp 0x18:long
    .code64
    long:
        mov rax, 0x1122334455667788
        hlt
    """
    bed = guests.load(32, source)
    for i, at in enumerate((0x100000, 0x101000)):
        bed.memory.write_int(at, 8, 0x101000 + i * 0x1000 | 3)
    bed.memory.write_int(0x102000, 8, 0x83)
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == 0x1122334455667788
    assert bed.vcpu.sregs.efer & 0x500 == 0x500  # LME and LMA
    assert bed.vcpu.sregs.cs.l == 1
