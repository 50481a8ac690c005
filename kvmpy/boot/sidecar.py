"""The sidecar of a flat image: NAME.json beside NAME.bin says how to boot it and what its addresses are called."""

from __future__ import annotations

import json
import os

from kvmpy.errors import ImageError
from kvmpy.memory import ADDRESS_LIMIT
from kvmpy.record import asdict, field, record

MODES = ("real", "protected", "long")
IRQCHIPS = ("auto", "kernel", "python", "none")


@record
class Sidecar:
    """How a flat image wants to be booted; None leaves the choice to the mode's defaults.

    `spans` are [start, end, bits] of the image's code, `bits` 0 for data, for the disassembler.
    """

    mode: str = "real"
    load: int | None = None
    entry: int | None = None
    size: int | None = None
    irqchip: str = "auto"
    summary: str = ""
    symbols: dict[str, int] = field(default_factory=dict)
    spans: list[list[int]] = field(default_factory=list)


def write_sidecar(path: str, sidecar: Sidecar) -> None:
    """Write a sidecar; what is None or empty is left out."""
    data = {name: value for name, value in asdict(sidecar).items() if value not in (None, "", {}, [])}
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(data, indent=1) + "\n")


def sidecar_beside(image: str) -> Sidecar:
    """Return the sidecar of an image NAME.bin, the defaults when there is none."""
    side = os.path.splitext(image)[0] + ".json"
    return read_sidecar(side) if image.endswith(".bin") and os.path.exists(side) else Sidecar()


def read_sidecar(path: str) -> Sidecar:
    """Read a sidecar; ImageError names the file and the field that is wrong."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ImageError(f"sidecar {path}: {error}; rebuild it or remove it") from None
    if not isinstance(data, dict):
        raise ImageError(f"sidecar {path}: it must hold a JSON object; rebuild it or remove it")
    return _checked(path, data)


def _checked(path: str, data: dict[str, object]) -> Sidecar:
    sidecar = Sidecar()
    for name, is_valid in VALID.items():
        if name in data:
            if not is_valid(data[name]):
                raise ImageError(f"sidecar {path}: {name!r} cannot be {data[name]!r}; rebuild it or remove it")
            setattr(sidecar, name, data[name])
    return sidecar


def _is_address(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < ADDRESS_LIMIT


def _is_symbols(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, int) for v in value.values())


def _is_spans(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(span, list) and len(span) == 3 and all(map(_is_address, span)) and span[2] in (0, 16, 32, 64)
        for span in value
    )


VALID = {
    "mode": lambda value: value in MODES,
    "load": _is_address,
    "entry": _is_address,
    "size": _is_address,
    "irqchip": lambda value: value in IRQCHIPS,
    "summary": lambda value: isinstance(value, str),
    "symbols": _is_symbols,
    "spans": _is_spans,
}
