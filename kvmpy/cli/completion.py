"""kvmpy completion: shell completion, generated from the commands' own options."""

from __future__ import annotations

import argparse
import shlex

from kvmpy.cli.arguments import command_parser
from kvmpy.packages import package

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

EPILOG = """\
examples:
  source <(kvmpy completion bash)    in bash
  source <(kvmpy completion zsh)     in zsh, after compinit
  kvmpy completion fish | source     in fish
"""

# What the value of an option or argument is, by how the help calls it.
IS_FILE, IS_DIRECTORY = ("FILE", "WHAT"), ("ROOTFS", "DIR", "DIR:/DIR[:ro]")
TAKE_IMAGES = ("boot", "disasm")  # a bundled guest or a file
# shtab's zsh script registers itself only when it comes by eval, and not by source.
FOR_ANY_CALLER = "[[ $zsh_eval_context[-1] == eval ]]", "[[ $zsh_eval_context[-1] != loadautofunc ]]"
IMAGES_IN_BASH = """\
_kvmpy_images() {{
    compgen -W {names} -- "$1"
    compgen -f -- "$1"
}}
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("completion", "Print the completion script for a shell.", EPILOG)
    p.add_argument("shell", choices=("bash", "zsh", "fish"))
    return p


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    from kvmpy.boot.image import bundled_guests

    shtab = package("shtab")
    names = " ".join(bundled_guests())
    preamble = {"bash": IMAGES_IN_BASH.format(names=shlex.quote(names))}
    script = shtab.complete(whole_parser(names), shell=options.shell, preamble=preamble)
    print(script.replace(*FOR_ANY_CALLER), end="")
    return 0


def whole_parser(images: str) -> argparse.ArgumentParser:
    """Return all commands in one parser; `images` are the names of the bundled guests."""
    import shtab

    from kvmpy.cli import COMMANDS, command_module

    image = {
        "bash": "_kvmpy_images",
        "zsh": f"_alternative 'guests:guest:({images})' 'files:file:_files'",
        "fish": f"(__fish_complete_path (commandline -ct)) {images}",
    }
    whole = argparse.ArgumentParser(prog="kvmpy")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers()
    for name, summary in COMMANDS.items():
        command = command_module(name).parser()
        for action in _with_values(command):
            if action.metavar in IS_FILE:
                action.complete = image if name in TAKE_IMAGES else shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in IS_DIRECTORY:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        commands.add_parser(name, parents=[command], add_help=False, help=summary)
    return whole


def _with_values(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _with_values(each)
        else:
            yield action
