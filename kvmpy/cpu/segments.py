"""Segment descriptors, gates, and builders for the GDT, the IDT and the TSS (Intel SDM vol. 3, chapters 3, 6 and 7)."""

from __future__ import annotations

import struct
from enum import IntEnum

from kvmpy.cpu.state import DescriptorTable, Segment
from kvmpy.errors import ConfigError
from kvmpy.record import field, record, replace

SELECTOR_LIMIT = 1 << 16
GDT_LIMIT = 8192
ACCESSED, WRITABLE_OR_READABLE, CODE = 0x1, 0x2, 0x8
BUSY_BIT = 0x2  # of the TSS types 0x1 and 0x9


class SystemType(IntEnum):
    """The type of a system descriptor or gate (Intel SDM vol. 3, table 3-2)."""

    TSS16 = 0x1
    LDT = 0x2
    TSS16_BUSY = 0x3
    CALL_GATE16 = 0x4
    TASK_GATE = 0x5
    INTERRUPT_GATE16 = 0x6
    TRAP_GATE16 = 0x7
    TSS = 0x9
    TSS_BUSY = 0xB
    CALL_GATE = 0xC
    INTERRUPT_GATE = 0xE
    TRAP_GATE = 0xF


def encode_segment(segment: Segment, *, bits: int = 32) -> bytes:
    """Return the descriptor of a segment: 8 bytes, or 16 for a system segment in long mode (`bits` 64).

    ConfigError where base or limit cannot be expressed, as SDM vol. 3, 3.4.5 draws them.
    """
    wide = bits == 64 and not segment.s
    if not 0 <= segment.base < 1 << (64 if wide else 32):
        raise ConfigError(f"segment base {segment.base:#x} does not fit its descriptor")
    limit = segment.limit >> 12 if segment.g else segment.limit
    if not 0 <= limit < 1 << 20 or (segment.g and segment.limit & 0xFFF != 0xFFF):
        raise ConfigError(
            f"segment limit {segment.limit:#x} with G={segment.g}: it has 20 bits, in pages (ending in 0xfff) with G=1"
        )
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    base = segment.base
    low = struct.pack("<HHBBBB", limit & 0xFFFF, base & 0xFFFF, base >> 16 & 0xFF, access,
                      flags << 4 | limit >> 16, base >> 24 & 0xFF)  # fmt: skip
    return low + struct.pack("<II", base >> 32, 0) if wide else low


def decode_segment(descriptor: bytes, selector: int = 0) -> Segment:
    """Return the segment register that a load of this descriptor gives; 16 bytes are a long-mode system segment."""
    if len(descriptor) not in (8, 16):
        raise ConfigError(f"descriptor of {len(descriptor)} bytes: it has 8, or 16 for a long-mode system segment")
    limit, base, base_mid, access, flags, base_high = struct.unpack("<HHBBBB", descriptor[:8])
    limit |= (flags & 0xF) << 16
    base |= base_mid << 16 | base_high << 24
    if len(descriptor) == 16:
        base |= int.from_bytes(descriptor[8:12], "little") << 32
    g = flags >> 7
    present = access >> 7
    return Segment(
        selector, base, limit << 12 | 0xFFF if g else limit, type=access & 0xF, s=access >> 4 & 1, dpl=access >> 5 & 3,
        present=present, avl=flags >> 4 & 1, l=flags >> 5 & 1, db=flags >> 6 & 1, g=g, unusable=int(not present),
    )  # fmt: skip


def code_segment(*, bits: int = 32, dpl: int = 0, base: int = 0, limit: int = 0xFFFF_FFFF) -> Segment:
    """Return a readable code segment of 16, 32 or 64 bits, flat unless told otherwise."""
    kind = CODE | WRITABLE_OR_READABLE | ACCESSED
    return Segment(
        base=base, limit=limit, type=kind, dpl=dpl, l=int(bits == 64), db=int(bits == 32), g=int(limit > 0xFFFFF)
    )


def data_segment(*, bits: int = 32, dpl: int = 0, base: int = 0, limit: int = 0xFFFF_FFFF) -> Segment:
    """Return a writable data or stack segment, flat unless told otherwise."""
    kind = WRITABLE_OR_READABLE | ACCESSED
    return Segment(base=base, limit=limit, type=kind, dpl=dpl, db=int(bits != 16), g=int(limit > 0xFFFFF))


def tss_segment(base: int, limit: int = 0x67) -> Segment:
    """Return an available 32- or 64-bit TSS."""
    return Segment(base=base, limit=limit, type=SystemType.TSS, s=0)


class Gdt:
    """Builds a GDT. Every `add_*()` returns the selector, with the segment's DPL as RPL.

    >>> gdt = Gdt()
    >>> hex(gdt.add(code_segment(bits=64))), hex(gdt.add(data_segment(dpl=3)))
    ('0x8', '0x13')
    """

    def __init__(self, *, bits: int = 32) -> None:
        self._bits = bits
        self._entries = bytearray(8)  # the null descriptor

    def add(self, segment: Segment) -> int:
        """Add a segment; in a GDT for long mode (`bits` 64) a system segment takes two entries."""
        selector = len(self._entries) | segment.dpl
        encoded = encode_segment(segment, bits=self._bits)
        if len(self._entries) + len(encoded) > 8 * GDT_LIMIT:
            raise ConfigError(f"GDT: more than {GDT_LIMIT} entries")
        self._entries += encoded
        return selector

    def segment(self, selector: int) -> Segment:
        """Return the segment register that loading `selector` gives; a TSS is busy then (Intel SDM vol. 3, 7.2.2)."""
        at = selector & 0xFFF8
        if not at or at + 8 > len(self._entries):
            raise ConfigError(f"selector {selector:#x}: not in this GDT")
        loaded = decode_segment(bytes(self._entries[at : at + 8]), selector)
        if self._bits == 64 and not loaded.s:
            loaded = decode_segment(bytes(self._entries[at : at + 16]), selector)
        is_tss = not loaded.s and loaded.type in (SystemType.TSS16, SystemType.TSS)
        return replace(loaded, type=loaded.type | BUSY_BIT) if is_tss else loaded

    def encode(self) -> bytes:
        """Return the table."""
        return bytes(self._entries)

    def register(self, base: int) -> DescriptorTable:
        """Return GDTR for the table at linear address `base`."""
        return DescriptorTable(base, len(self._entries) - 1)


@record
class Gate:
    """An interrupt, trap or task gate (Intel SDM vol. 3, 6.11 and 6.14.1). `ist` is 0 outside long mode."""

    selector: int
    offset: int
    type: int = SystemType.INTERRUPT_GATE
    dpl: int = 0
    ist: int = 0
    present: int = 1

    def encode(self, bits: int) -> bytes:
        """Return 8 bytes for a 32-bit IDT or 16 for a long-mode one; ConfigError where a field does not fit."""
        wide = bits == 64
        limits = {
            "selector": 16,
            "offset": 64 if wide else 32,
            "type": 4,
            "dpl": 2,
            "ist": 3 if wide else 0,
            "present": 1,
        }
        for name, width in limits.items():
            if not 0 <= getattr(self, name) < 1 << width:
                raise ConfigError(f"gate: {name} {getattr(self, name):#x} does not fit in {width} bits")
        access = self.type | self.dpl << 5 | self.present << 7
        low = struct.pack(
            "<HHBBH", self.offset & 0xFFFF, self.selector, self.ist, access, self.offset >> 16 & 0xFFFF
        )  # fmt: skip
        return low + struct.pack("<II", self.offset >> 32, 0) if wide else low

    @classmethod
    def decode(cls, data: bytes) -> Gate:
        """Return the gate in 8 or 16 bytes."""
        if len(data) not in (8, 16):
            raise ConfigError(f"gate of {len(data)} bytes: it has 8, or 16 in long mode")
        low, selector, ist, access, high = struct.unpack("<HHBBH", data[:8])
        offset = low | high << 16
        if len(data) == 16:
            offset |= int.from_bytes(data[8:12], "little") << 32
        return cls(selector, offset, access & 0xF, access >> 5 & 3, ist & 7, access >> 7)


class Idt:
    """Builds an IDT of up to 256 gates for 32-bit or long mode; vectors without a gate are not present.

    >>> idt = Idt(bits=64)
    >>> idt.set(3, Gate(0x18, 0x9000, dpl=3))
    >>> idt.register(0x5000), len(idt.encode())
    (DescriptorTable(base=20480, limit=63), 64)
    """

    def __init__(self, *, bits: int) -> None:
        if bits not in (32, 64):
            raise ConfigError(f"IDT for {bits} bits: it is for 32 or 64; real mode has a vector table")
        self._bits = bits
        self._gates: dict[int, Gate] = {}

    def set(self, vector: int, gate: Gate) -> None:
        """Let a vector arrive through a gate."""
        if not 0 <= vector < 256:
            raise ConfigError(f"vector {vector}: there are 0 to 255")
        self._gates[vector] = gate

    def encode(self) -> bytes:
        """Return the table, up to the highest vector that was set."""
        empty = bytes(self._bits // 4)
        size = max(self._gates, default=-1) + 1
        return b"".join(self._gates[v].encode(self._bits) if v in self._gates else empty for v in range(size))

    def register(self, base: int) -> DescriptorTable:
        """Return IDTR for the table at linear address `base`; an empty one has limit 0, where no vector fits."""
        return DescriptorTable(base, max(len(self.encode()) - 1, 0))


@record
class Tss:
    """A task-state segment: the stacks for privilege changes, long mode's interrupt stacks, the I/O permissions.

    `stacks` are RSP0-RSP2 or ESP0-ESP2, `ist` IST1-IST7 (long mode only), `ss0` the ring-0 stack segment (32-bit only).
    `open_ports` lists the ports that ring 3 may use; None leaves out the bitmap, which closes them all.
    """

    stacks: list[int] = field(default_factory=lambda: [0, 0, 0])
    ist: list[int] = field(default_factory=lambda: [0] * 7)
    ss0: int = 0
    open_ports: list[int] | None = None

    FIXED_SIZE = 0x68
    MAP_BASE_AT = 0x66

    def encode(self, bits: int) -> bytes:
        """Return the segment for 32-bit (SDM vol. 3, figure 7-2) or long mode (figure 7-11)."""
        if bits == 64:
            fixed = struct.pack("<I3Q8x7Q", 0, *self.stacks, *self.ist)
        else:
            stacks = zip(self.stacks, (self.ss0, 0, 0), strict=True)
            fixed = struct.pack("<I", 0) + b"".join(struct.pack("<II", *pair) for pair in stacks)
        fixed = fixed.ljust(self.MAP_BASE_AT, b"\0") + struct.pack("<H", self.FIXED_SIZE)
        return fixed + self._bitmap()

    def _bitmap(self) -> bytes:
        """One bit per port, set where it is closed, and a last byte of ones (Intel SDM vol. 1, 19.5.2)."""
        if self.open_ports is None:
            return b""
        bits = bytearray(b"\xff" * (SELECTOR_LIMIT // 8 + 1))
        for port in self.open_ports:
            if not 0 <= port < SELECTOR_LIMIT:
                raise ConfigError(f"port {port:#x}: there are 0 to 0xffff")
            bits[port // 8] &= ~(1 << port % 8)
        return bytes(bits)
