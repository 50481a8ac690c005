"""Debian's kernel on the software CPU: half a billion instructions of somebody else's, to a shell."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "boot_linux.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    pytest.importorskip("lz4.block", reason="lz4: pip install -e '.[dev]'")
    spec = importlib.util.spec_from_file_location("boot_linux", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.find_kernel() is None:
        pytest.skip("Debian's cloud kernel: .ci/fetch_linux")
    return module


@pytest.mark.calls("busybox")
@pytest.mark.parametrize("cpus", [1, 2])
def test_it_boots_to_a_prompt(tool: ModuleType, cpus: int) -> None:
    """The tool looks for the prompt, for as many processors, and for what a kernel prints that is in trouble."""
    assert tool.boot(tool.unpack(tool.find_kernel().read_bytes()), tool.initramfs(), cpus=cpus) > 0
