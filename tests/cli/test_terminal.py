"""A terminal: raw while the guest runs, restored whatever happens, Ctrl-A for commands to kvmpy itself."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Iterator

import pexpect
import pytest
from console import DEADLINE, KVMPY


@pytest.fixture
def child() -> Iterator[pexpect.spawn]:
    """guest.bin at its prompt, on a pseudo-terminal."""
    spawned = pexpect.spawn(KVMPY[0], [*KVMPY[1:], "boot", "guest.bin", "--timeout", "25"], timeout=DEADLINE)
    spawned.before_raw = termios.tcgetattr(spawned.child_fd)
    spawned.expect_exact("\n> ")
    yield spawned
    spawned.close(force=True)


def settings(child: pexpect.spawn) -> list[object]:
    return list(termios.tcgetattr(child.child_fd))


def ends(child: pexpect.spawn, status: int) -> None:
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == status


def test_keys_go_to_the_guest_at_once_and_unechoed(child: pexpect.spawn) -> None:
    flags = settings(child)[3]
    assert isinstance(flags, int)
    assert not flags & (termios.ECHO | termios.ICANON | termios.ISIG)
    child.send("tick")
    child.expect_exact("tick")  # echoed once, by the guest
    child.send("s\r")
    child.expect(r"s\r\n\d+ ticks\r\n> ")


def test_ctrl_a_x_quits(child: pexpect.spawn) -> None:
    child.send("\x01x")
    ends(child, 0)


def test_ctrl_a_h_helps(child: pexpect.spawn) -> None:
    child.send("\x01h")
    child.expect_exact("Ctrl-A x  quit kvmpy")
    child.send("halt 4\r")
    ends(child, 4)


def test_ctrl_c_belongs_to_the_guest(child: pexpect.spawn) -> None:
    child.send("nonsense\x03")
    child.expect_exact("^C")
    child.send("halt 5\r")
    ends(child, 5)


def run_and_compare(arguments: list[str], act, status: int) -> None:  # type: ignore[no-untyped-def]
    """Run in a shell that prints the terminal's settings before and after."""
    shell = pexpect.spawn(
        "sh", ["-c", f"stty -g; {' '.join([*KVMPY, *arguments])}; echo status=$?; stty -g"], timeout=DEADLINE
    )
    before = shell.readline().strip()
    act(shell)
    shell.expect(r"status=(\d+)\r\n")
    assert int(shell.match[1]) == status
    after = shell.readline().strip()
    shell.close(force=True)
    assert before == after
    assert before.count(b":") > 10


def test_the_terminal_is_restored_after_a_clean_end() -> None:
    run_and_compare(["boot", "guest.bin"], lambda shell: (shell.expect_exact("\n> "), shell.send("halt 6\r")), 6)


def test_the_terminal_is_restored_after_ctrl_a_x() -> None:
    run_and_compare(["boot", "guest.bin"], lambda shell: (shell.expect_exact("\n> "), shell.send("\x01x")), 0)


def test_the_terminal_is_restored_after_a_timeout() -> None:
    run_and_compare(["boot", "guest.bin", "--timeout", "0.4"], lambda _shell: None, 124)


def test_the_terminal_is_restored_after_sigterm() -> None:
    def terminate(shell: pexpect.spawn) -> None:
        shell.expect_exact("\n> ")
        os.kill(child_of(shell.pid), signal.SIGTERM)

    run_and_compare(["boot", "guest.bin"], terminate, 143)


def child_of(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return int(children.read().split()[0])


def test_the_terminal_is_restored_after_a_crash(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "crash.img"
    path.write_bytes(b"\x0f\x0b")  # ud2, with an empty IDT
    run_and_compare(["boot", str(path), "--mode", "protected"], lambda _shell: None, 70)
