"""What the site of the documents takes from the program itself: the help of every command (mkdocs.yml, hooks)."""

from __future__ import annotations

import os

PLACE = "<!-- the help of every command -->"
WIDTH = "80"  # what a page has room for


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the help of every command where a page asks for it (mkdocs' event of this name)."""
    return markdown.replace(PLACE, commands()) if PLACE in markdown else markdown


def commands() -> str:
    """Return a section for each command, with its help as the command prints it."""
    from kvmpy.cli import COMMANDS, command_module

    os.environ["COLUMNS"] = WIDTH
    sections = []
    for name, summary in COMMANDS.items():
        text = command_module(name).parser().format_help().strip()
        sections.append(f"## kvmpy {name}\n\n{summary.capitalize()}.\n\n```text\n{text}\n```\n")
    return "\n".join(sections)
