"""The house's own rules (DESIGN): who prints, what words a library's errors use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kvmpy"
# The container runtime is a command line of its own (runc's), demos and comparisons are shown by one.
COMMAND_LINES = ("cli", "container", "demos", "compare")
LIBRARY = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in COMMAND_LINES and path.name != "__main__.py"
]
OPTION = re.compile(r"(^|[\s'(])--[a-z]")


def messages(tree: ast.Module) -> Iterator[str]:
    """Return the texts in a module that are no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
            yield node.value


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_s_messages_do_not_speak_of_options(path: Path) -> None:
    """Who calls it from Python has no command line."""
    assert [text for text in messages(ast.parse(path.read_text())) if OPTION.search(text)] == []


def test_the_rule_finds_what_it_is_about() -> None:
    tree = ast.parse('"""Say --this."""\nraise ValueError(f"{1} is too much; lower --that")')
    assert [text for text in messages(tree) if OPTION.search(text)] == [" is too much; lower --that"]
