"""kvmpy size: how large a guest image is, and where it is loaded."""

from __future__ import annotations

import argparse

from kvmpy.boot.image import plan_image
from kvmpy.cli.arguments import command_parser

EPILOG = """\
examples:
  kvmpy size guest.bin
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("size", "Show the parts of a guest image.", EPILOG)
    p.add_argument("file", metavar="FILE", help="a flat image, or the name of a bundled guest")
    return p


def run(options: argparse.Namespace) -> int:
    """Print a line for each part."""
    for gpa, data in plan_image(options.file, memory=1 << 30).blobs:
        print(f"{gpa:#10x} {len(data):8} bytes")
    return 0
