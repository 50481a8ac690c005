"""Accesses to guest-physical addresses without memory."""

from __future__ import annotations

import pytest
from conftest import Guests, exits_until_hlt

from kvmpy.accel.exits import Hlt, MmioRead, MmioWrite
from kvmpy.accel.testbed import DATA, PRESENT_WRITABLE_USER, PT, Testbed

DEVICE = 0xD000_0000
WINDOW = 0x1F_0000  # in 64-bit mode two pages here are mapped to the device
REGISTER = {1: "al", 2: "ax", 4: "eax", 8: "rax"}
SIZES = [(bits, size) for bits in (32, 64) for size in REGISTER if size * 8 <= bits]
VALUE = 0x8877665544332211


def open_window(bed: Testbed, *targets: int) -> None:
    """Map the pages from WINDOW on to these guest-physical pages."""
    for i, target in enumerate(targets):
        bed.memory.write_int(PT + ((WINDOW >> 12) + i) * 8, 8, target | PRESENT_WRITABLE_USER)


def address(bits: int) -> int:
    return WINDOW if bits == 64 else DEVICE


@pytest.mark.parametrize(("bits", "size"), SIZES)
def test_write(guests: Guests, bits: int, size: int) -> None:
    pointer, wide = ("rbx", "rax") if bits == 64 else ("ebx", "eax")
    value = VALUE & (1 << bits) - 1
    bed = guests.load(
        bits, f"mov {pointer}, {address(bits) + 0x18}\nmov {wide}, {value}\nmov [{pointer}], {REGISTER[size]}\nhlt"
    )
    open_window(bed, DEVICE)
    exit = bed.go()
    assert exit == MmioWrite(DEVICE + 0x18, size, VALUE & (1 << 8 * size) - 1)
    assert isinstance(bed.go(), Hlt)


@pytest.mark.parametrize(("bits", "size"), SIZES)
def test_read(guests: Guests, bits: int, size: int) -> None:
    pointer, wide = ("rbx", "rax") if bits == 64 else ("ebx", "eax")
    bed = guests.load(
        bits, f"mov {pointer}, {address(bits) + 0x18}\nxor {wide}, {wide}\nmov {REGISTER[size]}, [{pointer}]\nhlt"
    )
    open_window(bed, DEVICE)
    exit = bed.go()
    assert isinstance(exit, MmioRead)
    assert (exit.gpa, exit.size) == (DEVICE + 0x18, size)
    exit.value = VALUE
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == VALUE & (1 << 8 * size) - 1


VGA_SEGMENT, VGA = 0xA000, 0xA0000  # real mode reaches no higher than 1 MiB; memory ends below the old video window


@pytest.mark.parametrize("size", [1, 2, 4])
def test_real_mode_writes_and_reads_through_a_segment(guests: Guests, size: int) -> None:
    source = f"""
        mov ax, {VGA_SEGMENT}
        mov es, ax
        mov eax, {VALUE & 0xFFFFFFFF}
        mov es:[0x18], {REGISTER[size]}
        xor eax, eax
        mov bx, 0x20
        mov {REGISTER[size]}, es:[bx + 4]
        hlt
    """
    bed = guests.load(16, source, memory=VGA)
    value = VALUE & (1 << 8 * size) - 1
    assert bed.go() == MmioWrite(VGA + 0x18, size, value)
    exit = bed.go()
    assert isinstance(exit, MmioRead)
    assert (exit.gpa, exit.size) == (VGA + 0x24, size)
    exit.value = value
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == value


def test_an_unanswered_read_gives_all_ones(guests: Guests) -> None:
    bed, exit = guests.run(32, f"mov ebx, {DEVICE}\nmov ax, [ebx]\nhlt")
    assert isinstance(exit, MmioRead)
    bed.go()
    assert bed.vcpu.regs.rax & 0xFFFF == 0xFFFF


@pytest.mark.parametrize(("bits", "size"), [(16, 2), (16, 4), (32, 2), (32, 4)])
def test_an_unpaged_access_across_a_page_boundary_reaches_every_byte(guests: Guests, bits: int, size: int) -> None:
    """Written, then read back from the same places: however the access is split, each byte has its own address."""
    at = 0x1000 - size // 2
    base, memory = (VGA, VGA) if bits == 16 else (DEVICE, 2 << 20)
    segment = f"mov ax, {VGA_SEGMENT}\nmov es, ax\nmov bx, {at}" if bits == 16 else f"mov ebx, {DEVICE + at}"
    pointer, register = ("es:[bx]", REGISTER[size]) if bits == 16 else ("[ebx]", REGISTER[size])
    source = f"{segment}\nmov eax, {VALUE & 0xFFFFFFFF}\nmov {pointer}, {register}\nxor eax, eax"
    bed = guests.load(bits, f"{source}\nmov {register}, {pointer}\nhlt", memory=memory)
    held: dict[int, int] = {}
    while not isinstance(exit := bed.go(), Hlt):
        if isinstance(exit, MmioWrite):
            held |= {exit.gpa + i: byte for i, byte in enumerate(exit.value.to_bytes(exit.size, "little"))}
        else:
            assert isinstance(exit, MmioRead)
            exit.value = int.from_bytes(bytes(held[exit.gpa + i] for i in range(exit.size)), "little")
    value = VALUE & (1 << 8 * size) - 1
    assert held == {base + at + i: byte for i, byte in enumerate(value.to_bytes(size, "little"))}
    assert bed.vcpu.regs.rax == value


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_write_across_two_pages_arrives_in_parts(guests: Guests, size: int) -> None:
    """Two pages that are neighbours in linear addresses and far apart physically."""
    at = 0x1000 - size // 2
    bed = guests.load(64, f"mov rbx, {WINDOW + at}\nmov rax, {VALUE}\nmov [rbx], {REGISTER[size]}\nhlt")
    open_window(bed, DEVICE, DEVICE + 0x10_0000)
    written = {}
    for exit in exits_until_hlt(bed):
        assert isinstance(exit, MmioWrite)
        for i, byte in enumerate(exit.value.to_bytes(exit.size, "little")):
            written[exit.gpa + i] = byte
    half = size // 2
    places = [DEVICE + at + i for i in range(half)] + [DEVICE + 0x10_0000 + i for i in range(half)]
    assert written == dict(zip(places, VALUE.to_bytes(8, "little"), strict=False))


def test_a_read_across_memory_and_device_takes_both(guests: Guests) -> None:
    bed = guests.load(64, f"mov rbx, {WINDOW + 0xFFE}\nmov eax, [rbx]\nhlt")
    open_window(bed, DATA & ~0xFFF, DEVICE)
    bed.memory.write(DATA | 0xFFE, b"\x11\x22")
    exit = bed.go()
    assert isinstance(exit, MmioRead)
    assert (exit.gpa, exit.size) == (DEVICE, 2)
    exit.value = 0x4433
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rax == 0x44332211


def test_rep_movs_to_a_device_writes_every_item(guests: Guests) -> None:
    bed = guests.load(32, f"mov esi, {DATA}\nmov edi, {DEVICE}\nmov ecx, 4\nrep movsb\nhlt")
    bed.memory.write(DATA, b"kvm!")
    found = exits_until_hlt(bed)
    assert all(isinstance(exit, MmioWrite) for exit in found)
    assert b"".join(e.value.to_bytes(e.size, "little") for e in found if isinstance(e, MmioWrite)) == b"kvm!"


def test_a_read_modify_write_reads_then_writes(guests: Guests) -> None:
    bed, exit = guests.run(32, f"mov ebx, {DEVICE}\nadd dword ptr [ebx], 5\nhlt")
    assert isinstance(exit, MmioRead)
    exit.value = 37
    assert bed.go() == MmioWrite(DEVICE, 4, 42)


def test_a_read_only_region_reads_as_memory_and_writes_as_a_device(guests: Guests) -> None:
    bed = guests.load(32, f"mov ebx, {DEVICE}\nmov eax, [ebx]\nmov [ebx], eax\nhlt")
    bed.vm.close()
    bed.memory.add(DEVICE, 0x1000, readonly=True, name="rom")
    bed.memory.write(DEVICE, b"\x78\x56\x34\x12")
    bed.vm = guests.accelerator.create_vm()
    bed.vm.add_memory(bed.memory)
    bed.vcpu = bed.vm.create_vcpu()
    state = bed.initial_state()
    bed.vcpu.regs, bed.vcpu.sregs = state.regs, state.sregs
    assert bed.go() == MmioWrite(DEVICE, 4, 0x12345678)
