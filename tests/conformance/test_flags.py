"""The flags survive what is no business of theirs: an access to a device, and the host's look at the registers.

MOV, IN and OUT affect no flags, CMPS and ADC those that the manual says (Intel SDM vol. 1, 3.4.3; vol. 2). Each is
asked through the guest: what the host sets, and reads back, says nothing of what the guest has.
"""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy.accel.exits import Hlt, IoOut, MmioRead, MmioWrite

DEVICE = 0xD000_0000
CF, PF, AF, ZF, SF, DF, OF = (1 << bit for bit in (0, 2, 4, 6, 7, 10, 11))
ALL = CF | PF | AF | ZF | SF | DF | OF
FIXED = 0x2  # bit 1 is always set
FLAGS = sorted({0, ALL, CF, PF, AF, ZF, SF, DF, OF, CF | DF, ZF | OF})
ACCESSES = {
    "read": (f"mov eax, [{DEVICE:#x}]", MmioRead),
    "write": (f"mov [{DEVICE:#x}], eax", MmioWrite),
    "out": ("out 0xf0, al", IoOut),
}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("access", ACCESSES)
def test_an_access_to_a_device_keeps_the_flags(guests: Guests, access: str, flags: int) -> None:
    instruction, kind = ACCESSES[access]
    bed = guests.load(32, f"push {flags | FIXED:#x}\npopfd\n{instruction}\npushfd\npop ebx\nhlt")
    assert isinstance(bed.go(), kind)
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rbx == flags | FIXED


@pytest.mark.parametrize("flags", FLAGS)
def test_what_the_host_writes_back_keeps_the_flags(guests: Guests, flags: int) -> None:
    bed = guests.load(64, f"push {flags | FIXED:#x}\npopfq\nout 0xf0, al\nout 0xf0, al\npushfq\npop rbx\nhlt")
    assert isinstance(bed.go(), IoOut)
    bed.vcpu.regs = bed.vcpu.regs
    assert isinstance(bed.go(), IoOut)
    bed.vcpu.state = bed.vcpu.state
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rbx == flags | FIXED


@pytest.mark.parametrize("flags", FLAGS)
def test_the_guest_has_the_flags_that_the_host_sets(guests: Guests, flags: int) -> None:
    bed = guests.load(64, "pushfq\npop rbx\nhlt")
    regs = bed.vcpu.regs
    regs.rflags = flags | FIXED
    bed.vcpu.regs = regs
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rbx == flags | FIXED


@pytest.mark.parametrize("carry", [0, 1])
def test_adc_to_a_device_takes_the_carry(guests: Guests, carry: int) -> None:
    bed = guests.load(32, f"mov edi, {DEVICE:#x}\n{'stc' if carry else 'clc'}\nadc dword ptr [edi], 5\nsetc bl\nhlt")
    exit = bed.go()
    assert isinstance(exit, MmioRead)
    exit.value = 0xFFFF_FFFA
    written = bed.go()
    assert isinstance(written, MmioWrite)
    assert written.value == (0xFFFF_FFFA + 5 + carry) & 0xFFFF_FFFF
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rbx & 0xFF == carry


def test_a_string_goes_down_over_a_device(guests: Guests) -> None:
    """With DF set (Intel SDM vol. 1, 7.3.9.1)."""
    bed = guests.load(32, f"mov esi, {DEVICE + 8:#x}\nmov edi, 0x3008\nmov ecx, 3\nstd\nrep movsd\nhlt")
    for offset in (8, 4, 0):
        exit = bed.go()
        assert isinstance(exit, MmioRead)
        assert exit.gpa == DEVICE + offset
        exit.value = 0x1000 + offset
    assert isinstance(bed.go(), Hlt)
    assert [bed.memory.read_int(0x3000 + offset, 4) for offset in (0, 4, 8)] == [0x1000, 0x1004, 0x1008]
    assert (bed.vcpu.regs.rdi, bed.vcpu.regs.rcx) == (0x2FFC, 0)


def test_a_comparison_of_a_device_s_bytes_ends_at_the_first_that_differs(guests: Guests) -> None:
    bed = guests.load(32, f"mov esi, {DEVICE:#x}\nmov edi, 0x3000\nmov ecx, 5\ncld\nrepe cmpsb\nsetc bl\nhlt")
    bed.memory.write(0x3000, b"\x10\x11\x12\x20\x14")
    for number in range(4):
        exit = bed.go()
        assert isinstance(exit, MmioRead)
        assert exit.gpa == DEVICE + number
        exit.value = 0x10 + number
    assert isinstance(bed.go(), Hlt)
    assert (bed.vcpu.regs.rcx, bed.vcpu.regs.rbx & 0xFF) == (1, 1)  # 0x13 is below 0x20


def test_popf_from_a_device_s_stack_traps_nothing(guests: Guests) -> None:
    bed = guests.load(32, f"mov esp, {DEVICE:#x}\npopfd\nmov esp, 0x7000\npushfd\npop ebx\nhlt")
    exit = bed.go()
    assert isinstance(exit, MmioRead)
    exit.value = CF | SF | FIXED
    assert isinstance(bed.go(), Hlt)
    assert bed.vcpu.regs.rbx == CF | SF | FIXED


@pytest.mark.parametrize("bits", [16, 32])
def test_bytes_of_a_device_go_to_a_port(guests: Guests, bits: int) -> None:
    """Each is read once and written once (Intel SDM vol. 2, OUTS)."""
    source = "mov esi, 0xd0000000\nmov edx, 0xf0\nmov ecx, 3\nrep outsb\nhlt"
    if bits == 16:
        source = "mov ax, 0xa000\nmov ds, ax\nmov si, 0\nmov dx, 0xf0\nmov cx, 3\nrep outsb\nhlt"
    bed = guests.load(bits, source, memory=0xA0000) if bits == 16 else guests.load(bits, source)
    base = 0xA0000 if bits == 16 else DEVICE
    seen: list[object] = []
    while not isinstance(exit := bed.go(), Hlt):
        if isinstance(exit, MmioRead):
            exit.value = 0x40 + len(seen)
            seen.append(exit.gpa - base)
        else:
            assert isinstance(exit, IoOut)
            seen.append(exit.data)
    assert seen == [0, b"\x40", 1, b"\x42", 2, b"\x44"]


@pytest.mark.parametrize("size", ["b", "w", "d"])
@pytest.mark.parametrize("prefix", ["", "rep "])
def test_bytes_of_a_port_go_to_a_device(guests: Guests, size: str, prefix: str) -> None:
    """One look at the port, one store for each (Intel SDM vol. 2, INS), however the accelerator groups them."""
    width = {"b": 1, "w": 2, "d": 4}[size]
    times = 5 if prefix else 1
    bed = guests.load(32, f"mov edi, {DEVICE:#x}\nmov edx, 0xf0\nmov ecx, 5\n{prefix}ins{size}\nhlt")
    asked = 0
    written: list[tuple[int, bytes]] = []
    while not isinstance(exit := bed.go(), Hlt):
        if isinstance(exit, MmioWrite):
            written.append((exit.gpa - DEVICE, exit.value.to_bytes(exit.size, "little")))
        else:
            exit.data = bytes(range(0x41 + asked, 0x41 + asked + width * exit.count))
            asked += width * exit.count
    assert asked == times * width
    assert b"".join(data for _, data in written) == bytes(range(0x41, 0x41 + asked))
    assert [at for at, _ in written] == [sum(len(data) for _, data in written[:n]) for n in range(len(written))]


def test_a_far_pointer_from_a_device(guests: Guests) -> None:
    """Two pieces of one access; nothing before is lost."""
    bed = guests.load(16, "mov ax, 0xa000\nmov ds, ax\nstc\nles di, [0]\nsetc bl\nmov dx, es\nhlt", memory=0xA0000)
    for exit in exits_until_hlt_answering(bed):
        assert isinstance(exit, MmioRead)
    regs = bed.vcpu.regs
    assert (regs.rdi & 0xFFFF, regs.rdx & 0xFFFF, regs.rbx & 0xFF) == (0x1234, 0x2000, 1)


def exits_until_hlt_answering(bed) -> list[object]:  # type: ignore[no-untyped-def]
    """Run to HLT over a device that holds 34 12 00 20."""
    seen = []
    while not isinstance(exit := bed.go(), Hlt):
        content = b"\x34\x12\x00\x20"[exit.gpa - 0xA0000 :][: exit.size]
        exit.value = int.from_bytes(content, "little")
        seen.append(exit)
    return seen
