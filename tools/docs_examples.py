"""Shows the examples of docstrings as code: what begins with `>>>` is one, up to the next empty line.

An extension of griffe, which reads the docstrings for the site (mkdocs.yml).
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)


def fenced(text: str) -> str:
    """Put examples into fences."""
    return EXAMPLE.sub(lambda found: f"```pycon\n{found.group().rstrip()}\n```\n", text)


class Examples(griffe.Extension):  # type: ignore[misc]
    """Rewrites every docstring that has an example."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Do it for one object, once it is read."""
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
