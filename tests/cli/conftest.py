"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpy.asm import assemble


@pytest.fixture
def image(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Return a function that assembles a source into an image file."""

    def make(source: str, *, bits: int = 16, origin: int = 0x7C00) -> str:
        path = tmp_path / "test.img"
        path.write_bytes(assemble(source, bits=bits, origin=origin).code)
        return str(path)

    return make
