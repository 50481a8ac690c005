"""kvmpy disasm: disassemble a flat image."""

from __future__ import annotations

import itertools

from kvmpy.asm import Instruction, disassemble
from kvmpy.boot.image import find_image, read_image
from kvmpy.boot.sidecar import Sidecar, sidecar_beside
from kvmpy.cli.arguments import address, command_parser, count

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SIZE_LIMIT = 64 << 20
DATA_LINE = 8
BITS_OF_MODE = {"real": 16, "protected": 32, "long": 64}
LOAD_OF_BITS = {16: 0x7C00, 32: 0x10_0000, 64: 0x10_0000}

EPILOG = """\
A sidecar NAME.json beside NAME.bin gives mode, address, symbols, and what is
code and what data. Without one, or with --bits, all is shown as code of one
mode.

exit codes:
  0   done
  2   wrong usage
  66  the image cannot be read

examples:
  kvmpy disasm hello.bin
  kvmpy disasm my.bin --bits 64 --origin 0x100000 --start 0x100040 --count 20
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("disasm", "Disassemble a flat image.", EPILOG)
    p.add_argument("file", metavar="FILE", help="the image, or the name of a bundled guest")
    p.add_argument("--bits", type=int, choices=(16, 32, 64), help="its mode (default: the sidecar's, else 16)")
    p.add_argument("--origin", type=address, metavar="ADDR", help="its first address")
    p.add_argument("--start", type=address, metavar="ADDR", help="begin at this address")
    p.add_argument("--count", type=count, metavar="N", help="stop after N instructions")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """Disassemble."""
    path = find_image(options.file)
    image = read_image(options.file, path, SIZE_LIMIT)
    sidecar = sidecar_beside(path)
    bits = options.bits or BITS_OF_MODE[sidecar.mode]
    origin = options.origin
    if origin is None:
        origin = LOAD_OF_BITS[bits] if sidecar.load is None else sidecar.load
    listing = _listing(image, origin, bits, sidecar if options.bits is None else Sidecar())
    start = options.start or 0
    print("\n".join(itertools.islice((text for at, text in listing if at >= start), options.count)))
    return 0


def _listing(image: bytes, origin: int, bits: int, sidecar: Sidecar) -> Iterator[tuple[int, str]]:
    """Yield (address, line), in each span's own mode."""
    labels = {value: name for name, value in sidecar.symbols.items()}
    for start, end, mode in sidecar.spans or [[origin, origin + len(image), bits]]:
        code = image[max(0, start - origin) : max(0, end - origin)]
        items = disassemble(code, bits=mode, origin=start, symbols=sidecar.symbols) if mode else _data(code, start)
        for item in items:
            label = f"{labels[item.address]}:\n" if item.address in labels else ""
            yield item.address, f"{label}  {item.address:08x}  {item.raw.hex():<24}  {item.text}"


def _data(code: bytes, start: int) -> Iterator[Instruction]:
    for at in range(0, len(code), DATA_LINE):
        raw = code[at : at + DATA_LINE]
        operands = ", ".join(f"{byte:#04x}" for byte in raw)
        yield Instruction(start + at, raw, ".byte", operands, f".byte {operands}")
