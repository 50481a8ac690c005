"""The commands that kvmpy prints: README, documents, help, what demos say to try, and what messages advise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kvmpy.cli import COMMANDS, command_module, help_text
from kvmpy.demos import DEMOS, load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# An indented line of a page is a command when it begins with one of these.
COMMAND = re.compile(
    rf"kvmpy ({'|'.join(COMMANDS)}|-)|(python3?|pip|printf|echo|cp|mkdir|truncate|head|qemu-system-x86_64|podman|sudo|"
    r"source|eval|runc|mkdocs|ls|cat|apt|git|sh|bash) "
)
QUOTED = re.compile(r"['`]((?:kvmpy|sudo|pip|python|head|objcopy|gunzip|unxz|unzstd)(?: [^'`]+)?)['`]")


def _lines(text: str) -> Iterator[str]:
    """Give the commands of indented blocks, without a prompt, and without what is said beside them."""
    for line in text.replace("\\\n", "").splitlines():
        indented = re.match(r"(?:  |    )(?:\$ )?(\S.*)", line)
        if indented and COMMAND.match(indented[1]):
            yield _alone(indented[1])


def _alone(line: str) -> str:
    """Return a command without what is said beside it, after two blanks; more of them go on a line that was broken."""
    return re.split(r"  +(?=[^- ])", line)[0]


def of_pages() -> list[str]:
    """Return every command of the README and the documents."""
    return [line for page in PAGES for line in _lines(page.read_text())]


def of_help() -> list[str]:
    """Return every example of every command's help."""
    texts = [help_text(), *(command_module(name).parser().epilog or "" for name in COMMANDS)]
    return [line for text in texts for part in re.split(r"(?m)^examples:$", text)[1:] for line in _lines(part)]


def of_demos() -> list[str]:
    """Return everything that demos tell to check for oneself."""
    return [_alone(command) for name in DEMOS for command in load(name).CHECK]


def of_messages() -> set[str]:
    """Return the commands that stand between quotation marks in what the package says."""
    return {found for path in (ROOT / "kvmpy").rglob("*.py") for found in QUOTED.findall(path.read_text())}
