"""Boot Debian's kernel to a busybox prompt on the software CPU, and beside it on QEMU's.

    python tools/boot_linux.py                      three rounds of each, and the ratio of their medians
    python tools/boot_linux.py --soak 20 --busy     20 boots each with 1, 2 and 4 vCPUs, beside two busy loops
    python tools/boot_linux.py --show               one boot, as it is printed

The kernel is that of Debian's package linux-image-cloud-amd64: the newest in /boot or, unpacked from the package and
not installed (.ci/fetch_linux), in ~/.cache/kvmpy-ci/linux; or `--kernel FILE`. It needs busybox-static, and lz4 from
PyPI: the kernel is unpacked here and entered by its PVH note (include/xen/interface/hvm/start_info.h of Linux).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kvmpy
from kvmpy.boot.plan import BootPlan
from kvmpy.cpu.modes import protected_mode

MEMORY = 256 << 20
PLACES = (Path("/boot"), Path.home() / ".cache/kvmpy-ci/linux")
APPEND = "console=ttyS0 panic=-1"
SECONDS = 120.0
READY, PROMPT = b"READY", b"# "
BAD = re.compile(rb"BUG:|Oops|Kernel panic|Tainted|Call Trace|self-detected stall")
GDT, INFO, MODULES, MAP, COMMAND_LINE, ACPI = 0x6000, 0x7000, 0x7100, 0x7200, 0x8000, 0xE0000
LOW_END, HIGH = 0x9FC00, 0x100000
USABLE, RESERVED = 1, 2
START_MAGIC, PVH_NOTE, LZ4_MAGIC, LZ4_BLOCK = 0x336EC578, 18, 0x184C2102, 8 << 20
INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
echo CPUS $(/bin/busybox grep -c ^processor /proc/cpuinfo)
echo {READY.decode()}
exec /bin/busybox setsid -c /bin/busybox sh -i
"""


def main() -> int:
    """Do what the options say; return 1 where a boot went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=Path, help="a bzImage or vmlinux")
    parser.add_argument("--rounds", type=int, default=3, help="boots of each (default 3)")
    parser.add_argument("--cpus", type=int, default=1, help="vCPUs of the software CPU (default 1)")
    parser.add_argument("--soak", type=int, metavar="N", help="N boots each with 1, 2 and 4 vCPUs instead")
    parser.add_argument("--busy", action="store_true", help="beside two busy loops")
    parser.add_argument("--show", action="store_true", help="one boot, as it is printed")
    options = parser.parse_args()
    kernel = options.kernel or find_kernel()
    if kernel is None:
        sys.exit(f"no kernel in {' or '.join(map(str, PLACES))}; .ci/fetch_linux gets one")
    vmlinux, initrd = unpack(kernel.read_bytes()), initramfs()
    if options.show:
        boot(vmlinux, initrd, cpus=options.cpus, show=True)
        return 0
    with busy() if options.busy else idle():
        if options.soak:
            return soak(vmlinux, initrd, options.soak)
        return side_by_side(vmlinux, initrd, options.rounds, options.cpus)


def side_by_side(vmlinux: bytes, initrd: bytes, rounds: int, cpus: int) -> int:
    """Boot on both in turns, and print seconds and their ratio."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(boot(vmlinux, initrd, cpus=cpus))
        theirs.append(boot_in_qemu(vmlinux, initrd))
        print(f"software CPU {ours[-1]:.2f} s, QEMU {theirs[-1]:.2f} s", flush=True)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"{ratio:.2f} x QEMU (medians of {rounds})")
    return 0


def soak(vmlinux: bytes, initrd: bytes, boots: int) -> int:
    """Boot many times; return 1 where one did not reach the prompt, or complained."""
    failures = 0
    for cpus in (1, 2, 4):
        seconds = []
        for _ in range(boots):
            try:
                seconds.append(boot(vmlinux, initrd, cpus=cpus))
            except BootError as error:
                failures += 1
                print(f"{cpus} vCPUs: {error}", flush=True)
        if seconds:
            print(f"{cpus} vCPUs: {len(seconds)} of {boots}, median {statistics.median(seconds):.2f} s", flush=True)
    return 1 if failures else 0


class BootError(Exception):
    """A boot that did not reach the prompt, or whose kernel complained."""


def boot(vmlinux: bytes, initrd: bytes, *, cpus: int = 1, show: bool = False) -> float:
    """Return the seconds from nothing to the prompt."""
    start = time.monotonic()
    console, at_prompt = bytearray(), kvmpy.Stop(kvmpy.StopKind.QUIT, "the prompt")
    with (
        kvmpy.SoftAccelerator() as soft,
        kvmpy.Machine(soft, memory=MEMORY, cpus=cpus, irqchip="python") as machine,
    ):

        def output(data: bytes) -> None:
            console.extend(data)
            if show:
                sys.stdout.write(data.decode("latin-1"))
            if is_at_prompt(console):
                machine.stop(at_prompt)

        machine.output = output
        machine.load(plan(vmlinux, initrd, cpus))
        stop = machine.run(timeout=SECONDS)
        seconds = time.monotonic() - start
    check(console, f"{stop}", cpus)
    return seconds


def is_at_prompt(console: bytearray) -> bool:
    """Tell whether the shell waits for a command."""
    return PROMPT in console[-400:].partition(READY)[2]


def check(console: bytearray, how: str, cpus: int) -> None:
    """Raise BootError unless the console shows a good boot with so many processors."""
    if not is_at_prompt(console):
        raise BootError(f"no prompt ({how}): ...{bytes(console[-300:])!r}")
    if found := BAD.search(console):
        raise BootError(f"the kernel complains: ...{bytes(console[found.start() - 100 : found.end() + 300])!r}")
    if b"CPUS %d" % cpus not in console:
        raise BootError(f"not {cpus} processors: ...{bytes(console[-200:])!r}")


def boot_in_qemu(vmlinux: bytes, initrd: bytes) -> float:
    """Return the same of QEMU's software CPU."""
    with tempfile.TemporaryDirectory() as folder:
        kernel, disk = Path(folder) / "vmlinux", Path(folder) / "initrd"
        kernel.write_bytes(vmlinux)
        disk.write_bytes(initrd)
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=single", "-M", "pc,acpi=off", "-m", str(MEMORY >> 20)]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
        command += ["-kernel", str(kernel), "-initrd", str(disk), "-append", APPEND]
        start, console = time.monotonic(), bytearray()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout
            while not is_at_prompt(console) and time.monotonic() - start < SECONDS:
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    break
                console += data
            seconds = time.monotonic() - start
            process.kill()
    check(console, "QEMU", 1)
    return seconds


# The kernel and its first files


def find_kernel() -> Path | None:
    """Return the newest kernel there is, None when there is none."""
    found = [path for place in PLACES if place.is_dir() for path in place.glob("vmlinuz-*-cloud-amd64")]
    return max(found, key=lambda path: path.name, default=None)


def unpack(image: bytes) -> bytes:
    """Return the ELF file in a bzImage that LZ4 packed (Documentation/arch/x86/boot.rst), or the image if it is one."""
    if image[:4] == b"\x7fELF":
        return image
    import lz4.block

    setup = (image[0x1F1] or 4) + 1
    offset, length = struct.unpack_from("<II", image, 0x248)
    packed = image[setup * 512 + offset :][:length]
    if struct.unpack_from("<I", packed)[0] != LZ4_MAGIC:
        sys.exit("the kernel is not packed by LZ4, as Debian's cloud kernels are; unpack it, and name the vmlinux")
    parts, at = [], 4
    while at + 4 <= length - 4:  # the last word is the size of all
        (size,) = struct.unpack_from("<I", packed, at)
        parts.append(lz4.block.decompress(packed[at + 4 : at + 4 + size], uncompressed_size=LZ4_BLOCK))
        at += 4 + size
    return b"".join(parts)


def initramfs() -> bytes:
    """Return a newc archive with busybox (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    busybox = shutil.which("busybox")
    if not busybox:
        sys.exit("there is no busybox; apt-get install busybox-static")
    files = [(name, 0o40755, b"", 0, 0) for name in ("bin", "dev", "proc")]
    files += [("dev/console", 0o20600, b"", 5, 1), ("bin/busybox", 0o100755, Path(busybox).read_bytes(), 0, 0)]
    files += [("init", 0o100755, INIT.encode(), 0, 0), ("TRAILER!!!", 0, b"", 0, 0)]
    return b"".join(_entry(number, *file) for number, file in enumerate(files, start=1))


def _entry(number: int, name: str, mode: int, data: bytes, major: int, minor: int) -> bytes:
    numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % value for value in numbers) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# How it is entered


def plan(vmlinux: bytes, initrd: bytes, cpus: int) -> BootPlan:
    """Return what is loaded where, and the state that PVH wants: 32-bit protected mode, EBX at hvm_start_info."""
    segments, entry = read_elf(vmlinux)
    ram_disk = MEMORY - len(initrd) & ~0xFFF
    areas = [(0, LOW_END, USABLE), (ACPI, 0x20000, RESERVED), (HIGH, MEMORY - HIGH, USABLE)]
    info = struct.pack("<4I4Q2I", START_MAGIC, 1, 0, 1, MODULES, COMMAND_LINE, ACPI, MAP, len(areas), 0)
    blobs = [*segments, (INFO, info), (MODULES, struct.pack("<4Q", ram_disk, len(initrd), 0, 0))]
    blobs += [(MAP, b"".join(struct.pack("<2Q2I", *area, 0) for area in areas))]
    blobs += [(COMMAND_LINE, APPEND.encode() + b"\0"), (ram_disk, initrd), *acpi_tables(cpus)]
    state = protected_mode(entry, 0x5000, gdt=GDT)
    state.regs.rbx = INFO
    blobs.append((GDT, struct.pack("<4Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0)))
    return BootPlan("linux", "protected", blobs, state, "python")


def read_elf(image: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Return the segments of a 64-bit ELF file, and the entry that its PVH note names."""
    (at,), (count,) = struct.unpack_from("<Q", image, 32), struct.unpack_from("<H", image, 56)
    segments, entry = [], None
    for number in range(count):
        kind, _, offset, _, gpa, size = struct.unpack_from("<IIQQQQ", image, at + 56 * number)
        if kind == 1:
            segments.append((gpa, image[offset : offset + size]))
        elif kind == 4:
            entry = _pvh_entry(image[offset : offset + size]) or entry
    if entry is None:
        sys.exit("the kernel has no PVH note")
    return segments, entry


def _pvh_entry(notes: bytes) -> int | None:
    at = 0
    while at < len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        data = at + 12 + (name_size + 3 & ~3)
        if kind == PVH_NOTE and notes[at + 12 : at + 16] == b"Xen\0":
            return int.from_bytes(notes[data : data + size], "little")
        at = data + (size + 3 & ~3)
    return None


def acpi_tables(cpus: int) -> list[tuple[int, bytes]]:
    """Return RSDP, XSDT, FADT, MADT and an empty DSDT: the only way to tell Linux of the APICs (ACPI 6.5, 5.2)."""
    madt = struct.pack("<2I", 0xFEE00000, 1)
    madt += b"".join(struct.pack("<4BI", 0, 8, n, n, 1) for n in range(cpus))  # local APICs
    madt += struct.pack("<4B2I", 1, 12, 0, 0, 0xFEC00000, 0)  # the I/O APIC; the PIT is on its pin 0
    at, placed = ACPI + 64, {}
    fadt = bytearray(268 - 36)

    def put(signature: bytes, revision: int, body: bytes) -> int:
        nonlocal at
        table = bytearray(
            struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, b"KVMPY", b"KVMPY", 1, b"KVMP", 1)
        )
        table += body
        table[9] = -sum(table) & 0xFF
        here, at = at, at + len(table) + 63 & ~63
        placed[here] = bytes(table)
        return here

    def field(offset: int, kind: str, *values: int) -> None:
        struct.pack_into("<" + kind, fadt, offset - 36, *values)

    dsdt = put(b"DSDT", 2, b"")
    field(40, "I", dsdt)
    field(46, "H", 9)  # SCI
    field(56, "I", 0x600)  # PM1a events
    field(64, "I", 0x604)  # and control
    field(88, "2B", 4, 2)
    field(109, "H", 0x14)  # no VGA, no 8042
    field(112, "I", 0x21)
    field(140, "Q", dsdt)
    tables = [put(b"FACP", 5, bytes(fadt)), put(b"APIC", 3, madt)]
    xsdt = put(b"XSDT", 1, struct.pack("<2Q", *tables))
    rsdp = bytearray(struct.pack("<8sB6sBIIQ4x", b"RSD PTR ", 0, b"KVMPY", 2, 0, 36, xsdt))
    rsdp[8] = -sum(rsdp[:20]) & 0xFF
    rsdp[32] = -sum(rsdp) & 0xFF
    return [(ACPI, bytes(rsdp)), *placed.items()]


# Load


@contextmanager
def busy() -> Iterator[None]:
    """Two loops that take all the time they get."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def idle() -> Iterator[None]:
    """Nothing beside it."""
    yield


if __name__ == "__main__":
    sys.exit(main())
