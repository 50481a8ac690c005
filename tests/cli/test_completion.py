"""Completion in the shells themselves, loaded as the documents say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import printed
import pytest
from peers import require

LOADED = {
    "bash": "source <(kvmpy completion bash)",
    "zsh": "source <(kvmpy completion zsh)",
    "fish": "kvmpy completion fish | source",
}
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config"],
}


@pytest.mark.parametrize("shell", LOADED)
def test_a_shell_completes_what_it_was_given(shell: str, tmp_path: Path) -> None:
    """A command's beginning and a tab: what the shell runs then has the whole name, and prints its help."""
    require(shell)
    line = LOADED[shell]
    assert line in printed.of_help()
    assert line in printed.of_pages()
    if shell == "fish":
        assert complete_in_fish(line, tmp_path) == {"boot"}
        return
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb"}
    environment |= {"HOME": str(tmp_path), "PS1": "> ", "PROMPT": "> "}
    child = pexpect.spawn(START[shell][0], START[shell][1:], env=environment, timeout=30, encoding="utf-8")
    if shell == "zsh":
        child.sendline("PROMPT='> '; autoload -U compinit && compinit -u -D")
    child.sendline(f"{line} && echo load''ed")
    child.expect("loaded")
    child.send("kvmpy bo\t--help\r")
    child.expect("usage: kvmpy boot")
    child.close(force=True)


def complete_in_fish(line: str, home: Path) -> set[str]:
    """Return what fish offers for `kvmpy bo`; it can be asked."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home)}
    command = [*START["fish"], "-c", f"{line}; complete -C 'kvmpy bo'"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return {re.split(r"\t", offered)[0] for offered in done.stdout.splitlines()}
