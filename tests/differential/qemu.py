"""QEMU's software CPU, driven through its gdb stub: the right one for ring 0 of long mode.

Its engine is a descendant of the one that kvmpy's software CPU rests on: what both have wrong it does not tell.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from differential.guest import ENTRY, LDT, SELECTORS, image, pages_of
from differential.guest import EXCEPTIONS as TOP
from differential.guest import FRAME as ENTERED_WITH
from differential.program import DATA, PAGE, PAGE_FAULT, REGISTERS, STACK, TIMEOUT, Outcome, Program, World

from kvmpy.accel import testbed
from kvmpy.asm import assemble
from kvmpy.cpu.bits import EFER_LMA
from kvmpy.cpu.modes import long_mode
from kvmpy.cpu.segments import encode_segment
from kvmpy.cpu.state import Segment

# What it has wrong where ours is right, or has not: names of forms, and traits.
NOT_ASKED = (
    ("adcx|adox", ""),
    ("locked", ""),  # it executes what cannot be locked
    ("cmpxchg8b", ""),  # it changes flags other than ZF
    ("(66 )?0f .*|f[23] 0f (e6|5b|12|16|7c|7d|d0)|ptest", "memory unaligned"),
)
SECONDS = 10.0
ROM_SIZE, START, HANDLERS, HANDLER_SIZE, SAVED = 0x10000, 0x7000, 0x30000, 16, 0x40000
LDT_SELECTOR, SELECTORS_AT, AM = 0x48, 0x7F00, 1 << 18
# Its `g` packet (gdb-xml/i386-64bit.xml): general registers in this order, RIP, EFLAGS, segments; bases, CR0, CR2.
ORDER = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
GENERAL = struct.Struct("<17QI6I")
CR2_AT = GENERAL.size + 3 * 8 + 8
CHUNK = 2000  # bytes of memory in a packet


class Qemu:
    """A machine that executes one program after the other; a context manager."""

    def __init__(self, folder: Path) -> None:
        rom, path = folder / "rom", folder / "gdb"
        rom.write_bytes(bytes(ROM_SIZE - 16) + b"\xea" + START.to_bytes(4, "little") + bytes(11))  # jmp 0:START
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "4", "-nodefaults", "-display", "none"]
        command += ["-bios", str(rom), "-S", "-gdb", f"unix:{path},server=on,wait=off", "-no-reboot"]
        self._process = subprocess.Popen(command)
        try:
            self._socket = _connect(path)
            self._boot()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Qemu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine."""
        self._process.kill()
        self._process.wait()
        if hasattr(self, "_socket"):
            self._socket.close()

    def run(self, program: Program) -> Outcome:
        """Execute a program to its first exception."""
        if any(made.is_one_of(NOT_ASKED) for made in program.instructions):
            return Outcome(TIMEOUT, 0, 0, (), 0, 0, b"", b"", b"")
        for gpa, data in pages_of(program):
            self._write(gpa, data)
        ds = SELECTORS[World.KERNEL][program.bits][2]
        self._write(SELECTORS_AT, ds.to_bytes(4, "little"))  # and null, of FS and GS
        before = bytes.fromhex(self._ask("g"))
        registers = dict(zip(REGISTERS, program.registers, strict=True)) | {"rsp": ENTERED_WITH}
        values = GENERAL.unpack_from(before)
        packed = GENERAL.pack(*(registers[name] for name in ORDER), BEGINS, 2, *values[18:])
        self._ask("G" + (packed + before[GENERAL.size :]).hex())
        self._ask("c")
        outcome = self._outcome(bytes.fromhex(self._ask("g")))
        # It has changed flags where the result cannot be stored.
        is_other = outcome.vector == PAGE_FAULT and any("memory" in made.traits for made in program.instructions)
        return replace(outcome, vector=TIMEOUT) if is_other else outcome

    def _outcome(self, packet: bytes) -> Outcome:
        values = GENERAL.unpack_from(packet)
        registers = dict(zip(ORDER, values, strict=False))
        vector = (values[16] - HANDLERS) // HANDLER_SIZE
        has_error = registers["rsp"] == TOP - 48
        error, rip, cs, flags, registers["rsp"], ss = struct.unpack("<6Q", self._read(TOP - 48, 48))
        _, _, ds, es, fs, gs = values[18:]
        segments = tuple((selector, 0) for selector in (es, cs, ss, ds, fs, gs))
        return Outcome(
            vector, error if has_error else 0, int.from_bytes(packet[CR2_AT : CR2_AT + 8], "little"),
            tuple(registers[name] for name in REGISTERS), rip, flags, self._read(SAVED, 512), self._read(DATA, PAGE),
            self._read(STACK, PAGE), (), segments,
        )  # fmt: skip

    def _boot(self) -> None:
        """Bring the machine into long mode, with the image in its memory, and a breakpoint in each handler."""
        for gpa, data in image(World.KERNEL):
            self._write(gpa, data)
        ldt = encode_segment(Segment(base=LDT, limit=3 * 8 - 1, type=2, s=0), bits=64)
        self._write(testbed.GDT + LDT_SELECTOR, ldt)
        for vector in range(256):
            handler = HANDLERS + HANDLER_SIZE * vector
            self._write(handler, assemble(f"fxsave [{SAVED:#x}]\nnop\njmp .", bits=64, origin=handler).code)
            gate = testbed.IDT + 16 * vector
            self._write(gate, handler.to_bytes(4, "little")[:2])
            self._write(gate + 6, handler.to_bytes(4, "little")[2:])
            self._ask(f"Z0,{handler + 8:x},1")
        self._write(START, CODE)
        self._ask(f"Z0,{WAITS:x},1")
        self._ask("c")

    def _write(self, gpa: int, data: bytes) -> None:
        for at in range(0, len(data), CHUNK):
            part = data[at : at + CHUNK]
            assert self._ask(f"M{gpa + at:x},{len(part):x}:{part.hex()}") == "OK"

    def _read(self, gpa: int, size: int) -> bytes:
        parts = range(0, size, CHUNK)
        return b"".join(bytes.fromhex(self._ask(f"m{gpa + at:x},{min(CHUNK, size - at):x}")) for at in parts)

    def _ask(self, text: str) -> str:
        """Send a packet and return the answer to it (the gdb manual, Overview of the Remote Serial Protocol)."""
        self._socket.sendall(b"$%s#%02x" % (text.encode(), sum(text.encode()) % 256))
        received = b""
        while not re.search(rb"#..$", received):
            more = self._socket.recv(1 << 16)
            assert more, f"QEMU has ended at {text[:40]}"
            received += more
        self._socket.sendall(b"+")
        return received[received.index(b"$") + 1 : -3].decode()


def _connect(path: Path) -> socket.socket:
    """Return a connection to the stub, once it listens."""
    end = time.monotonic() + SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            assert time.monotonic() < end, "QEMU's gdb stub does not listen"
            time.sleep(0.01)
        else:
            return connection


def _code() -> tuple[bytes, int, int]:
    """Return what brings the machine from real to long mode, and where it waits then, and where a program begins."""
    sregs = long_mode(0, 0, testbed.PML4).sregs
    (gdt,) = (len(data) for gpa, data in testbed.layout(64) if gpa == testbed.GDT)
    source = f"""
    .code16
        cli
        mov al, 0xff
        out 0x21, al                            ; its chips shall not interrupt
        out 0xa1, al
        xor ax, ax
        mov ds, ax
        lgdt [whole_gdt]
        lidt [idt]
        mov eax, {sregs.cr4:#x}
        mov cr4, eax
        mov eax, {sregs.cr3:#x}
        mov cr3, eax
        mov ecx, 0xc0000080                     ; IA32_EFER
        mov eax, {sregs.efer & ~EFER_LMA:#x}
        xor edx, edx
        wrmsr
        mov eax, {sregs.cr0 | AM:#x}
        mov cr0, eax
        jmp {testbed.CODE64}:long
    .balign 8
    whole_gdt: .word 0xffff
        .long {testbed.GDT:#x}
    gdt: .word {gdt - 1}
        .long {testbed.GDT:#x}
        .long 0
    idt: .word 0x0fff
        .long {testbed.IDT:#x}
    .code64
    long:
        mov eax, {testbed.DATA32}
        mov ss, eax
        mov eax, {testbed.TSS_SELECTOR}
        ltr ax
        mov eax, {LDT_SELECTOR}
        lldt ax
        lgdt [gdt]                              ; with all that a guest of the testbed sees of it, and no more
    waits:
        jmp waits
    begins:
        mov ds, word ptr [{SELECTORS_AT:#x}]
        mov es, word ptr [{SELECTORS_AT:#x}]
        mov fs, word ptr [{SELECTORS_AT + 2:#x}]
        mov gs, word ptr [{SELECTORS_AT + 2:#x}]
        jmp {ENTRY:#x}
    """
    made = assemble(source, bits=16, origin=START)
    return made.code, made.symbols["waits"], made.symbols["begins"]


CODE, WAITS, BEGINS = _code()
