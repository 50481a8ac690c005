"""The accelerator's own walk of the guest's page tables, against the walker of `kvmpy.cpu.paging`."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from conftest import Guests

from kvmpy.accel.exits import Hlt
from kvmpy.accel.testbed import PML4, Testbed
from kvmpy.cpu.flags import CR0, CR4, EFER
from kvmpy.cpu.page_tables import PAGE_1G, PAGE_2M, PAGE_4K, PageTables
from kvmpy.cpu.paging import walk
from kvmpy.cpu.state import SystemRegisters

P, W, U, PS, ACCESSED, DIRTY, NX = 1, 2, 4, 0x80, 0x20, 0x40, 1 << 63
TABLES = 0x10_0000
TABLE_COUNT = 8


def compare(bed: Testbed, sregs: SystemRegisters, addresses: Iterator[int]) -> int:
    """Ask both for every address; return how many are mapped."""
    bed.vcpu.sregs = sregs
    has_1g = bed.vcpu.cpuid.has("page1gb")
    mapped = 0
    for gva in addresses:
        ours = walk(bed.memory.read, sregs, gva)
        if ours.page_size == PAGE_1G and not has_1g:
            continue  # the bit is reserved then, and a walk does not know the processor's features
        assert bed.vcpu.translate(gva) == ours.gpa, "\n".join(ours.explain())
        mapped += ours.gpa is not None
    return mapped


@pytest.mark.parametrize("seed", range(5))
def test_what_the_builder_maps(guests: Guests, seed: int) -> None:
    """Pages of 4 KiB and 2 MiB at random places in both halves, and addresses in and beside them."""
    rng = random.Random(seed)
    bed = guests.load(64, "hlt")
    tables = PageTables(TABLES)
    places = []
    for _ in range(12):
        size = rng.choice((PAGE_4K, PAGE_2M))
        gva = rng.choice((0, 0xFFFF_8000_0000_0000)) + rng.randrange(4) * (1 << 39) + rng.randrange(8) * PAGE_2M
        if any(abs(gva - other) < PAGE_2M for other, _ in places):
            continue
        gpa = rng.randrange(1 << 30) // size * size
        tables.map(gva, gpa, size, page_size=size, user=rng.random() < 0.5, writable=rng.random() < 0.5)
        places.append((gva, size))
    bed.memory.write(TABLES, tables.encode())
    sregs = bed.vcpu.sregs
    sregs.cr3 = TABLES
    inside = compare(bed, sregs, (gva + rng.randrange(size) for gva, size in places for _ in range(4)))
    assert inside == 4 * len(places)
    compare(bed, sregs, ((gva + size + rng.randrange(PAGE_2M)) % (1 << 64) for gva, size in places))


FORMATS = {
    "4-level": (8, CR4.PAE, EFER.LME | EFER.LMA | EFER.NXE),
    "PAE": (8, CR4.PAE, EFER.NXE),
    "32-bit": (4, CR4.PSE, 0),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", FORMATS)
def test_tables_of_random_entries(guests: Guests, name: str, seed: int) -> None:
    """Entries that lead to each other's tables, with any rights and large pages; some absent, some with reserved bits.

    Bit 8 stays clear: in upper levels Intel ignores it (table 4-15), AMD's must be zero (APM vol. 2, 5.3.3).
    """
    if name != "4-level" and not guests.accelerator.features.paging_32:
        pytest.skip("this host has no 32-bit paging, and answers as if there were none")
    width, cr4, efer = FORMATS[name]
    rng = random.Random(seed)
    bed = guests.load(64 if name == "4-level" else 32, "hlt")
    for table in range(TABLE_COUNT):
        for index in range(4096 // width):
            entry = TABLES + rng.randrange(TABLE_COUNT) * 0x1000
            entry |= rng.choice((0, P, P, P, P)) | rng.choice((0, W, U, W | U, ACCESSED, DIRTY))
            if rng.random() < 0.2:  # a large page's frame: most have no reserved bits set then
                entry = entry & 0xFFF | PS | rng.randrange(16) << (rng.choice((21, 22, 30)))
            if width == 8 and rng.random() < 0.2:
                entry |= rng.choice((NX, 1 << 53, 1 << 62))
            bed.memory.write(TABLES + table * 0x1000 + index * width, struct.pack("<Q", entry)[:width])
    if name == "PAE":
        for index in range(4):  # bits 8:5 and 2:1 of these are reserved, and loaded with CR3 (SDM vol. 3, 4.4.1)
            bed.memory.write_int(PML4 + 8 * index, 8, TABLES + index * 0x1000 | (P if index != 2 else 0))
    sregs = bed.vcpu.sregs
    sregs.cr0 |= CR0.PE | CR0.PG
    sregs.cr3, sregs.cr4, sregs.efer = PML4 if name == "PAE" else TABLES, int(cr4), int(efer)
    bits = 48 if name == "4-level" else 32
    addresses = (rng.randrange(1 << bits) for _ in range(400))
    if name == "4-level":
        addresses = (gva | (0xFFFF << 48 if gva >> 47 else 0) for gva in addresses)
    assert 20 < compare(bed, sregs, addresses) < 380


WINDOW = 0x1F_0000
READ, WRITE, FETCH = "mov eax, [ebx]", "mov [ebx], eax", "jmp ebx"
PF = 14


def page_by_page(bed: Testbed, name: str) -> int:
    """Build identity tables of user pages for the first 2 MiB, set CR3; return where WINDOW's entry is."""
    width, cr4, efer = FORMATS[name]
    upper, pages = (1, TABLES + 0x1000) if name == "32-bit" else (2, TABLES + 0x2000)
    for n in range(upper):
        rights = P if name == "PAE" and n == 0 else P | W | U
        bed.memory.write_int(TABLES + n * 0x1000, width, TABLES + (n + 1) * 0x1000 | rights)
    for page in range(512):
        bed.memory.write_int(pages + page * width, width, page << 12 | P | W | U)
    sregs = bed.vcpu.sregs
    sregs.cr0 |= CR0.PG | CR0.WP
    sregs.cr3, sregs.cr4, sregs.efer = TABLES, int(cr4), int(efer)
    bed.vcpu.sregs = sregs
    return pages + (WINDOW >> 12) * width


@pytest.mark.needs("paging_32", "exceptions_32")
@pytest.mark.parametrize(
    ("name", "entry", "code", "ring", "error"),
    [
        # SDM vol. 3, 4.7; bit 4 says that it was a fetch only where no-execute (PAE and EFER.NXE) or SMEP is on.
        ("32-bit", 0, READ, 0, 0x0),
        ("32-bit", 0, WRITE, 0, 0x2),
        ("32-bit", 0, FETCH, 0, 0x0),
        ("32-bit", 0, WRITE, 3, 0x6),
        ("32-bit", WINDOW | P, WRITE, 0, 0x3),
        ("32-bit", WINDOW | P | W, READ, 3, 0x5),
        ("32-bit", WINDOW | P | U, WRITE, 3, 0x7),
        ("32-bit", WINDOW | P | W, FETCH, 3, 0x5),
        ("PAE", 0, READ, 0, 0x0),
        ("PAE", 0, FETCH, 0, 0x10),
        ("PAE", 0, FETCH, 3, 0x14),
        ("PAE", WINDOW | P, WRITE, 0, 0x3),
        ("PAE", WINDOW | P | W | NX, FETCH, 0, 0x11),
        ("PAE", WINDOW | P | W | U | NX, FETCH, 3, 0x15),
        ("PAE", WINDOW | P | W | 1 << 62, READ, 0, 0x9),
        ("PAE", WINDOW | P | W | U | 1 << 55, WRITE, 3, 0xF),
    ],
)
def test_page_faults_of_32_bit_paging(guests: Guests, name: str, entry: int, code: str, ring: int, error: int) -> None:
    bed = guests.load(32, f"mov ebx, {WINDOW + 0x123}\n{code}\nhlt", ring=ring)
    at = page_by_page(bed, name)
    bed.memory.write_int(at, FORMATS[name][0], entry)
    assert bed.vector(bed.go()) == PF
    assert bed.frame(1)[0] == error
    assert bed.vcpu.sregs.cr2 == WINDOW + 0x123


@pytest.mark.needs("paging_32")
@pytest.mark.parametrize("name", ["32-bit", "PAE"])
def test_invlpg_makes_a_changed_entry_count_in_32_bit_paging(guests: Guests, name: str) -> None:
    entry = {"32-bit": TABLES + 0x1000 + (WINDOW >> 12) * 4, "PAE": TABLES + 0x2000 + (WINDOW >> 12) * 8}[name]
    other = WINDOW + 0x1000
    bed = guests.load(
        32,
        f"mov ebx, {WINDOW}\nmov ecx, [ebx]\nmov esi, {entry}\nmov dword ptr [esi], {other | P | W}\n"
        "invlpg [ebx]\nmov edx, [ebx]\nhlt",
    )
    assert page_by_page(bed, name) == entry
    bed.memory.write_int(WINDOW, 4, 0xAAAA)
    bed.memory.write_int(other, 4, 0xBBBB)
    assert isinstance(bed.go(), Hlt)
    assert (bed.vcpu.regs.rcx, bed.vcpu.regs.rdx) == (0xAAAA, 0xBBBB)
