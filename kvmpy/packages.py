"""Packages of others that only some of what kvmpy does needs: without one, the rest works."""

from __future__ import annotations

import importlib

from kvmpy.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# By what is imported, what pip(1) calls it and what needs it.
PACKAGES = {
    "keystone": ("keystone-engine", "the assembler"),
    "capstone": ("capstone", "the disassembler"),
    "rich": ("rich", "kvmpy compare"),
    "shtab": ("shtab", "kvmpy completion"),
}


def package(name: str) -> Any:
    """Import a package that `PACKAGES` lists; UnsupportedError, with the command that installs it, where it is not."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        project, user = PACKAGES[name]
        raise UnsupportedError(f"{user} needs {project}, which is not installed; 'pip install {project}'") from None
