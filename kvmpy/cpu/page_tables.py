"""Builds the page tables of long mode: 4-level paging with pages of 4 KiB, 2 MiB and 1 GiB (Intel SDM vol. 3, 4.5).

On the path of a long-mode boot; `kvmpy.cpu.paging` walks tables and tells what it finds.
"""

from __future__ import annotations

import struct

from kvmpy.cpu.bits import GLOBAL, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE
from kvmpy.errors import ConfigError

PAGE_4K, PAGE_2M, PAGE_1G = 1 << 12, 1 << 21, 1 << 30
PAGE_SIZES = (PAGE_1G, PAGE_2M, PAGE_4K)
TABLE_SIZE, ENTRIES = 4096, 512
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
PML4_SHIFT, INDEX_BITS = 39, 9
LOW_HALF_END, HIGH_HALF_START, LINEAR_END = 1 << 47, (1 << 64) - (1 << 47), 1 << 64


class PageTables:
    """The tables of one address space, to be loaded at physical address `base`, which is what CR3 gets.

    Upper levels allow everything; the entry that maps a page decides. EFER.NXE must be on for `executable=False`.

    >>> tables = PageTables(0x1000)
    >>> tables.map(0, 0, 2 * PAGE_1G)
    >>> hex(tables.entry(0x4000_0000))
    '0x40000083'
    """

    def __init__(self, base: int) -> None:
        if base % TABLE_SIZE or not 0 <= base <= ADDRESS_MASK:
            raise ConfigError(f"page tables at {base:#x}: the address must be a multiple of 4 KiB below 2^52")
        self.base = base
        self._tables: list[list[int]] = [[0] * ENTRIES]

    @property
    def size(self) -> int:
        """Bytes the tables take now."""
        return len(self._tables) * TABLE_SIZE

    def map(
        self,
        gva: int,
        gpa: int,
        size: int,
        *,
        page_size: int | None = None,
        writable: bool = True,
        user: bool = False,
        executable: bool = True,
        is_global: bool = False,
    ) -> None:
        """Map `size` bytes, with the largest pages that fit unless `page_size` is given.

        ConfigError when something is not a multiple of the page size, not canonical, or mapped already.
        """
        unit = page_size or PAGE_4K
        if unit not in PAGE_SIZES:
            raise ConfigError(f"page size {unit:#x}: there are 4 KiB, 2 MiB and 1 GiB")
        if size <= 0 or (gva | gpa | size) % unit:
            raise ConfigError(f"mapping {gva:#x} to {gpa:#x}, {size:#x} bytes: not multiples of {unit:#x}")
        is_canonical = 0 <= gva < gva + size <= LOW_HALF_END or HIGH_HALF_START <= gva < gva + size <= LINEAR_END
        if not is_canonical or not 0 <= gpa <= gpa + size <= ADDRESS_MASK + TABLE_SIZE:
            raise ConfigError(f"mapping {gva:#x} to {gpa:#x}, {size:#x} bytes: not canonical, or beyond 2^52")
        rights = PRESENT | (WRITABLE if writable else 0) | (USER if user else 0)
        rights |= (GLOBAL if is_global else 0) | (0 if executable else NO_EXECUTE)
        end = gva + size
        while gva < end:
            step = page_size or _largest(gva, gpa, end - gva)
            self._map_page(gva, gpa, step, rights)
            gva, gpa = gva + step, gpa + step

    def _map_page(self, gva: int, gpa: int, page_size: int, rights: int) -> None:
        table, shift = 0, PML4_SHIFT
        while 1 << shift > page_size:
            table = self._descend(table, gva >> shift & ENTRIES - 1, gva)
            shift -= INDEX_BITS
        index = gva >> shift & ENTRIES - 1
        if self._tables[table][index]:
            raise ConfigError(f"mapping {gva:#x}: something is mapped there already")
        self._tables[table][index] = gpa | rights | (LARGE if page_size > PAGE_4K else 0)

    def _descend(self, table: int, index: int, gva: int) -> int:
        """Return the number of the next table, made when it is missing."""
        entry = self._tables[table][index]
        if entry & LARGE:
            raise ConfigError(f"mapping {gva:#x}: a larger page is mapped there already")
        if entry:
            return ((entry & ADDRESS_MASK) - self.base) // TABLE_SIZE
        self._tables.append([0] * ENTRIES)
        self._tables[table][index] = self.base + self.size - TABLE_SIZE | PRESENT | WRITABLE | USER
        return len(self._tables) - 1

    def entry(self, gva: int) -> int:
        """Return the entry that maps `gva`, 0 where nothing does."""
        table, shift = 0, PML4_SHIFT
        while True:
            entry = self._tables[table][gva >> shift & ENTRIES - 1]
            if not entry or entry & LARGE or 1 << shift == PAGE_4K:
                return entry
            table = ((entry & ADDRESS_MASK) - self.base) // TABLE_SIZE
            shift -= INDEX_BITS

    def encode(self) -> bytes:
        """Return all tables, PML4 first."""
        return b"".join(struct.pack(f"<{ENTRIES}Q", *table) for table in self._tables)


def _largest(gva: int, gpa: int, left: int) -> int:
    return next(size for size in PAGE_SIZES if not (gva | gpa) % size and left >= size)
