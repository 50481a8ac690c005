"""What the software CPU does as the manuals say. A fixed list: it is the same everywhere, and the tests try each."""

from __future__ import annotations

from kvmpy.accel.probe import PROBES, Features
from kvmpy.errors import UnsupportedError

MISSING = frozenset({"chips", "dirty_log", "segment_limits", "stack_faults"})


class SoftFeatures(Features):
    """Answers without trying."""

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> bool:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in PROBES:
            raise UnsupportedError(f"feature {name!r}: no such probe; there are {', '.join(PROBES)}")
        return name not in MISSING
