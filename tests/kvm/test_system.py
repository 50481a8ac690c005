"""Who may not open the device is told what would help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import AS_NOBODY, DEADLINE

OPEN = "import sys\nfrom kvmpy.kvm.system import Kvm\nKvm(sys.argv[1])"


@pytest.mark.root("another's file")
@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (0o600, "its mode lets nobody in but its owner; as root: 'chgrp kvm {path} && chmod g+rw {path}'"),
        (0o640, "its mode lets nobody in but its owner"),
        (0o660, "add yourself to the group that owns it, usually 'kvm', and log in again"),
    ],
)
def test_the_remedy_is_one_for_this_mode(tmp_path: Path, mode: int, told: str) -> None:
    device = tmp_path / "kvm"
    device.touch()
    os.chmod(device, mode)
    command = [*AS_NOBODY, sys.executable, "-c", OPEN, str(device)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert told.format(path=device) in done.stderr
