"""kvmpy asm: assemble a source file into a flat image."""

from __future__ import annotations

import os
import sys

from kvmpy.boot.sidecar import Sidecar, write_sidecar
from kvmpy.cli.arguments import address, command_parser
from kvmpy.errors import AssemblyError, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from kvmpy.asm import Assembly

LISTED_BYTES = 11
MODE_OF_BITS = {16: "real", 32: "protected", 64: "long"}

EPILOG = """\
With -o NAME.bin and --sidecar, NAME.json is written too: mode, addresses and
symbols, which 'kvmpy boot' and 'kvmpy disasm' read.

exit codes:
  0   assembled
  2   wrong usage
  66  the source cannot be read or was refused; the message names line and text

examples:
  kvmpy asm hello.asm -o hello.bin --origin 0x7c00 --sidecar
  printf 'mov al, 65\\nout 0xe9, al\\nhlt\\n' | kvmpy asm - --listing
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("asm", "Assemble Intel-syntax source into a flat image.", EPILOG)
    p.add_argument("file", metavar="FILE", help="the source, - for standard input")
    p.add_argument("-o", "--output", metavar="FILE", help="where the image goes, - for standard output")
    p.add_argument("--bits", type=int, choices=(16, 32, 64), default=16, help="the mode it starts in (default 16)")
    p.add_argument("--origin", type=address, default=0x7C00, metavar="ADDR", help="its first address (default 0x7c00)")
    p.add_argument("--sidecar", action="store_true", help="write NAME.json beside the image")
    p.add_argument("--listing", action="store_true", help="print addresses, bytes and instructions")
    p.add_argument("--symbols", action="store_true", help="print the symbol table")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """Assemble."""
    from kvmpy.asm import assemble

    source = read_text(options.file)
    try:
        assembly = assemble(source, bits=options.bits, origin=options.origin)
    except AssemblyError as error:
        raise AssemblyError(f"{options.file}: {error}") from None
    if options.output:
        _write(options.output, assembly.code)
        if options.sidecar:
            _write_sidecar(options.output, assembly, options.bits)
    if options.listing or not (options.output or options.symbols):
        print("\n".join(listing(assembly)))
    if options.symbols:
        print(
            "\n".join(f"{value:#010x} {name}" for name, value in sorted(assembly.symbols.items(), key=lambda s: s[1]))
        )
    return 0


def listing(assembly: Assembly) -> list[str]:
    """Return address, bytes and source of every statement, and the labels."""
    labels: dict[int, list[str]] = {}
    for name, value in assembly.symbols.items():
        labels.setdefault(value, []).append(name)
    lines = []
    for line in assembly.lines:
        lines += [f"{name}:" for name in labels.get(line.address, ())]
        shown = line.raw[:LISTED_BYTES].hex() + ("…" if len(line.raw) > LISTED_BYTES else "")
        lines.append(f"  {line.address:08x}  {shown:<24}  {line.text}")
    return lines


def read_text(name: str) -> str:
    """Read a source file, or standard input for `-`: as much as the assembler takes, and one more."""
    from kvmpy.asm.source import SOURCE_LIMIT

    try:
        if name == "-":
            return sys.stdin.read(SOURCE_LIMIT + 1)
        with open(name, encoding="utf-8") as file:
            return file.read(SOURCE_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ImageError(f"{name}: cannot be read: {reason}") from None


def _write(name: str, data: bytes) -> None:
    if name == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        with open(name, "wb") as file:
            file.write(data)
    except OSError as error:
        raise ImageError(f"{name}: cannot be written: {os.strerror(error.errno or 0)}") from None


def _write_sidecar(output: str, assembly: Assembly, bits: int) -> None:
    if not output.endswith(".bin"):
        raise ImageError(f"{output}: a sidecar belongs to an image named NAME.bin; rename it")
    sidecar = Sidecar(
        mode=MODE_OF_BITS[bits],
        load=assembly.origin,
        size=len(assembly.code),
        symbols=assembly.symbols,
        spans=[[span.start, span.end, span.bits] for span in assembly.spans],
    )
    try:
        write_sidecar(output.removesuffix(".bin") + ".json", sidecar)
    except OSError as error:
        raise ImageError(f"{output}: its sidecar cannot be written: {os.strerror(error.errno or 0)}") from None
