"""Assemble the bundled guests: guest/NAME.asm becomes NAME.bin with its sidecar NAME.json, guest/lessons/ likewise.

    python tools/build_guests.py [OUT]     default: kvmpy/guests

The head of a source, lines that begin with `;;`, says how it is built: `bits`, `load`, `irqchip`, `summary`, and
`include`, the folder whose files follow it in the order of their names. The same source gives the same bytes, anywhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvmpy.asm import assemble  # noqa: E402
from kvmpy.boot.sidecar import Sidecar, write_sidecar  # noqa: E402
from kvmpy.errors import AssemblyError  # noqa: E402

HEAD = re.compile(r";; (bits|load|irqchip|summary|include): (.+)")
MODES = {16: "real", 32: "protected", 64: "long"}


class Part(NamedTuple):
    """A source file and the lines it holds in the joined source, counted from 1."""

    path: Path
    first: int
    text: str


def build_all(sources: Path, out: Path) -> list[str]:
    """Assemble every guest in `sources` into `out`; return their names. AssemblyError names file, line and text."""
    names = []
    for folder in ("", "lessons"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        names += [build(source, out / folder) for source in sorted((sources / folder).glob("*.asm"))]
    return names


def build(source: Path, out: Path) -> str:
    """Assemble one guest and write image and sidecar."""
    head = dict(HEAD.findall(source.read_text(encoding="utf-8")))
    bits, load = int(head["bits"]), int(head["load"], 0)
    parts = _parts(source, head.get("include"))
    try:
        assembly = assemble("\n".join(part.text for part in parts), bits=bits, origin=load)
    except AssemblyError as error:
        raise AssemblyError(_in_file(str(error), parts)) from None
    sidecar = Sidecar(
        mode=MODES[bits],
        load=load,
        size=len(assembly.code),
        irqchip=head.get("irqchip", "auto"),
        summary=head["summary"],
        symbols=assembly.symbols,
        spans=[[span.start, span.end, span.bits] for span in assembly.spans],
    )
    (out / f"{source.stem}.bin").write_bytes(assembly.code)
    write_sidecar(str(out / f"{source.stem}.json"), sidecar)
    return source.stem


def _parts(source: Path, include: str | None) -> list[Part]:
    parts: list[Part] = []
    first = 1
    for path in [source, *(sorted((source.parent / include).glob("*.asm")) if include else ())]:
        text = path.read_text(encoding="utf-8")
        parts.append(Part(path, first, text))
        first += text.count("\n") + 1
    return parts


def _in_file(message: str, parts: list[Part]) -> str:
    """Turn the line number in the joined source into a file and a line."""
    match = re.match(r"line (\d+), column (\d+): (.*)", message, re.DOTALL)
    if not match:
        return f"{parts[0].path.name}: {message}"
    number = int(match[1])
    part = max((p for p in parts if p.first <= number), key=lambda p: p.first)
    return f"{part.path.name}:{number - part.first + 1}:{match[2]}: {match[3]}"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "kvmpy" / "guests"
    try:
        print(f"{target.name}: {', '.join(build_all(ROOT / 'guest', target))}")
    except AssemblyError as failure:
        sys.exit(str(failure))
