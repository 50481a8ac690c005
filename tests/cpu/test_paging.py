"""The builder's page tables, walked; and the walker on tables made by hand."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.cpu.flags import CR0, CR4, EFER, RFLAGS, PageFault
from kvmpy.cpu.modes import long_mode
from kvmpy.cpu.page_tables import PAGE_1G, PAGE_2M, PAGE_4K, PageTables
from kvmpy.cpu.paging import Walk, walk
from kvmpy.cpu.state import SystemRegisters
from kvmpy.errors import ConfigError, MemoryAccessError

BASE = 0x10_0000
P, W, U, PS, NX = 1, 2, 4, 0x80, 1 << 63
READ = PageFault(0)


class Tables:
    """Memory in which tables lie."""

    def __init__(self) -> None:
        self.memory: dict[int, bytes] = {}

    def put(self, gpa: int, data: bytes) -> None:
        for at in range(0, len(data), 4):
            self.memory[gpa + at] = data[at : at + 4]

    def read(self, gpa: int, size: int) -> bytes:
        if gpa not in self.memory:
            raise MemoryAccessError(f"{gpa:#x}: no memory there")
        return b"".join(self.memory[gpa + at] for at in range(0, size, 4))


def long_registers(cr3: int = BASE) -> SystemRegisters:
    return long_mode(0, 0, cr3).sregs


def built(tables: PageTables) -> Tables:
    memory = Tables()
    memory.put(tables.base, tables.encode())
    return memory


pages = st.sampled_from([PAGE_4K, PAGE_2M, PAGE_1G])


@given(
    page_size=pages,
    gva=st.integers(0, (1 << 47) - (1 << 31)),
    gpa=st.integers(0, (1 << 45)),
    inside=st.integers(0, PAGE_1G - 1),
    writable=st.booleans(),
    user=st.booleans(),
    executable=st.booleans(),
    high=st.booleans(),
)
def test_what_is_mapped_is_found_with_its_rights(
    page_size: int, gva: int, gpa: int, inside: int, writable: bool, user: bool, executable: bool, high: bool
) -> None:
    gva, gpa, inside = gva // page_size * page_size, gpa // page_size * page_size, inside % page_size
    gva |= (1 << 64) - (1 << 47) if high else 0
    tables = PageTables(BASE)
    tables.map(gva, gpa, page_size, page_size=page_size, writable=writable, user=user, executable=executable)
    memory = built(tables)

    def fault(access: PageFault) -> Walk:
        return walk(memory.read, long_registers(), gva + inside, access)

    found = fault(READ)
    assert (found.gpa, found.page_size) == (gpa + inside, page_size)
    assert (fault(PageFault.WRITE).gpa is None) == (not writable)
    assert (fault(PageFault.USER).gpa is None) == (not user)
    assert (fault(PageFault.FETCH).gpa is None) == (not executable)
    beyond = gva + page_size if gva + page_size < 1 << 64 else 0
    assert walk(memory.read, long_registers(), beyond, READ).gpa is None


@pytest.mark.parametrize(
    ("entry", "access", "code"),
    [
        (0, READ, 0),
        (0, PageFault.WRITE, 2),
        (0, PageFault.USER, 4),
        (0, PageFault.USER | PageFault.WRITE, 6),
        (0, PageFault.FETCH, 16),
        (P, PageFault.WRITE, 3),
        (P | W, PageFault.USER, 5),
        (P | W, PageFault.USER | PageFault.WRITE, 7),
        (P | U, PageFault.USER | PageFault.WRITE, 7),
        (P | W | U | NX, PageFault.FETCH, 17),
        (P | W | U | NX, PageFault.USER | PageFault.FETCH, 21),
        (P | W, READ, None),
        (P | W | U, PageFault.USER | PageFault.WRITE, None),
    ],
)
def test_error_codes(entry: int, access: PageFault, code: int | None) -> None:
    """Intel SDM vol. 3, figure 4-12: P bit 0, W/R bit 1, U/S bit 2, RSVD bit 3, I/D bit 4; CR0.WP is set."""
    memory = Tables()
    for at, value in ((0x1000, 0x2000 | P | W | U), (0x2000, 0x3000 | P | W | U), (0x3000, 0x4000 | P | W | U)):
        memory.put(at, struct.pack("<Q", value))
    memory.put(0x4000, struct.pack("<Q", 0x9000 | entry if entry else 0))
    found = walk(memory.read, long_registers(0x1000), 0x123, access)
    assert (None if found.error_code is None else int(found.error_code)) == code
    assert found.gpa == (0x9123 if code is None else None)


@pytest.mark.parametrize("level", range(4))
def test_a_right_that_one_level_lacks_is_lacking(level: int) -> None:
    """4.6.1: a page is writable if every entry on the way says so, and so for user mode."""
    for missing, access in ((W, PageFault.WRITE), (U, PageFault.USER)):
        memory = Tables()
        for n in range(4):
            entry = 0x1000 * (n + 2) | P | W | U
            memory.put(0x1000 * (n + 1), struct.pack("<Q", entry & ~missing if n == level else entry))
        assert walk(memory.read, long_registers(0x1000), 0, access).gpa is None
        assert walk(memory.read, long_registers(0x1000), 0, READ).gpa == 0x5000


def legacy(cr4: int = 0, cr0: int = 0) -> SystemRegisters:
    return SystemRegisters(cr0=CR0.PE | CR0.PG | cr0, cr4=cr4, cr3=0x1000)


def test_32_bit_paging() -> None:
    """Figure 4-2: ten bits for each of two levels; with CR4.PSE a directory entry maps 4 MiB."""
    memory = Tables()
    memory.put(0x1000 + 4 * 0x048, struct.pack("<I", 0x2000 | P | W | U))
    memory.put(0x2000 + 4 * 0x345, struct.pack("<I", 0xABCDE000 | P))
    assert walk(memory.read, legacy(), 0x048 << 22 | 0x345 << 12 | 0x678, READ).gpa == 0xABCDE678
    memory.put(0x1000 + 4 * 1, struct.pack("<I", 0x0080_0000 | P | W | PS))
    assert walk(memory.read, legacy(CR4.PSE), 0x0052_3456, READ).gpa == 0x0092_3456
    assert walk(memory.read, legacy(CR4.PSE), 0x0052_3456, READ).page_size == 4 << 20
    memory.put(0x1000 + 4 * 2, struct.pack("<I", 0x0080_0000 | 0x3 << 13 | P | W | PS))
    assert walk(memory.read, legacy(CR4.PSE), 0x0080_0001, READ).gpa == 0x3_0080_0001  # PSE-36 (table 4-4)


def test_pae_paging() -> None:
    """Figure 4-5: two bits, then nine and nine; a PDPTE has no rights, and bits 2:1 of it are reserved (table 4-8)."""
    memory = Tables()
    memory.put(0x1000 + 8 * 1, struct.pack("<Q", 0x2000 | P))
    memory.put(0x2000 + 8 * 0x100, struct.pack("<Q", 0x3000 | P | W | U))
    memory.put(0x3000 + 8 * 0x55, struct.pack("<Q", 0xF_1234_5000 | P | W))
    registers = legacy(CR4.PAE)
    address = 1 << 30 | 0x100 << 21 | 0x55 << 12 | 0xABC
    assert walk(memory.read, registers, address, PageFault.WRITE).gpa == 0xF_1234_5ABC
    memory.put(0x1000 + 8 * 1, struct.pack("<Q", 0x2000 | P | W))
    found = walk(memory.read, registers, address, READ)
    assert int(found.error_code or 0) == 9  # present and reserved


@pytest.mark.parametrize(
    ("cr4", "rflags", "access", "allowed"),
    [
        (0, 0, READ, True),
        (CR4.SMAP, 0, READ, False),
        (CR4.SMAP, RFLAGS.AC, READ, True),
        (CR4.SMEP, 0, READ, True),
        (CR4.SMEP, 0, PageFault.FETCH, False),
        (CR4.SMEP | CR4.SMAP, 0, PageFault.USER, True),
    ],
)
def test_user_pages_from_outside_of_ring_3(cr4: int, rflags: int, access: PageFault, allowed: bool) -> None:
    """4.6.1: SMAP and SMEP."""
    tables = PageTables(BASE)
    tables.map(0, 0, PAGE_2M, user=True)
    registers = long_registers()
    registers.cr4 |= cr4
    assert (walk(built(tables).read, registers, 0x1000, access, rflags=rflags).gpa is not None) == allowed


def test_without_cr0_wp_ring_0_may_write_what_is_read_only() -> None:
    tables = PageTables(BASE)
    tables.map(0, 0, PAGE_4K, writable=False, user=True)
    registers = long_registers()
    registers.cr0 &= ~CR0.WP
    assert walk(built(tables).read, registers, 0, PageFault.WRITE).gpa == 0
    assert walk(built(tables).read, registers, 0, PageFault.WRITE | PageFault.USER).gpa is None


def test_without_efer_nxe_bit_63_is_reserved() -> None:
    tables = PageTables(BASE)
    tables.map(0, 0, PAGE_4K, executable=False)
    registers = long_registers()
    registers.efer &= ~EFER.NXE
    assert int(walk(built(tables).read, registers, 0, READ).error_code or 0) == 9


@pytest.mark.parametrize("gva", [1 << 47, (1 << 64) - (1 << 47) - 1, 1 << 63])
def test_addresses_that_are_not_canonical(gva: int) -> None:
    found = walk(built(PageTables(BASE)).read, long_registers(), gva, READ)
    assert (found.gpa, found.error_code) == (None, None)
    assert "not canonical" in found.reason


def test_a_table_outside_of_memory_is_told() -> None:
    found = walk(Tables().read, long_registers(0x7000), 0, READ)
    assert found.gpa is None
    assert "outside memory" in found.reason


@pytest.mark.parametrize(
    "arguments",
    [
        (0x1001, 0, 4096),
        (0, 1, 4096),
        (0, 0, 4095),
        (0, 0, 0),
        (1 << 47, 0, 4096),
        ((1 << 47) - 4096, 0, 8192),
        (0, 1 << 52, 4096),
    ],
)
def test_mappings_that_cannot_be(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        PageTables(BASE).map(*arguments)


def test_what_is_mapped_twice_is_refused() -> None:
    tables = PageTables(BASE)
    tables.map(0, 0, PAGE_2M, page_size=PAGE_2M)
    for size in (PAGE_4K, PAGE_2M, PAGE_1G):
        with pytest.raises(ConfigError, match="mapped there already"):
            tables.map(0, 0, size, page_size=size)
