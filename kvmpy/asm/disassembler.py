"""Machine code to text, over Capstone."""

from __future__ import annotations

import functools
import re
from typing import Any

from kvmpy.errors import ConfigError
from kvmpy.packages import package
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SYMBOL_REACH = 0x10000  # bytes behind a label that still count as its own
RIP_RELATIVE = re.compile(r"\[rip(?: ([+-]) (0x[0-9a-f]+|\d+))?\]")
BRANCH = re.compile(r"(?:j\w+|call|loop\w*)")
ADDRESS = re.compile(r"0x[0-9a-f]+|\d+")


@record
class Instruction:
    """One instruction: linear address, bytes, mnemonic, operands, and all as text with symbols.

    Bytes that are no instruction have the mnemonic `.byte`.
    """

    address: int
    raw: bytes
    mnemonic: str
    operands: str
    text: str


def disassemble(
    code: bytes, *, bits: int, origin: int = 0, symbols: Mapping[str, int] | None = None, count: int = 0
) -> list[Instruction]:
    """Disassemble 16-, 32- or 64-bit code that lies at `origin`: all of it, or the first `count` instructions.

    `symbols` name addresses. ConfigError when there is no such mode.

    >>> [i.text for i in disassemble(bytes.fromhex("b041 ebfc"), bits=16, origin=0x7C00, symbols={"start": 0x7C00})]
    ['mov al, 0x41', 'jmp 0x7c00  ; start']
    """
    engine = capstone_engine(bits)
    result = []
    for address, size, mnemonic, operands in engine.disasm_lite(code, origin, count):
        raw = code[address - origin : address - origin + size]
        text = _with_symbols(address, size, mnemonic, operands, symbols or {})
        result.append(Instruction(address, raw, mnemonic, operands, text))
    return result


@functools.cache
def capstone_engine(bits: int, detail: bool = False) -> Any:
    """Return the Capstone engine for a mode, with `detail` of operands too; ConfigError when there is no such mode."""
    capstone = package("capstone")
    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    if bits not in modes:
        raise ConfigError(f"{bits}-bit code: there is 16, 32 and 64")
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    engine.skipdata = not detail
    engine.detail = detail
    return engine


def _with_symbols(address: int, size: int, mnemonic: str, operands: str, symbols: Mapping[str, int]) -> str:
    text = f"{mnemonic} {operands}".rstrip()
    if relative := RIP_RELATIVE.search(operands):
        distance = int(relative[2] or "0", 0)
        target = address + size + (-distance if relative[1] == "-" else distance)
    elif BRANCH.fullmatch(mnemonic) and ADDRESS.fullmatch(operands):
        target = int(operands, 0)
    else:
        return text
    name = format_address(target, symbols)
    return f"{text}  ; {name}" if relative or not name.startswith("0x") else text


def format_address(address: int, symbols: Mapping[str, int]) -> str:
    """Return an address as `label`, `label+0x10`, or a number where no label lies within 64 KiB below.

    >>> format_address(0x1010, {"start": 0x1000, "end": 0x2000})
    'start+0x10'
    """
    name, base = max(symbols.items(), key=lambda item: item[1] if item[1] <= address else -1, default=("", -1))
    if not 0 <= base <= address < base + SYMBOL_REACH:
        return f"{address:#x}"
    return f"{name}+{address - base:#x}" if address > base else name
