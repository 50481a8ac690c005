"""kvmpy completion: shell completion, generated from the commands' own options."""

from __future__ import annotations

from kvmpy.cli.arguments import command_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EPILOG = """\
examples:
  source <(kvmpy completion bash)
  kvmpy completion zsh > ~/.zfunc/_kvmpy
  kvmpy completion fish > ~/.config/fish/completions/kvmpy.fish
"""

BASH = """\
_kvmpy() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    COMPREPLY=()
    case ${{COMP_WORDS[1]}} in
{cases}
        *) words="{commands} --help --version" ;;
    esac
    if [[ $COMP_CWORD -eq 1 ]]; then words="{commands} --help --version"; fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ $COMP_CWORD -gt 1 && $current != -* ]]; then COMPREPLY+=($(compgen -f -- "$current")); fi
}}
complete -o filenames -F _kvmpy kvmpy
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("completion", "Print the completion script for a shell.", EPILOG)
    p.add_argument("shell", choices=("bash", "zsh", "fish"))
    return p


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    from kvmpy.boot.image import bundled_guests
    from kvmpy.cli import COMMANDS, command_module

    parsers = {name: command_module(name).parser() for name in COMMANDS}
    words = {
        name: [*_option_words(p), *(bundled_guests() if name in ("boot", "disasm") else ())]
        for name, p in parsers.items()
    }
    print(SHELLS[options.shell](words, COMMANDS), end="")
    return 0


def _option_words(p: argparse.ArgumentParser) -> list[str]:
    words = []
    for action in p._actions:
        words += [option for option in action.option_strings if option.startswith("--")]
        if not action.option_strings and action.choices:
            words += list(action.choices)
    return words


def _bash(words: dict[str, list[str]], commands: dict[str, str]) -> str:
    cases = "\n".join(f'        {name}) words="{" ".join(items)}" ;;' for name, items in words.items())
    return BASH.format(cases=cases, commands=" ".join(commands))


def _zsh(words: dict[str, list[str]], commands: dict[str, str]) -> str:
    return "#compdef kvmpy\nautoload -U +X bashcompinit && bashcompinit\n" + _bash(words, commands)


def _fish(words: dict[str, list[str]], commands: dict[str, str]) -> str:
    lines = [
        f"complete -c kvmpy -n __fish_use_subcommand -f -a {name} -d '{summary.replace(chr(39), '')}'"
        for name, summary in commands.items()
    ]
    for name, items in words.items():
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for item in items:
            lines.append(f"complete -c kvmpy {seen} " + (f"-l {item[2:]}" if item.startswith("--") else f"-a {item}"))
    return "\n".join(lines) + "\n"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
