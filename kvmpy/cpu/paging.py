"""Walks the guest's page tables as the processor does, and tells what it saw (Intel SDM vol. 3, chapter 4).

32-bit, PAE, 4-level and 5-level paging. Not looked at: protection keys, shadow stacks, and the TLB, which may still
hold what the tables no longer say.
"""

from __future__ import annotations

from typing import NamedTuple

from kvmpy.cpu.bits import LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE, is_canonical
from kvmpy.cpu.flags import CR0, CR4, EFER, RFLAGS, PageFault
from kvmpy.errors import MemoryAccessError
from kvmpy.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.cpu.state import SystemRegisters

    ReadMemory = Callable[[int, int], bytes]

ADDRESS_52 = 0x000F_FFFF_FFFF_F000
ADDRESS_32 = 0xFFFF_F000
PAE_IGNORED = 0x7FF0_0000_0000_0000  # bits 62:52: ignored by 4-level paging, reserved in PAE (tables 4-9 to 4-11)
PAE_PDPTE_RESERVED = 0xFFF0_0000_0000_01E6  # bits 63:52, 8:5 and 2:1 (table 4-8)
PSE36_HIGH, PSE36_RESERVED = 0x1F_E000, 1 << 21  # a 4 MiB page's address bits 39:32 lie in bits 20:13 (table 4-4)


class Level(NamedTuple):
    """One level: the table's name, the lowest bit of its index, the index's width, and whether it can map pages."""

    name: str
    shift: int
    bits: int
    maps_pages: bool


class Format(NamedTuple):
    """A paging mode: name, size of an entry in bytes, address bits of CR3, the levels from CR3 down."""

    name: str
    entry_size: int
    root_mask: int
    levels: tuple[Level, ...]


FOUR_LEVELS = (
    Level("PML4", 39, 9, maps_pages=False),
    Level("PDPT", 30, 9, maps_pages=True),
    Level("PD", 21, 9, maps_pages=True),
    Level("PT", 12, 9, maps_pages=True),
)
LEGACY = Format("32-bit", 4, ADDRESS_32, (Level("PD", 22, 10, maps_pages=True), Level("PT", 12, 10, maps_pages=True)))
PAE = Format("PAE", 8, 0xFFFF_FFE0, (Level("PDPT", 30, 2, maps_pages=False), *FOUR_LEVELS[2:]))
FOUR_LEVEL = Format("4-level", 8, ADDRESS_52, FOUR_LEVELS)
FIVE_LEVEL = Format("5-level", 8, ADDRESS_52, (Level("PML5", 48, 9, maps_pages=False), *FOUR_LEVELS))


@record
class Step:
    """One level of a walk: the table, where its entry lies, the entry, and what the processor made of it."""

    table: str
    index: int
    address: int
    entry: int
    meaning: str = ""


@record
class Walk:
    """The result: `gpa` with `page_size`, or None with the `reason`.

    `error_code` is what #PF would push; None when the walk succeeded, or failed without #PF (an address that is not
    canonical raises #GP or #SS, a table outside memory reads as ones).
    """

    gva: int
    format: str
    gpa: int | None = None
    page_size: int = 0
    reason: str = ""
    error_code: PageFault | None = None
    steps: list[Step] = field(default_factory=list)

    def explain(self) -> list[str]:
        """Return the walk level by level, one line each, and the outcome."""
        lines = [f"{self.gva:#x}, {self.format} paging"]
        lines += [f"{s.table}[{s.index}] at {s.address:#x} = {s.entry:#x}: {s.meaning}" for s in self.steps]
        if self.gpa is not None:
            lines.append(f"physical address {self.gpa:#x}")
        if self.reason:
            code = "" if self.error_code is None else f" (error code {int(self.error_code):#x})"
            lines.append(f"fails: {self.reason}{code}")
        return lines


def paging_format(sregs: SystemRegisters) -> Format | None:
    """Return the paging mode that CR0, CR4 and EFER choose, None when paging is off (Intel SDM vol. 3, 4.1.1)."""
    if not sregs.cr0 & CR0.PG:
        return None
    if sregs.efer & EFER.LMA:
        return FIVE_LEVEL if sregs.cr4 & CR4.LA57 else FOUR_LEVEL
    return PAE if sregs.cr4 & CR4.PAE else LEGACY


def walk(
    read: ReadMemory, sregs: SystemRegisters, gva: int, access: PageFault | None = None, *, rflags: int = 0
) -> Walk:
    """Translate a linear address. `read(gpa, size)` reads memory, raising MemoryAccessError where there is none.

    `access` asks for a right: any of PageFault.WRITE, USER and FETCH, or PageFault(0) for a supervisor's read. Without
    it only presence and reserved bits matter, as when the host looks. `rflags` matters to SMAP (AC).

    >>> from kvmpy import GuestMemory, PageTables, long_mode
    >>> tables = PageTables(0x1000)
    >>> tables.map(0x40_0000, 0x20_0000, 0x1000, writable=False)
    >>> with GuestMemory(1 << 20) as memory:
    ...     memory.write(0x1000, tables.encode())
    ...     found = walk(memory.read, long_mode(0, 0, 0x1000).sregs, 0x40_0123, PageFault.WRITE)
    >>> found.reason, int(found.error_code)
    ('the page is read-only', 3)
    """
    form = paging_format(sregs)
    if form is None:
        return Walk(gva, "no", gpa=gva, page_size=4096)
    result = Walk(gva, form.name)
    if form.entry_size == 8 and form is not PAE and not is_canonical(gva, form.levels[0].shift + form.levels[0].bits):
        result.reason = "not canonical: #GP, or #SS for a stack access"
        return result
    if form in (LEGACY, PAE) and gva >> 32:
        result.gva = gva = gva & 0xFFFF_FFFF
    rights = _descend(read, sregs, form, result, access or PageFault(0))
    if rights is not None and access is not None:
        _check_rights(result, sregs, rights, access, rflags)
    return result


def _descend(
    read: ReadMemory, sregs: SystemRegisters, form: Format, result: Walk, access: PageFault
) -> dict[str, bool] | None:
    """Follow the tables to the page; return the rights that all levels together give, None when the walk fails."""
    table = sregs.cr3 & form.root_mask
    rights = {"writable": True, "user": True, "executable": True}
    for level in form.levels:
        index = result.gva >> level.shift & (1 << level.bits) - 1
        step = Step(level.name, index, table + index * form.entry_size, 0)
        result.steps.append(step)
        try:
            step.entry = int.from_bytes(read(step.address, form.entry_size), "little")
        except MemoryAccessError:
            step.meaning = "the table is outside memory"
            result.reason = f"the {level.name} at {table:#x} is outside memory"
            return None
        if not step.entry & PRESENT:
            step.meaning = "not present"
            _fail(result, sregs, access, PageFault(0), f"the {level.name} entry is not present")
            return None
        is_page = level.shift == 12 or (level.maps_pages and bool(step.entry & LARGE) and _large(form, sregs))
        reserved = step.entry & _reserved(form, level, sregs, step.entry, is_page=is_page)
        if reserved:
            step.meaning = f"reserved bits {reserved:#x} are set"
            _fail(result, sregs, access, PageFault.PRESENT | PageFault.RESERVED, f"{level.name}: {step.meaning}")
            return None
        if not (form is PAE and level.name == "PDPT"):  # a PDPTE of PAE has no rights (table 4-8)
            rights["writable"] &= bool(step.entry & WRITABLE)
            rights["user"] &= bool(step.entry & USER)
            rights["executable"] &= not (form.entry_size == 8 and step.entry & NO_EXECUTE)
        table = step.entry & (ADDRESS_52 if form.entry_size == 8 else ADDRESS_32)
        step.meaning = _describe(step.entry, form, table, is_page=is_page)
        if is_page:
            _arrive(result, form, level, step.entry)
            break
    return rights


def _large(form: Format, sregs: SystemRegisters) -> bool:
    return form is not LEGACY or bool(sregs.cr4 & CR4.PSE)


def _reserved(form: Format, level: Level, sregs: SystemRegisters, entry: int, *, is_page: bool) -> int:
    """Return the bits of an entry that must be zero (Intel SDM vol. 3, 4.3 to 4.5 and 4.11)."""
    is_large = is_page and level.shift > 12
    if form is LEGACY:
        return PSE36_RESERVED if is_large else 0
    if form is PAE and level.name == "PDPT":
        return PAE_PDPTE_RESERVED
    reserved = PAE_IGNORED if form is PAE else 0
    if not sregs.efer & EFER.NXE:
        reserved |= NO_EXECUTE
    if not level.maps_pages:
        reserved |= LARGE
    if is_large:  # between the PAT bit, 12, and the page's address
        reserved |= (1 << level.shift) - 1 & ~0x1FFF
    return reserved


def _arrive(result: Walk, form: Format, level: Level, entry: int) -> None:
    result.page_size = 1 << level.shift
    mask = ADDRESS_52 if form.entry_size == 8 else ADDRESS_32
    page = entry & mask & -result.page_size
    if form is LEGACY and level.shift > 12:
        page |= (entry & PSE36_HIGH) << 19
    result.gpa = page | result.gva & result.page_size - 1


def _describe(entry: int, form: Format, address: int, *, is_page: bool) -> str:
    no_execute = form.entry_size == 8 and entry & NO_EXECUTE
    rights = f"{'writable' if entry & WRITABLE else 'read-only'}, {'user' if entry & USER else 'supervisor'}"
    return f"{'page' if is_page else 'table'} at {address:#x}, {rights}{', no-execute' if no_execute else ''}"


def _check_rights(
    result: Walk, sregs: SystemRegisters, rights: dict[str, bool], access: PageFault, rflags: int
) -> None:
    """Apply the rules of access rights (Intel SDM vol. 3, 4.6.1)."""
    refused = _refusal(sregs, rights, access, rflags)
    if refused:
        result.gpa = None
        _fail(result, sregs, access, PageFault.PRESENT, refused)


def _refusal(sregs: SystemRegisters, rights: dict[str, bool], access: PageFault, rflags: int) -> str:
    is_user, is_fetch = bool(access & PageFault.USER), bool(access & PageFault.FETCH)
    if is_user and not rights["user"]:
        return "a supervisor page, from ring 3"
    if is_fetch and not rights["executable"]:
        return "the page is no-execute"
    if not is_user and rights["user"]:
        if is_fetch and sregs.cr4 & CR4.SMEP:
            return "SMEP: a user page may not be executed outside ring 3"
        if not is_fetch and sregs.cr4 & CR4.SMAP and not rflags & RFLAGS.AC:
            return "SMAP: a user page may not be accessed outside ring 3 while RFLAGS.AC is clear"
    if access & PageFault.WRITE and not rights["writable"] and (is_user or sregs.cr0 & CR0.WP):
        return "the page is read-only"
    return ""


def _fail(result: Walk, sregs: SystemRegisters, access: PageFault, cause: PageFault, reason: str) -> None:
    """Note the failure; bit I/D of the error code is set only where fetches can be told apart (SDM vol. 3, 4.7)."""
    if not ((sregs.efer & EFER.NXE and sregs.cr4 & CR4.PAE) or sregs.cr4 & CR4.SMEP):
        access &= ~PageFault.FETCH
    result.error_code, result.reason = cause | access, reason
