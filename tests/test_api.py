"""The public API: what `import kvmpy` promises, to a program and to a type checker."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from peers import HAS_KVM, NO_KVM

import kvmpy

PACKAGE = Path(kvmpy.__file__).parent
TREE = ast.parse((PACKAGE / "__init__.py").read_text())

# A user's program. It is checked, not run.
PROGRAM = """
import kvmpy
from kvmpy import CpuState, Device, GuestMemory, Machine, Register, RegisterDevice, Stop, StopKind, exits

class Counter(RegisterDevice):
    REGISTERS = (Register(0, "count", size=4),)

    def read_count(self) -> int:
        return 5

def look(vcpu: kvmpy.Vcpu, exit: exits.IoOut) -> Stop | None:
    return Stop(StopKind.EXIT, "seen", code=exit.value) if exit.port == 0x42 else None

def main() -> int:
    printed = bytearray()
    with kvmpy.open_accelerator() as accelerator, Machine(accelerator, output=printed.extend) as machine:
        plan = kvmpy.plan_image("hello.bin", memory=machine.memory.size)
        machine.load(plan)
        machine.handlers[exits.IoOut] = look
        stop: Stop = machine.run(timeout=5)
        state: CpuState = machine.vcpus[0].state
        memory: GuestMemory = machine.memory
        if stop.kind is StopKind.TRIPLE_FAULT:
            print("\\n".join(kvmpy.post_mortem(stop, machine)))
        return state.regs.rip + len(memory.read(0, 16))
"""
WRONG = {
    'kvmpy.Stop("halt")': "StopKind",
    "kvmpy.Stop(kvmpy.StopKind.HALT, colour=1)": "colour",
    'kvmpy.Registers(rax="five")': "rax",
    "kvmpy.Machina": "Machina",
    'kvmpy.GuestMemory(1 << 20).read("0", 1)': "read",
}


def checked(tmp_path: Path, program: str) -> str:
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    return done.stdout


def test_a_user_s_program_passes_a_strict_type_checker(tmp_path: Path) -> None:
    assert checked(tmp_path, PROGRAM) == ""


def test_a_type_checker_finds_what_is_wrong(tmp_path: Path) -> None:
    """So the names are not just anything."""
    lines = checked(tmp_path, "\n".join(["import kvmpy", *WRONG])).splitlines()
    for number, complaint in enumerate(WRONG.values(), start=2):
        assert any(line.startswith(f"program.py:{number}: error") and complaint in line for line in lines), complaint


def imported_for_checkers() -> dict[str, str]:
    """The names that a type checker sees, and where from."""
    block = next(node for node in TREE.body if isinstance(node, ast.If))
    return {
        name.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.name == name.asname
    }


def test_a_type_checker_sees_what_a_program_gets() -> None:
    homes = {name: home for home, names in kvmpy._HOMES.items() for name in names}
    assert imported_for_checkers() == homes
    assert sorted(kvmpy.__all__) == sorted(homes)


@pytest.mark.parametrize("name", kvmpy.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(kvmpy, name)
    assert name in dir(kvmpy)
    if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
        assert inspect.getdoc(value)


def test_importing_it_imports_nothing_yet() -> None:
    program = "import sys, kvmpy; print(*sorted(name for name in sys.modules if name.startswith('kvmpy')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["kvmpy"]


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'kvmpy' has no attribute 'Machina'"):
        kvmpy.Machina  # noqa: B018


def test_the_folder_that_holds_the_checkout_is_a_good_place_to_start_from(tmp_path: Path) -> None:
    """The clone, named kvmpy, has no __init__.py: Python must not take it for an empty namespace."""
    root = PACKAGE.parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("kvmpy is installed, not a checkout")
    program = "import kvmpy; print(kvmpy.Stop.__module__, kvmpy.__file__)"
    (tmp_path / "kvmpy").symlink_to(root)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"kvmpy.machine.stop {PACKAGE / '__init__.py'}\n", done.stderr


def with_examples() -> list[str]:
    return [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
        if ">>> " in path.read_text()
    ]


@pytest.mark.parametrize("module", with_examples())
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    if module.startswith("kvmpy.kvm.") and not HAS_KVM:
        pytest.skip(NO_KVM)
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed
