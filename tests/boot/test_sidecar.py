"""Sidecars go round, and what is wrong in one is told by its field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.boot.sidecar import IRQCHIPS, MODES, Sidecar, read_sidecar, sidecar_beside, write_sidecar
from kvmpy.errors import ImageError

addresses = st.integers(0, (1 << 52) - 1)
sidecars = st.builds(
    Sidecar,
    mode=st.sampled_from(MODES),
    load=st.none() | addresses,
    entry=st.none() | addresses,
    size=st.none() | addresses,
    irqchip=st.sampled_from(IRQCHIPS),
    summary=st.text(max_size=20),
    symbols=st.dictionaries(st.text(min_size=1, max_size=9), addresses, max_size=4),
    spans=st.lists(st.tuples(addresses, addresses, st.sampled_from([0, 16, 32, 64])).map(list), max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(sidecars)
def test_what_is_written_is_read(tmp_path: Path, sidecar: Sidecar) -> None:
    write_sidecar(str(tmp_path / "a.json"), sidecar)
    assert read_sidecar(str(tmp_path / "a.json")) == sidecar
    assert sidecar_beside(str(tmp_path / "a.bin")) == sidecar


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "virtual"), ("load", -1), ("load", True), ("load", 1 << 52), ("entry", "0x10"), ("size", 1.5),
        ("irqchip", "apic"), ("summary", 5), ("symbols", {"a": "b"}), ("symbols", []), ("spans", [[0, 1]]),
        ("spans", [[0, 1, 8]]), ("spans", 5),
    ],
)  # fmt: skip
def test_fields_that_cannot_be(tmp_path: Path, field: str, value: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps({field: value}))
    with pytest.raises(ImageError, match=f"'{field}' cannot be"):
        read_sidecar(str(tmp_path / "a.json"))


@pytest.mark.parametrize("text", ["", "[]", "5", "{", "\x00", "[" * 100_000])
def test_files_that_are_no_sidecar(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ImageError, match="rebuild it or remove it"):
        read_sidecar(str(tmp_path / "a.json"))


def test_without_one_there_are_defaults(tmp_path: Path) -> None:
    assert sidecar_beside(str(tmp_path / "a.bin")) == Sidecar()
    write_sidecar(str(tmp_path / "a.json"), Sidecar(mode="long"))
    assert sidecar_beside(str(tmp_path / "a.img")) == Sidecar()  # it belongs to NAME.bin
