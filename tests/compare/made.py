"""A subject of a comparison that costs what a test wants."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from kvmpy.compare.subjects import Subject

MIB = 1 << 20


class Made(Subject):
    """A subject of the test's own; each that is held takes some memory."""

    what = "made up"

    def __init__(self, name: str, mib: int = 0) -> None:
        super().__init__()
        self.name = name
        self._mib = mib

    @contextmanager
    def held(self) -> Iterator[object]:
        with mmap.mmap(-1, max(self._mib, 1) * MIB) as memory:
            for at in range(0, self._mib * MIB, 4096):
                memory[at] = 1
            yield memory
