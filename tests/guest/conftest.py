"""The guests run on each accelerator that this machine has."""

from __future__ import annotations

import pytest
from peers import needs_kvm


@pytest.fixture(params=[pytest.param("kvm", marks=needs_kvm), "soft"])
def each_accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make it the choice of every `kvmpy` that the test starts."""
    monkeypatch.setenv("KVMPY_ACCEL", request.param)
    return str(request.param)
