"""What several commands' options have in common."""

from __future__ import annotations

import argparse
import os
import sys

from kvmpy.accel.choose import NAMES, VARIABLE, open_accelerator
from kvmpy.cli.streams import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from kvmpy.accel.base import Accelerator

UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
PAGE = 4096
LARGEST = 64 << 40  # bytes; a process has 128T of addresses for all that it maps (Intel SDM vol. 1, 3.3.7.1)


class Parser(argparse.ArgumentParser):
    """A parser whose help fails where it cannot be written; argparse's own keeps quiet about it."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file and file is sys.stdout:
            file.write(message)
        else:
            complain(message.rstrip("\n"))


def command_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    return Parser(
        prog=f"kvmpy {name}",
        description=description,
        epilog=epilog,
        formatter_class=_formatter,
        allow_abbrev=False,
    )


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Find the terminal's width here: argparse would import shutil for it, and all that unpacks archives."""
    try:
        width = int(os.environ.get("COLUMNS", "")) or os.get_terminal_size().columns
    except (ValueError, OSError):
        width = 80
    return argparse.RawDescriptionHelpFormatter(prog, width=max(width, 40) - 2)


def add_accelerator(parser: argparse.ArgumentParser) -> None:
    """Let the user choose who executes the guest."""
    parser.add_argument(
        "--accel",
        choices=NAMES,
        help=f"who executes: KVM, the software CPU, or KVM where it opens (default auto, or {VARIABLE})",
    )


def open_chosen(options: argparse.Namespace) -> Accelerator:
    """Open what `add_accelerator()` let the user choose, and say so when it is not the first choice."""
    accelerator = open_accelerator(options.accel)
    if accelerator.instead_of:
        complain(f"kvmpy: the software CPU runs the guest, because KVM cannot: {accelerator.instead_of}")
    return accelerator


def address(text: str) -> int:
    """Read a non-negative number, decimal or 0x hexadecimal."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; write 0x7c00 or 31744")
    return value


def size(text: str) -> int:
    """Read a size with an optional unit K, M, G or T, each 1024 times the one before; 64M, 64MB and 64MiB are one."""
    lower = text.lower()
    stem = lower[:-2] if lower.endswith("ib") else lower.removesuffix("b")
    digits, unit = (stem[:-1], UNITS[stem[-1]]) if stem[-1:] in UNITS else (text, 1)
    try:
        value = int(digits, 0) * unit
    except ValueError:
        value = 0
    if not 0 < value <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size; write 64M, 1G or a number of bytes up to 64T")
    return value


def seconds(text: str) -> float:
    """Read a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above zero")
    return value


def a_name(text: str) -> str:
    """Read the name of a directory: an empty one is a variable of the shell that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def memory_size(text: str) -> int:
    """Read the size of a machine's memory, which is made of pages."""
    value = size(text)
    if value % PAGE:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of pages; write {-(-value // PAGE) * PAGE}")
    return value


def count(text: str) -> int:
    """Read a whole number above zero."""
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return value


def processors(text: str) -> float:
    """Read how many processors' worth of time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 10000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processors; write 0.5 or 2")
    return value
