"""Without a package that only some of it needs kvmpy says so in one line, and the rest works (docs/third-party.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.packages import PACKAGES

WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None  # what import finds of a package that is not installed
from kvmpy.cli import main
sys.exit(main())
"""
NEEDS = {
    "keystone": "asm {source}",
    "capstone": "disasm hello.bin",
    "rich": "compare --quick",
    "shtab": "completion bash",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_what_needs_a_package_names_it(name: str, tmp_path: Path) -> None:
    source = tmp_path / "my.asm"
    source.write_text("hlt\n")
    command = NEEDS[name].format(source=source).split()
    done = subprocess.run([sys.executable, "-c", WITHOUT, name, *command], capture_output=True, text=True, timeout=60)
    project, user = PACKAGES[name]
    assert done.stderr == f"kvmpy: {user} needs {project}, which is not installed; 'pip install {project}'\n"
    assert done.returncode == 69


@pytest.mark.parametrize("name", [*PACKAGES, "unicorn"])
def test_a_boot_needs_none(name: str) -> None:
    command = [sys.executable, "-c", WITHOUT, name, "boot", "hello.bin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if name == "unicorn" and done.returncode == 69:
        pytest.skip("without KVM it is the software CPU that boots")
    assert (done.returncode, done.stderr) == (0, "")
