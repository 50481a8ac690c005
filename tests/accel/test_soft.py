"""The software CPU itself: its fixed list of features, its engine, and what a hostile guest cannot do to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy.accel.probe import PROBES
from kvmpy.accel.soft import SoftAccelerator
from kvmpy.accel.soft_features import MISSING


@pytest.fixture(scope="module")
def soft() -> Iterator[SoftAccelerator]:
    with SoftAccelerator() as accelerator:
        yield accelerator


@pytest.mark.parametrize("name", PROBES)
def test_a_feature_is_there_exactly_when_the_fixed_list_says_so(soft: SoftAccelerator, name: str) -> None:
    """A regression must not hide behind a skip."""
    from kvmpy.errors import UnsupportedError

    try:
        found = PROBES[name][1](soft)
    except UnsupportedError:
        found = False
    assert found == getattr(soft.features, name) == (name not in MISSING)
