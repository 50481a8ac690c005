"""What the page on licences says of the libraries: which there are, and that they are loaded only where it says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from peers import needs_kvm

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "third-party.md").read_text()
GPL = ("unicorn", "keystone")
# Runs the command line in this process and tells which of the libraries it has in the end: as modules, and mapped.
LOADED = """
import sys
from kvmpy.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
maps = open("/proc/self/maps").read()
names = ("unicorn", "keystone", "capstone", "rich", "shtab")
print("\\nloaded:", *[name for name in names if name in sys.modules or f"lib{name}" in maps])
"""


def loaded(*arguments: str, stdin: str = "") -> set[str]:
    command = [sys.executable, "-c", LOADED, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_every_dependency_is_on_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT"
    for entry in project["dependencies"]:
        name = re.split(r"[<>=]", entry)[0].removesuffix("-engine")
        assert re.search(rf"^\| {name}\b", PAGE, re.MULTILINE | re.IGNORECASE), name


@needs_kvm
def test_a_boot_on_kvm_loads_neither_of_the_gpl_ones() -> None:
    assert loaded("boot", "hello.bin", "--accel", "kvm") == set()


def test_a_container_loads_none_of_them() -> None:
    assert loaded("container", "run", "--dry-run", "/", "--", "true") == set()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("boot", "hello.bin", "--accel", "soft"), {"unicorn"}),
        (("disasm", "hello.bin"), {"capstone"}),
        (("asm", "-"), {"keystone", "capstone"}),
        (("completion", "bash"), {"shtab"}),
    ],
)
def test_each_is_loaded_where_the_page_says(arguments: tuple[str, ...], wanted: set[str]) -> None:
    found = loaded(*arguments, stdin="nop")
    assert wanted <= found
    assert found & set(GPL) == wanted & set(GPL)
