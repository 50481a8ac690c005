"""From the file a user names to a BootPlan."""

from __future__ import annotations

import os
import select
import stat
import struct
import time

from kvmpy.boot.flat import TABLES_END, plan_flat
from kvmpy.boot.sidecar import sidecar_beside
from kvmpy.errors import DeadlineError, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.boot.plan import BootPlan

CHUNK = 1 << 20
# <elf.h>, by class: the mode that a file is for; then what is read of its header (e_entry, e_phoff, e_shoff, size and
# number of the tables' entries are), of a segment (p_type, p_offset, p_paddr, p_filesz) and of a section (sh_type,
# sh_flags, sh_offset, sh_size).
ELF_TABLES = {
    1: ("protected", "<III4x2xHHHH", "<II4xII", "<4xII4xII"),
    2: ("long", "<QQQ4x2xHHHH", "<I4xQ8xQQ", "<4xIQ8xQQ"),
}
PT_LOAD, SHT_NOBITS, SHF_ALLOC = 1, 8, 2
GUESTS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "guests")


def bundled_guests() -> dict[str, str]:
    """Return the guests that come with kvmpy, the lessons of the demos behind the others: name and path."""
    found: dict[str, str] = {}
    for folder in ("", "lessons/"):
        path = os.path.join(GUESTS, folder)
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        found |= {f"{folder}{name}": path + name for name in names if name.endswith(".bin")}
    return found


def find_image(name: str) -> str:
    """Return the path of an image. A name that is no file here is looked up among the bundled guests."""
    return name if os.path.exists(name) else bundled_guests().get(name, name)


def plan_image(
    name: str,
    *,
    memory: int,
    mode: str | None = None,
    load: int | None = None,
    entry: int | None = None,
    append: str = "",
    deadline: float | None = None,
) -> BootPlan:
    """Read the image `name` and plan its boot in `memory` bytes; what is given here overrides its sidecar.

    A bare name that is no file here is looked up among the bundled guests. `memory` is in bytes, `load` and `entry` are
    physical addresses, `append` is a command line whose address the guest finds in (E/R)SI.

    Raises ImageError when the file cannot be read, is empty or damaged, or does not fit; DeadlineError when a pipe has
    not given all of it before `deadline` (of `time.monotonic()`).

    >>> plan = plan_image("hello.bin", memory=1 << 20)
    >>> plan.mode, hex(plan.state.regs.rip), "start" in plan.symbols
    ('real', '0x7c00', True)
    """
    path = find_image(name)
    image = read_image(name, path, memory, deadline)
    sidecar = sidecar_beside(path)
    if not sidecar.symbols:
        check_flat(name, image)
    if mode is not None and mode != sidecar.mode:
        sidecar.mode, sidecar.load, sidecar.entry = mode, None, None
    if load is not None:
        sidecar.load, sidecar.entry = load, None
    if entry is not None:
        sidecar.entry = entry
    return plan_flat(os.path.basename(path), image, sidecar, memory=memory, append=append)


ET_EXEC = b"\2\0"  # of <elf.h>: linked to an address
RELINK = (
    "link it to an address that is free first, as gcc's options '-static -no-pie -nostdlib -Wl,-Ttext=0x100000' do; "
    "then 'objcopy -O binary' makes a flat image of it"
)
# How other kinds of files begin: where, with what, what they are, and what to do with them.
OTHERS = (
    (0, b"\x7fELF", "an ELF file", ""),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it with 'gunzip'"),
    (0, b"\xfd7zXZ", "compressed by xz", "unpack it with 'unxz'"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with 'unzstd'"),
    (0x202, b"HdrS", "a Linux kernel (bzImage)", "it needs a loader of its own"),
)


def check_flat(name: str, image: bytes) -> None:
    """Raise ImageError for a file that is plainly something else: its head would be executed as code."""
    for at, magic, what, advice in OTHERS:
        if image[at : at + len(magic)] == magic:
            raise ImageError(f"{name}: is {what}, no flat image; {advice or _advice_for_elf(image)}")
    if _is_text(image):
        source = f"kvmpy asm {name} -o {name.removesuffix('.asm').removesuffix('.s')}.bin"
        raise ImageError(f"{name}: is text, no flat image; if it is a source, '{source}' assembles it")


def _is_text(image: bytes) -> bool:
    """Tell whether it has lines, and nothing that a person could not have written."""
    try:
        text = image.decode()
    except UnicodeDecodeError:
        return False
    return "\n" in text and all(c.isprintable() or c in "\t\r\n\f" for c in text)


def _advice_for_elf(image: bytes) -> str:
    """Return what makes a flat image of an ELF file."""
    if where := _where_elf_goes(image):
        return f"make a flat image of it with 'objcopy -O binary', {where}"
    return RELINK


def _where_elf_goes(image: bytes) -> str:
    """Return how to boot what objcopy makes of an ELF file: it begins with the first section with contents (elf(5)).

    Empty where it has no place of its own yet: an object file, or a program that can lie anywhere (PIE).
    """
    if len(image) < 64 or image[4] not in (1, 2) or image[16:18] != ET_EXEC:
        return ""
    mode, header, segment, section = ELF_TABLES[image[4]]
    try:
        entry, segments, sections, segment_size, segment_count, section_size, section_count = struct.unpack_from(
            header, image, 24
        )
        loads = [struct.unpack_from(segment, image, segments + n * segment_size) for n in range(segment_count)]
        parts = [struct.unpack_from(section, image, sections + n * section_size) for n in range(section_count)]
    except struct.error:
        return ""
    places = [
        physical + at - offset
        for kind, offset, physical, length in loads
        for what, flags, at, size in parts
        if kind == PT_LOAD and what != SHT_NOBITS and flags & SHF_ALLOC and size and offset <= at < offset + length
    ]
    if not places or min(places) < TABLES_END:
        return ""
    return f"for {mode} mode, loaded at {min(places):#x}, entered at {entry:#x}"


def read_image(name: str, path: str, limit: int, deadline: float | None = None) -> bytes:
    """Read the file at `path`, which the user called `name`, of at most `limit` bytes; ImageError when that fails."""
    try:
        # Non-blocking, so that opening a pipe does not wait for the one who writes it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
                raise ImageError(f"{name}: not a regular file; give a guest image")
            if status.st_size > limit:
                raise ImageError(
                    f"{name}: {status.st_size} bytes do not fit into {limit} bytes of memory; give it more"
                )
            return _read_all(name, file.fileno(), limit + 1, deadline)
    except FileNotFoundError:
        known = ", ".join(bundled_guests()) or "none; build them with 'pip install -e .'"
        raise ImageError(f"{name}: no such file, and no bundled guest of this name (there are: {known})") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a directory; give a guest image") from None
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ImageError(f"{name}: cannot be read: {reason}") from None


def _read_all(name: str, fd: int, limit: int, deadline: float | None) -> bytes:
    """Read to the end of a file or pipe, or up to `limit` bytes."""
    data = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(data) < limit:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not poll.poll(None if left is None else left * 1000):
            raise DeadlineError(f"{name}: not read to its end in time, {len(data)} bytes so far; allow more time")
        chunk = os.read(fd, min(CHUNK, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)
