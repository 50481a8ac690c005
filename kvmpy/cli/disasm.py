"""kvmpy disasm: disassemble a flat image."""

from __future__ import annotations

import os

from kvmpy.boot.image import find_image, read_image
from kvmpy.boot.sidecar import Sidecar, read_sidecar
from kvmpy.cli.arguments import address, command_parser, count

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

SIZE_LIMIT = 64 << 20
BITS_OF_MODE = {"real": 16, "protected": 32, "long": 64}
LOAD_OF_BITS = {16: 0x7C00, 32: 0x10_0000, 64: 0x10_0000}

EPILOG = """\
A sidecar NAME.json beside NAME.bin gives mode, address and symbols. Data is shown as if it were code: a flat image does
not tell them apart.

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
    from kvmpy.asm import disassemble

    path = find_image(options.file)
    image = read_image(options.file, path, SIZE_LIMIT)
    side = os.path.splitext(path)[0] + ".json"
    sidecar = read_sidecar(side) if path.endswith(".bin") and os.path.exists(side) else Sidecar()
    bits = options.bits or BITS_OF_MODE[sidecar.mode]
    origin = options.origin
    if origin is None:
        origin = LOAD_OF_BITS[bits] if sidecar.load is None else sidecar.load
    skip = max(0, (options.start or origin) - origin)
    labels = {value: name for name, value in sidecar.symbols.items()}
    code = image[skip:]
    for item in disassemble(code, bits=bits, origin=origin + skip, symbols=sidecar.symbols, count=options.count or 0):
        if item.address in labels:
            print(f"{labels[item.address]}:")
        print(f"  {item.address:08x}  {item.raw.hex():<24}  {item.text}")
    return 0
