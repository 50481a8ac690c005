"""The sidecar of a flat image: NAME.json beside NAME.bin says how to boot it and what its addresses are called."""

from __future__ import annotations

import json

from kvmpy.errors import ImageError
from kvmpy.record import field, record

MODES = ("real", "protected", "long")
IRQCHIPS = ("none", "kernel")
ADDRESS_LIMIT = 1 << 52


@record
class Sidecar:
    """How a flat image wants to be booted. None leaves the choice to the mode's defaults."""

    mode: str = "real"
    load: int | None = None
    entry: int | None = None
    size: int | None = None
    irqchip: str = "kernel"
    summary: str = ""
    symbols: dict[str, int] = field(default_factory=dict)


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


VALID = {
    "mode": lambda value: value in MODES,
    "load": _is_address,
    "entry": _is_address,
    "size": _is_address,
    "irqchip": lambda value: value in IRQCHIPS,
    "summary": lambda value: isinstance(value, str),
    "symbols": _is_symbols,
}
