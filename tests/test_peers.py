"""What this machine lacks is told as a sum with its remedy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import peers

ROOT = Path(__file__).parents[1]


def collected(*options: str, path: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "tests/compare/test_program.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PATH": path}, timeout=60
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_what_is_skipped_is_summed_up_with_the_remedy(tmp_path: Path) -> None:
    """That file has a test that calls strace(1), and one that calls readelf(1)."""
    shown = collected(path=str(tmp_path))
    assert re.search(r"^ +1: apt install strace$", shown, re.MULTILINE)
    assert re.search(r"^ +1: apt install binutils$", shown, re.MULTILINE)
    assert "SKIPPED" not in shown


def test_the_single_ones_are_told_with_v(tmp_path: Path) -> None:
    shown = collected("-v", path=str(tmp_path))
    assert re.search(r"^SKIPPED \[1\] .*: no strace \(apt install strace\)$", shown, re.MULTILINE)


def test_sums() -> None:
    reasons = [
        "no strace (apt install strace)", "needs root: control groups", "needs root: mounting",
        "no usable /dev/kvm", "open /dev/kvm: ENOENT, no such file or directory", "open /dev/kvm: EACCES",
        "this host does not have the feature 'int3': no", "one of a kind",
    ]  # fmt: skip
    assert peers.sums(reasons) == [
        "    3: a /dev/kvm that this user may open",
        "    2: run as root",
        "    1: apt install strace",
        "    1: nothing to do: not on this host ('kvmpy info')",
        "    1: one of a kind",
    ]


def test_what_is_missing_names_the_package(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", "/nowhere")
    assert peers.missing("nm", "as", "podman") == "no nm, as, podman (apt install binutils podman conmon)"
