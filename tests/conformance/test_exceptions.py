"""Exceptions and software interrupts: vector, error code, CR2, saved address (Intel SDM vol. 3, chapter 6)."""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy.accel.exits import Shutdown
from kvmpy.accel.testbed import CODE, DATA, HANDLERS, IDT, PML4, PT, Testbed
from kvmpy.cpu.flags import CR0, CR4, EFER
from kvmpy.cpu.state import DescriptorTable

DE, DB, BP, OF, UD, NM, DF, NP, SS, GP, PF = 0, 1, 3, 4, 6, 7, 8, 11, 12, 13, 14
WINDOW = 0x1F_0000
ENTRY = PT + (WINDOW >> 12) * 8
PRESENT, WRITABLE, USER, NO_EXECUTE = 1, 2, 4, 1 << 63
ALL_MODES = [pytest.param(bits, marks=pytest.mark.needs(f"exceptions_{bits}")) for bits in (16, 32, 64)]


def saved_ip(bed: Testbed, *, error_code: bool = False) -> int:
    return bed.frame(2)[int(error_code)]


@pytest.mark.parametrize("bits", ALL_MODES)
@pytest.mark.parametrize(
    ("vector", "source", "at"),
    [
        (DE, "xor edx, edx\nxor ecx, ecx\nfault: div ecx", "fault"),
        (DE, "mov eax, 0x1000\nmov cl, 1\nfault: div cl", "fault"),  # the quotient does not fit in AL
        (UD, "nop\nfault: ud2", "fault"),
    ],
)
def test_faults_save_the_address_of_the_instruction(
    guests: Guests, bits: int, vector: int, source: str, at: str
) -> None:
    from kvmpy.asm import assemble

    bed, exit = guests.run(bits, source + "\nhlt")
    assert bed.vector(exit) == vector
    assert saved_ip(bed) == assemble(source, bits=bits, origin=CODE).symbols[at]


@pytest.mark.needs("exceptions_16", "segment_limits")
def test_real_mode_gp_beyond_the_segment_limit(guests: Guests) -> None:
    bed, exit = guests.run(16, "mov bx, 0xffff\nmov eax, [bx]\nhlt")
    assert bed.vector(exit) == GP  # SDM vol. 2: "if a memory operand effective address is outside the segment limit"
    assert saved_ip(bed) == CODE + 3  # real mode pushes no error code


@pytest.mark.needs("exceptions_32")
@pytest.mark.parametrize(
    ("selector", "vector", "error"), [(0x200, GP, 0x200), (0x204, GP, 0x204), (0x3F8 | 2, GP, 0x3F8)]
)
def test_a_selector_beyond_the_gdt_gives_gp_with_the_selector(
    guests: Guests, selector: int, vector: int, error: int
) -> None:
    bed, exit = guests.run(32, f"mov ax, {selector}\nmov es, ax\nhlt")
    assert bed.vector(exit) == vector
    assert bed.frame(1)[0] == error  # index and TI; RPL is not part of it (SDM vol. 3, 6.13)


@pytest.mark.needs("exceptions_32")
def test_a_segment_that_is_not_present_gives_np(guests: Guests) -> None:
    bed = guests.load(32, "mov ax, 0x40\nmov es, ax\nhlt")
    sregs = bed.vcpu.sregs
    bed.memory.write_int(sregs.gdt.base + 0x40, 8, 0x00CF13000000FFFF)  # flat data, P clear
    assert bed.vector(bed.go()) == NP
    assert bed.frame(1)[0] == 0x40


@pytest.mark.needs("exceptions_64")
def test_an_address_that_is_not_canonical_gives_gp_0(guests: Guests) -> None:
    bed, exit = guests.run(64, "mov rbx, 0x800000000000\nmov rax, [rbx]\nhlt")
    assert bed.vector(exit) == GP
    assert bed.frame(2) == [0, CODE + 10]


@pytest.mark.needs("exceptions_64", "stack_faults")
def test_a_stack_address_that_is_not_canonical_gives_ss_0(guests: Guests) -> None:
    """#SS for a stack access (SDM vol. 1, 3.3.7.1); the handler needs a stack of its own, IST1."""
    bed = guests.load(64, "mov rbp, 0x800000000000\nmov rax, [rbp]\nhlt")
    assert bed.vector(bed.go()) == SS
    assert bed.frame(1)[0] == 0


@pytest.mark.needs("exceptions_64")
def test_task_switched_gives_nm_for_x87(guests: Guests) -> None:
    bed = guests.load(64, "nop\nfninit\nhlt")
    sregs = bed.vcpu.sregs
    sregs.cr0 |= CR0.TS
    bed.vcpu.sregs = sregs
    assert bed.vector(bed.go()) == NM  # SDM vol. 3, 2.5, TS
    assert saved_ip(bed) == CODE + 1


@pytest.mark.needs("exceptions_64", "sse")
def test_task_switched_gives_nm_for_sse(guests: Guests) -> None:
    """SDM vol. 3, 2.5, TS: MMX and SSE instructions too."""
    bed = guests.load(64, "nop\nxorps xmm0, xmm0\nhlt")
    sregs = bed.vcpu.sregs
    sregs.cr0 |= CR0.TS
    bed.vcpu.sregs = sregs
    assert bed.vector(bed.go()) == NM
    assert saved_ip(bed) == CODE + 1


# Page faults: what the entry of WINDOW says, what the code does, and the error code (SDM vol. 3, 4.7).
READ, WRITE = "mov rbx, {at}\nmov rax, [rbx]", "mov rbx, {at}\nmov [rbx], rax"
FETCH = "mov rbx, {at}\njmp rbx"
PAGE = WINDOW | PRESENT | WRITABLE
RESERVED = 1 << 51


@pytest.mark.needs("exceptions_64")
@pytest.mark.parametrize(
    ("entry", "code", "ring", "error"),
    [
        (0, READ, 0, 0x00),
        (0, WRITE, 0, 0x02),
        (0, FETCH, 0, 0x10),
        (0, READ, 3, 0x04),
        (0, WRITE, 3, 0x06),
        (0, FETCH, 3, 0x14),
        (WINDOW | PRESENT, WRITE, 0, 0x03),
        (WINDOW | PRESENT | USER, WRITE, 3, 0x07),
        (PAGE, READ, 3, 0x05),
        (PAGE, WRITE, 3, 0x07),
        (PAGE, FETCH, 3, 0x15),
        (PAGE | NO_EXECUTE, FETCH, 0, 0x11),
        (PAGE | USER | NO_EXECUTE, FETCH, 3, 0x15),
        (PAGE | RESERVED, READ, 0, 0x09),
        (PAGE | RESERVED, WRITE, 0, 0x0B),
        (PAGE | USER | RESERVED, READ, 3, 0x0D),
    ],
)
def test_page_fault_error_codes(guests: Guests, entry: int, code: str, ring: int, error: int) -> None:
    bed = guests.load(64, code.format(at=WINDOW + 0x123) + "\nhlt", ring=ring)
    if entry & RESERVED and _physical_bits(bed) > 51:
        pytest.skip("this processor has 52 physical address bits: bit 51 is not reserved")
    bed.memory.write_int(ENTRY, 8, entry)
    assert bed.vector(bed.go()) == PF
    assert bed.frame(1)[0] == error
    assert bed.vcpu.sregs.cr2 == WINDOW + 0x123


def _physical_bits(bed: Testbed) -> int:
    leaf = bed.vcpu.cpuid.find(0x8000_0008)
    return leaf.eax & 0xFF if leaf else 36


@pytest.mark.needs("exceptions_64")
def test_a_reserved_bit_in_an_upper_level(guests: Guests) -> None:
    bed = guests.load(64, f"mov rbx, {1 << 39}\nmov rax, [rbx]\nhlt")
    bed.memory.write_int(PML4 + 8, 8, 0x2087)  # PS is reserved in a PML4 entry (SDM vol. 3, table 4-15)
    assert bed.vector(bed.go()) == PF
    assert bed.frame(1)[0] == 0x09


@pytest.mark.needs("exceptions_64")
@pytest.mark.parametrize(
    ("feature", "bit", "code", "error"), [("smep", CR4.SMEP, FETCH, 0x11), ("smap", CR4.SMAP, READ, 0x01)]
)
def test_ring_0_is_kept_out_of_user_pages(guests: Guests, feature: str, bit: CR4, code: str, error: int) -> None:
    """SMEP and SMAP (SDM vol. 3, 4.6.1). Everything the testbed itself needs is made a supervisor's page first."""
    bed = guests.load(64, code.format(at=WINDOW) + "\nhlt")
    if not bed.vcpu.cpuid.has(feature):
        pytest.skip(f"this host's KVM does not offer {feature.upper()}")
    for page in range(512):
        bed.memory.write_int(PT + page * 8, 8, page << 12 | PRESENT | WRITABLE)
    bed.memory.write_int(ENTRY, 8, PAGE | USER)
    sregs = bed.vcpu.sregs
    sregs.cr4 |= bit
    bed.vcpu.sregs = sregs
    assert bed.vector(bed.go()) == PF
    assert bed.frame(1)[0] == error


def test_ring_0_may_write_read_only_pages_while_wp_is_clear(guests: Guests) -> None:
    from kvmpy.accel.exits import Hlt

    bed = guests.load(64, WRITE.format(at=WINDOW) + "\nhlt")
    bed.memory.write_int(ENTRY, 8, WINDOW | PRESENT)
    sregs = bed.vcpu.sregs
    sregs.cr0 &= ~CR0.WP
    bed.vcpu.sregs = sregs
    assert isinstance(bed.go(), Hlt)


def test_execute_disable_needs_efer_nxe(guests: Guests) -> None:
    """Without NXE bit 63 is reserved: the fetch of a page that has it faults with RSVD (SDM vol. 3, 4.7)."""
    bed = guests.load(64, READ.format(at=WINDOW) + "\nhlt")
    bed.memory.write_int(ENTRY, 8, PAGE | NO_EXECUTE)
    sregs = bed.vcpu.sregs
    sregs.efer &= ~int(EFER.NXE)
    bed.vcpu.sregs = sregs
    assert bed.vector(bed.go()) == PF
    assert bed.frame(1)[0] == 0x09


INT_MODES = [
    pytest.param(16, marks=pytest.mark.needs("int_n_16")),
    pytest.param(32, marks=pytest.mark.needs("int_n_32")),
    pytest.param(64, marks=pytest.mark.needs("int_n")),
]


@pytest.mark.parametrize("bits", INT_MODES)
@pytest.mark.parametrize("vector", [0x20, 0x7F, 0x80, 0xFF])
def test_int_n_saves_the_address_behind_it(guests: Guests, bits: int, vector: int) -> None:
    if bits == 16 and vector > 0x7F and not guests.accelerator.features.int_n_16_high:
        pytest.skip("this host takes a vector above 127 for a negative number")
    bed, exit = guests.run(bits, f"int {vector}\nhlt")
    assert bed.vector(exit) == vector
    assert saved_ip(bed) == CODE + 2


@pytest.mark.needs("int3")
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_int3_saves_the_address_behind_it(guests: Guests, bits: int) -> None:
    bed, exit = guests.run(bits, "int3\nhlt")
    assert bed.vector(exit) == BP
    assert saved_ip(bed) == CODE + 1


@pytest.mark.needs("exceptions_64")
def test_int3_in_ring_3_arrives_in_ring_0(guests: Guests) -> None:
    bed, exit = guests.run(64, "int3\nhlt", ring=3)
    assert bed.vector(exit) == BP
    ip, cs = bed.frame(2)
    assert (ip, cs & 3) == (CODE + 1, 3)
    assert bed.vcpu.sregs.cs.selector & 3 == 0


def clear_gate(bed: Testbed, vector: int) -> None:
    """Clear the gate's P bit (Intel SDM vol. 3, 6.11)."""
    at = IDT + vector * (16 if bed.bits == 64 else 8) + 5
    bed.memory.write_int(at, 1, bed.memory.read_int(at, 1) & 0x7F)


@pytest.mark.parametrize("bits", ALL_MODES[1:])
def test_a_fault_whose_gate_is_missing_becomes_a_double_fault(guests: Guests, bits: int) -> None:
    """#DE, then #NP for the gate: two contributory faults (SDM vol. 3, table 6-5)."""
    bed = guests.load(bits, "xor ecx, ecx\ndiv ecx\nhlt")
    clear_gate(bed, DE)
    clear_gate(bed, NP)
    assert bed.vector(bed.go()) == DF
    assert bed.frame(1)[0] == 0


@pytest.mark.needs("serial_faults")
@pytest.mark.parametrize("bits", ALL_MODES[1:])
def test_a_missing_gate_gives_np_with_the_vector(guests: Guests, bits: int) -> None:
    """A benign exception first, #UD: then #NP is delivered by itself; error code: vector, IDT and EXT bits."""
    bed = guests.load(bits, "ud2\nhlt")
    clear_gate(bed, UD)
    assert bed.vector(bed.go()) == NP
    assert bed.frame(1)[0] & ~1 == UD << 3 | 2


@pytest.mark.parametrize("bits", [pytest.param(16, marks=pytest.mark.needs("ivt_limit")), 32, 64])
def test_a_fault_without_an_interrupt_table_shuts_down(guests: Guests, bits: int) -> None:
    bed = guests.load(bits, "ud2\nhlt")
    sregs = bed.vcpu.sregs
    sregs.idt = DescriptorTable(0, 0)
    bed.vcpu.sregs = sregs
    assert isinstance(bed.go(), Shutdown)


def test_16_bit_protected_mode_without_an_interrupt_table_shuts_down(guests: Guests) -> None:
    """The way that software resets a 286: an empty IDT, protected mode, and any exception."""
    bed, exit = guests.run(16, f"mov bx, {DATA}\nlidt [bx]\nmov eax, cr0\nor al, 1\nmov cr0, eax\nud2\nhlt")
    assert isinstance(exit, Shutdown)
    assert bed.vcpu.sregs.idt.limit == 0
    assert not bed.vcpu.sregs.cs.db


@pytest.mark.needs("exceptions_64")
def test_the_interrupt_stack_table_switches_stacks(guests: Guests) -> None:
    """A gate with IST 1 takes IST1 of the TSS, also without a change of ring (SDM vol. 3, 6.14.5)."""
    from kvmpy.accel.testbed import TSS

    bed = guests.load(64, "ud2\nhlt")
    bed.memory.write(IDT + UD * 16 + 4, b"\x01")
    bed.memory.write_int(TSS + 0x24, 8, 0x1A000)  # IST1 (SDM vol. 3, figure 7-11)
    assert bed.vector(bed.go()) == UD
    assert bed.vcpu.regs.rsp == 0x1A000 - 40


@pytest.mark.needs("iret_64", "exceptions_64")
def test_a_handler_returns_by_iret(guests: Guests) -> None:
    from kvmpy.accel.exits import Hlt
    from kvmpy.asm import assemble

    bed = guests.load(64, "ud2\nnop\nhlt")
    handler = assemble("add qword ptr [rsp], 2\niretq", bits=64, origin=DATA).code
    bed.memory.write(DATA, handler)
    bed.memory.write(IDT + UD * 16, (DATA & 0xFFFF).to_bytes(2, "little"))
    assert HANDLERS >> 16 == DATA >> 16  # the rest of the gate's offset is the same
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rip == CODE + 4
