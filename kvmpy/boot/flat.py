"""Flat images: bytes that are loaded at an address and entered in one of the processor's modes."""

from __future__ import annotations

from kvmpy.boot.plan import BootPlan
from kvmpy.boot.sidecar import Sidecar
from kvmpy.cpu.modes import flat_gdt, long_mode, protected_mode, real_mode
from kvmpy.cpu.page_tables import PAGE_2M, PageTables
from kvmpy.errors import ImageError
from kvmpy.memory import HOLE_START, PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.cpu.state import CpuState

# Where the image goes when nobody says: a boot sector's address, or the first byte above the first MiB.
LOAD_ADDRESS = {"real": 0x7C00, "protected": 0x10_0000, "long": 0x10_0000}
SECTOR, BOOT_SIGNATURE = 512, b"\x55\xaa"  # a PC's firmware boots a sector that ends so
REAL_MODE_END = 0x9_FC00  # the extended BIOS data area of a PC begins there
SEGMENT_SIZE = 0x1_0000
STACK = 0x8_0000
GDT = 0x800
PAGE_TABLES = 0x1000
IDENTITY_GIB = 4
TABLES_END = PAGE_TABLES + (2 + IDENTITY_GIB) * PAGE_SIZE  # PML4, PDPT and a directory for each GiB
LOWEST = {"real": 0x500, "protected": TABLES_END, "long": TABLES_END}  # in real mode behind the BIOS's own data


def plan_flat(name: str, image: bytes, sidecar: Sidecar, *, memory: int, append: str = "") -> BootPlan:
    """Return the plan for a flat image; ImageError when it does not fit or is entered outside memory.

    `append` is a command line: it follows the image as a zero-terminated string, with its address in (E/R)SI.
    """
    load = LOAD_ADDRESS[sidecar.mode] if sidecar.load is None else sidecar.load
    entry = load if sidecar.entry is None else sidecar.entry
    text = append.encode("utf-8", "surrogateescape") + b"\0" if append else b""
    if sidecar.size is not None and len(image) != sidecar.size:
        raise ImageError(
            f"{name}: {len(image)} bytes, its sidecar says {sidecar.size}; the file is damaged, rebuild it"
        )
    _check(name, sidecar.mode, load, entry, image + text, memory)
    blobs = [(load, image + text), *(_tables(sidecar.mode))]
    state = _enter(sidecar.mode, load, entry)
    if text:
        state.regs.rsi = (load + len(image)) - state.sregs.ds.base
    return BootPlan(name, sidecar.mode, blobs, state, sidecar.irqchip, sidecar.symbols)


def plan_code(
    code: bytes, *, memory: int, mode: str = "real", load: int | None = None, entry: int | None = None
) -> BootPlan:
    """Return the plan for code that is no file: it is loaded and entered as a flat image of that mode.

    `mode` is "real", "protected" or "long"; `memory` the guest's, in bytes; `load` and `entry` are physical addresses,
    by default 0x7c00 in real mode, else 0x100000. ImageError when it does not fit there.

    >>> plan = plan_code(b"\\xf4", mode="long", memory=1 << 21)
    >>> hex(plan.state.regs.rip), [hex(gpa) for gpa, _ in plan.blobs]
    ('0x100000', ['0x100000', '0x800', '0x1000'])
    """
    return plan_flat("code", code, Sidecar(mode=mode, load=load, entry=entry), memory=memory)


def _check(name: str, mode: str, load: int, entry: int, content: bytes, memory: int) -> None:
    if not content:
        raise ImageError(f"{name}: the file is empty; give a guest image")
    end = load + len(content)
    limit = min(memory, REAL_MODE_END) if mode == "real" else min(memory, HOLE_START)
    if end > limit:
        remedy = _room(mode, load, content, limit)
        raise ImageError(f"{name}: {len(content)} bytes at {load:#x} end at {end:#x}, beyond {limit:#x}; {remedy}")
    if not load <= entry < end:
        raise ImageError(f"{name}: entry {entry:#x} is outside the image ({load:#x} to {end - 1:#x}); correct it")
    if mode != "real" and load < TABLES_END:
        raise ImageError(
            f"{name}: loaded at {load:#x} it would cover the boot tables; load it at {TABLES_END:#x} or above"
        )


def _room(mode: str, load: int, content: bytes, limit: int) -> str:
    """Return what makes an image fit that is loaded at `load` and ends beyond `limit`."""
    if mode == "real" and len(content) > SECTOR and content[510:512] == BOOT_SIGNATURE:
        return "it is a disk's image: boot its first sector, 'head -c 512 FILE > sector.bin'"
    if LOWEST[mode] + len(content) <= limit:
        return "load it lower"
    if limit == REAL_MODE_END:
        return "real mode reaches no further; load the rest from the guest, or begin in another mode"
    return "give it more memory" if limit < HOLE_START else "no larger image can be loaded"


def _enter(mode: str, load: int, entry: int) -> CpuState:
    if mode == "protected":
        return protected_mode(entry, STACK, gdt=GDT)
    if mode == "long":
        return long_mode(entry, STACK, PAGE_TABLES, gdt=GDT)
    segment = 0 if entry < SEGMENT_SIZE else load >> 4
    if entry - (segment << 4) >= SEGMENT_SIZE:
        raise ImageError(f"entry {entry:#x}: more than 64 KiB behind the load address; real mode cannot start there")
    return real_mode(entry - (segment << 4), segment=segment)


def _tables(mode: str) -> list[tuple[int, bytes]]:
    """Return what has to lie in memory for a mode: the GDT, and an identity map of the first 4 GiB for long mode."""
    if mode == "real":
        return []
    tables = [(GDT, flat_gdt())]
    if mode == "long":
        identity = PageTables(PAGE_TABLES)
        identity.map(0, 0, IDENTITY_GIB << 30, page_size=PAGE_2M)
        tables.append((PAGE_TABLES, identity.encode()))
    return tables
