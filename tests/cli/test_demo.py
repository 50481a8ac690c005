"""`kvmpy demo`: the list, the telling, the exit codes, and an end by signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pexpect
import pytest
from console import KVMPY, kvmpy

from kvmpy import demos
from kvmpy.cli import demo
from kvmpy.demos import DEMOS
from kvmpy.demos.scene import Scene


def test_the_list_names_every_demo() -> None:
    done = kvmpy("demo")
    assert done.returncode == 0
    listed = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in listed[: len(DEMOS)]] == list(DEMOS)


def test_every_demo_has_a_file_and_nothing_else_is_there() -> None:
    folder = Path(demos.__file__).parent
    helpers = {"__init__", "scene", "host", "sixty_lines"}
    assert {name.replace("-", "_") for name in DEMOS} == {path.stem for path in folder.glob("*.py")} - helpers
    for name in DEMOS:
        assert demos.load(name).CHECK


def test_a_demo_is_told_in_numbered_steps_and_ends_with_what_to_try() -> None:
    done = kvmpy("demo", "device", "--accel", "soft")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert [int(n) for n in re.findall(r"^(\d+)\. ", text, re.MULTILINE)] == [1, 2, 3]
    assert text.index("Check for yourself:") < text.index("kvmpy boot lessons/device.bin")
    assert "\x1b" not in text


def test_what_there_is_to_try_works() -> None:
    """The commands of a demo's end that are kvmpy's own, without those that wait for a person."""
    for name in DEMOS:
        for line in demos.load(name).CHECK:
            command = line.split("   ")[0].split()
            if command[0] == "kvmpy" and command[1] in ("disasm", "boot"):
                done = kvmpy(*command[1:], *(("--timeout", "5", "--accel", "soft") if command[1] == "boot" else ()))
                assert done.returncode in (0, 70, 124), (command, done.stderr)
            elif "/" in command[0]:
                assert (Path(demos.__file__).parents[2] / command[0]).exists(), command


def test_on_a_terminal_it_has_colours_and_no_line_of_prose_is_too_long() -> None:
    child = pexpect.spawn(KVMPY[0], [*KVMPY[1:], "demo", "trap", "--accel", "soft"], dimensions=(24, 60), timeout=30)
    text = child.read().decode().replace("\r\n", "\n")
    child.close()
    assert child.exitstatus == 0
    assert "\x1b[32m  ✓ " in text
    prose = re.sub(r"\x1b\[[\d;]*m", "", text.partition("Check for yourself")[0])
    assert all(len(line) <= 60 for line in prose.splitlines()[1:] if not line.startswith("    exit:"))


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return a function that shows a demo made of a function, and gives the exit code."""

    class Made:
        CHECK = ("true",)

    def showing(run) -> int:  # type: ignore[no-untyped-def]
        Made.run = staticmethod(run)
        monkeypatch.setattr(demo, "load", lambda _name: Made)
        return demo.show("trap", "soft", demo.Storyteller())

    return showing


def test_all_of_them_have_rules_between_and_a_summary_behind() -> None:
    done = kvmpy("demo", "all", "--accel", "soft")
    text = done.stdout.decode()
    assert done.returncode in (0, 69)  # an ordinary user has no limits
    assert text.count("\n" + "─" * 80 + "\n") == len(DEMOS)
    summary = text.rpartition("─" * 80)[2].split("\n")
    assert summary[2] == f"{len(DEMOS)} demos"
    assert [line.split()[0] for line in summary[3:-1]] == list(DEMOS)
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_what_runs_the_guests_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    teller = demo.Storyteller()
    for _ in range(3):
        teller.say(demo.NOTICE, "the software CPU, because …")
    assert capsys.readouterr().out.count("because") == 1


def test_a_pause_waits_for_enter_before_each_step() -> None:
    child = pexpect.spawn(KVMPY[0], [*KVMPY[1:], "demo", "device", "--accel", "soft", "--pause"], timeout=30)
    for number in (2, 3):
        child.expect_exact("[Enter]")
        assert f"\n{number}. ".encode() not in child.before
        child.sendline("")
        child.expect(rf"{number}\. ")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_as_json_it_is_an_object_with_all_that_was_told() -> None:
    done = kvmpy("demo", "device", "--accel", "soft", "--json")
    story = json.loads(done.stdout)
    assert (story["demo"], story["exit_code"], done.returncode) == ("device", 0, 0)
    assert len(story["steps"]) == 3
    assert sum(len(step["holds"]) for step in story["steps"]) >= 3
    assert all(not step["fails"] for step in story["steps"])
    assert story["check"] == list(demos.load("device").CHECK)


def test_where_there_is_only_ascii_nothing_fails() -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in (["demo", "trap", "--accel", "soft"], ["demo", "device", "--accel", "soft"], ["info"], ["--help"]):
        done = kvmpy(*command, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
    assert b"  + The processor refuses" in kvmpy("demo", "trap", "--accel", "soft", env=environment).stdout


def test_a_claim_that_does_not_hold_is_told_and_fails(show, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert show(lambda scene: scene.claim("Water flows upwards.", False)) == 1
    assert "✗ NOT SO HERE: Water flows upwards." in capsys.readouterr().out


def test_what_is_missing_is_told_and_has_a_code_of_its_own(show, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert show(lambda scene: scene.missing("a left-handed screwdriver; buy one")) == 69
    assert "missing: a left-handed screwdriver" in capsys.readouterr().out


def test_a_demo_that_fails_closes_what_it_held(show) -> None:  # type: ignore[no-untyped-def]
    left: list[Path] = []

    def run(scene: Scene) -> None:
        left.append(scene.folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        show(run)
    assert not left[0].exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it(number: signal.Signals, code: int) -> None:
    with subprocess.Popen([*KVMPY, "demo", "all", "--accel", "soft"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(20) == code
    assert "Traceback" not in rest


@pytest.mark.parametrize("arguments", [["nonsense"], ["trap", "modes"], ["--accel", "none"]])
def test_wrong_usage(arguments: list[str]) -> None:
    done = kvmpy("demo", *arguments)
    assert done.returncode == 2
    assert b"usage: kvmpy demo" in done.stderr
