"""The parts of a post-mortem, on tables that were built with the manual's values."""

from __future__ import annotations

from kvmpy.cpu.modes import long_mode, protected_mode, real_mode
from kvmpy.cpu.page_tables import PAGE_2M, PageTables
from kvmpy.cpu.segments import Gate, Idt
from kvmpy.cpu.state import SystemRegisters
from kvmpy.lab.postmortem import idt_lines, instruction_lines, stack_lines, walk_lines
from kvmpy.memory import GuestMemory

SYMBOLS = {"start": 0x8000, "on_fault": 0x9000}
TABLES, IDT = 0x1000, 0x6000


def gates(bits: int) -> Idt:
    """#GP to on_fault, #PF to on_fault + 0x10 on IST 3, #DF not there (vectors 13, 14, 8)."""
    idt = Idt(bits=bits)
    idt.set(13, Gate(0x18, 0x9000))
    idt.set(14, Gate(0x18, 0x9010, ist=3 if bits == 64 else 0))
    return idt


def with_idt(memory: GuestMemory, sregs: SystemRegisters, bits: int) -> SystemRegisters:
    memory.write(IDT, gates(bits).encode())
    sregs.idt = gates(bits).register(IDT)
    return sregs


def in_long_mode(memory: GuestMemory) -> SystemRegisters:
    tables = PageTables(TABLES)
    tables.map(0, 0, PAGE_2M)
    memory.write(TABLES, tables.encode())
    return with_idt(memory, long_mode(0x8000, 0x7000, TABLES).sregs, 64)


def test_gates_of_long_mode() -> None:
    """16 bytes each (Intel SDM vol. 3, figure 6-8)."""
    with GuestMemory(PAGE_2M) as memory:
        assert list(idt_lines(memory, in_long_mode(memory), SYMBOLS)) == [
            " 13 #GP: 0018:0x9000 <on_fault> type 0xe ist 0",
            " 14 #PF: 0018:0x9010 <on_fault+0x10> type 0xe ist 3",
            "  8 #DF: not present",
        ]


def test_gates_of_protected_mode() -> None:
    """8 bytes each (figure 6-2)."""
    with GuestMemory(PAGE_2M) as memory:
        sregs = with_idt(memory, protected_mode(0x8000, 0x7000).sregs, 32)
        assert next(iter(idt_lines(memory, sregs, SYMBOLS))) == " 13 #GP: 0018:0x9000 <on_fault> type 0xe ist 0"


def test_the_vector_table_of_real_mode() -> None:
    """Offset and segment, 4 bytes each (20.1.4)."""
    with GuestMemory(PAGE_2M) as memory:
        memory.write(13 * 4, bytes.fromhex("1000 0009"))
        assert (
            next(iter(idt_lines(memory, real_mode(0x8000).sregs, SYMBOLS)))
            == " 13 #GP: 0900:0010 = 0x9010 <on_fault+0x10>"
        )


def test_a_table_that_ends_before_the_vector() -> None:
    with GuestMemory(PAGE_2M) as memory:
        sregs = in_long_mode(memory)
        sregs.idt.limit = 13 * 16 + 15
        lines = list(idt_lines(memory, sregs, SYMBOLS))
        assert "0x9000" in lines[0]
        assert lines[1] == " 14 #PF: beyond the table's limit 0xdf"


def test_a_table_that_is_not_mapped() -> None:
    with GuestMemory(PAGE_2M) as memory:
        sregs = in_long_mode(memory)
        sregs.idt.base = 0x4000_0000
        assert "not readable: the PDPT entry is not present" in next(iter(idt_lines(memory, sregs, SYMBOLS)))


def test_the_instruction_and_what_lies_on_the_stack() -> None:
    with GuestMemory(PAGE_2M) as memory:
        sregs = in_long_mode(memory)
        memory.write(0x8000, bytes.fromhex("0f0b"))
        memory.write(0x7000, (0x9004).to_bytes(8, "little"))
        regs = long_mode(0x8000, 0x7000, TABLES).regs
        assert list(instruction_lines(memory, regs, sregs, SYMBOLS)) == ["0x8000 <start>: 0f 0b  ud2"]
        assert (
            next(iter(stack_lines(memory, regs, sregs, SYMBOLS))) == "0x7000: 0000000000009004  0x9004 <on_fault+0x4>"
        )


def test_the_walk_of_an_address() -> None:
    with GuestMemory(PAGE_2M) as memory:
        assert "fails: the PD entry is not present" in list(walk_lines(memory, in_long_mode(memory), PAGE_2M))[-1]
        assert list(walk_lines(memory, real_mode(0).sregs, 0)) == ["paging is off"]
