"""The programs that are run under each model: a few instructions, as a static executable and as a guest's code.

They need no library and no files, so that any root directory will do, and what is measured is the model.
"""

from __future__ import annotations

import struct
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

ORIGIN = 0x400000
HEADERS = 64 + 56  # an ELF header and one program header (elf(5))
EXIT = """\
    mov eax, 60     ; exit
    xor edi, edi
    syscall
"""
# By name: the assembly of each. COUNT is replaced by how often.
SOURCES = {
    "true": EXIT,
    "wait": """\
again:
    mov eax, 34     ; pause
    syscall
    jmp again
""",
    "crash": """\
    mov eax, 157    ; prctl
    mov edi, 4      ; PR_SET_DUMPABLE: leave no core file
    xor esi, esi
    syscall
    ud2
""",
    "calls": f"""\
    mov ebx, COUNT
again:
    mov eax, 110    ; getppid: hardly any work in the kernel
    syscall
    dec ebx
    jnz again
{EXIT}""",
    "compute": f"LOOP{EXIT}",
}
# Arithmetic that depends on itself, so that no processor can leave any of it out.
LOOP = """\
    mov ecx, COUNT
    mov eax, 1
    mov ebx, 3
again:
    imul rax, rbx
    add rax, rcx
    dec ecx
    jnz again
"""
START_PORT, END_PORT = 0x10, 0x11


def source(name: str, count: int = 1) -> str:
    """Return the assembly of a program."""
    return SOURCES[name].replace("LOOP", LOOP).replace("COUNT", str(count))


@cache
def executable(name: str, count: int = 1) -> bytes:
    """Return a program as a static ELF executable of one segment."""
    from kvmpy.asm import assemble

    code = assemble(source(name, count), bits=64, origin=ORIGIN + HEADERS).code
    size = HEADERS + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, ORIGIN + HEADERS, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, ORIGIN, ORIGIN, size, size, 0x1000)
    return header + segment + code


@cache
def guest_loop(count: int) -> bytes:
    """Return the arithmetic of `compute` as code for a guest, which writes to a port before and behind it."""
    from kvmpy.asm import assemble

    text = f"    out {START_PORT}, al\n{LOOP}    out {END_PORT}, al\n    hlt\n".replace("COUNT", str(count))
    return assemble(text, bits=64, origin=0).code


def write(folder: Path, name: str, count: int = 1) -> str:
    """Write a program into a directory; return its path."""
    path = folder / (name if count == 1 else f"{name}-{count}")
    if not path.exists():
        path.write_bytes(executable(name, count))
        path.chmod(0o755)
    return str(path)
