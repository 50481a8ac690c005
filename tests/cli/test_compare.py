"""`kvmpy compare` from the command line: what it prints and writes, what it says of what is missing, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from console import AS_NOBODY, kvmpy, one_line
from peers import HAS_KVM

from kvmpy.cli.compare import show, write_page
from kvmpy.compare.figures import Answer, Figure, Question, Report
from kvmpy.compare.report import GROUPS
from kvmpy.errors import HostError

needs_root = pytest.mark.root("limits, and runtimes of others")
OURS = ["process", "container", "vm", "software CPU"]
LONG = 150.0


# Everything is measured, but less often: nothing here depends on how exact the figures are.
BRIEF = """
import sys
from kvmpy.cli import compare, main
from kvmpy.compare import measures

class Brief(measures.Effort):
    def __init__(self, quick):
        self.cold, self.warm, self.rounds, self.holds, self.counts = 1, 2, 1, 1, (int(sys.argv[1]),)

measures.Effort.__init__ = Brief.__init__
"""
GO = 'sys.exit(main(["compare", *sys.argv[2:]]))'
FEW, MANY = "10", "100"  # memory is told of no fewer than a hundred


def compare(
    count: str, *arguments: str, prefix: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", BRIEF + GO, count, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG, **options)  # type: ignore[call-overload,no-any-return]


@needs_root
def test_everything_is_asked_and_answered(tmp_path: Path) -> None:
    done = compare(MANY, "--json", "--html", str(tmp_path / "report.html"))
    report = json.loads(done.stdout)
    assert done.returncode == (69 if report["missing"] else 0)
    assert list(report["subjects"])[:4] == OURS
    assert {question["group"] for question in report["questions"]} == set(GROUPS)
    page = (tmp_path / "report.html").read_text()
    for question in report["questions"]:
        assert question["method"]
        assert question["code"]
        assert question["title"] in page.replace("&#x27;", "'")
        for name, answer in question["answers"].items():
            if name in report["missing"]:
                assert answer["missing"]
                continue
            if question["title"].startswith("what the host misses") and answer["missing"]:
                assert answer["missing"].startswith("not measurable: the host moved by ")
                continue
            assert not answer["missing"], (question["title"], name, answer)
            if question["unit"]:
                figure = answer["figure"]
                assert figure["lower"] <= figure["median"] <= figure["upper"]
                # What memory came to it is a difference of two counts: a little is negative where something was freed.
                assert figure["lower"] >= (-16 if question["unit"] == "KiB" else 0)
            else:
                assert answer["words"]
    assert ("vm" in report["missing"]) == (not HAS_KVM)
    truths(report)


def truths(report: dict[str, object]) -> None:
    """What cannot be otherwise, however noisy the machine: orders of magnitude that the models themselves force."""
    found = {question["title"]: question["answers"] for question in report["questions"]}  # type: ignore[attr-defined]

    def median(title: str, name: str) -> float:
        return float(found[title][name]["figure"]["median"])

    assert median("memory of each of 100", "software CPU") > 500  # KiB: each has an engine of its own
    assert median("a system call", "process") < median("an exit: OUT to a device", "software CPU")
    assert median("speed of arithmetic / native", "software CPU") < 1
    assert found["which kernel it runs on"]["process"] == found["which kernel it runs on"]["container"]
    assert "kvmpy" in found["which kernel it runs on"]["software CPU"]["words"]


@pytest.mark.root("to become another user")
def test_without_root_without_kvm_and_without_others(tmp_path: Path) -> None:
    """An ordinary user on a machine that has nothing: one line for each thing that is missing, and all the rest."""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    environment = {"PATH": "/nonexistent", "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "COLUMNS": "120"}
    environment |= {"XDG_RUNTIME_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
    prefix = (which(AS_NOBODY[0]), *AS_NOBODY[1:])
    done = compare(FEW, prefix=prefix, env=environment)
    assert done.returncode == 69, done.stdout + done.stderr
    for name in ("vm", "kvmpy-oci", "crun", "runc", "QEMU (TCG)", "QEMU (KVM)"):
        assert [line for line in done.stdout.splitlines() if line.startswith(f"{name}: ")], done.stdout
    assert "Traceback" not in done.stderr
    assert "an ordinary user" in done.stdout
    started = next(line for line in done.stdout.splitlines() if "from a command to its" in line)
    assert started.count(" ms") + started.count(" µs") == 3  # process, container, software CPU


def test_the_table_is_readable_at_80_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = compare(FEW, env=os.environ | {"PATH": "/nonexistent"})
    lines = done.stdout.splitlines()
    table = lines[: next(n for n, line in enumerate(lines) if line.startswith(("vm: ", "crun: ")))]
    assert [line for line in table if len(line.rstrip()) > 80] == []
    assert any(line.split() == ["process", "container", "vm", "software", "CPU"] for line in lines)


def which(program: str) -> str:
    import shutil

    return shutil.which(program) or program


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_nothing_is_left(number: signal.Signals, code: int, tmp_path: Path) -> None:
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "PATH": "/nonexistent",
    }  # without the others it is there sooner
    command = [sys.executable, "-c", SHOUT, FEW]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if "many" in line.lower():
                break
        process.send_signal(number)
        assert process.wait(60) == code
        assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in Path("/sys/fs/cgroup").glob("*/kvmpy-*") if str(process.pid) in path.name]


# Tells on standard error what it is about to do, so that the signal comes in the middle of it.
SHOUT = (
    BRIEF
    + """
def aloud(work):
    return work(lambda what, done, of: print(what, file=sys.stderr, flush=True))

compare.with_progress = aloud
"""
    + GO
)


@pytest.mark.parametrize("path", ["/no/such/folder/report.html", "/"])
def test_a_page_that_cannot_be_written_is_refused_at_once(path: str) -> None:
    done = kvmpy("compare", "--quick", "--html", path)
    assert done.returncode == 71
    assert "--html" in one_line(done.stderr)


def test_a_page_that_cannot_be_written_in_the_end_is_told() -> None:
    empty = Report({}, {}, {}, {}, [])
    with pytest.raises(HostError, match="--html /dev/full: no space left"):
        write_page(empty, "/dev/full")


def test_the_table_fits_and_says_who_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(
        machine={"processor": "[bold]a chip[/bold]"},
        subjects={"process": "", "vm": "", "QEMU": ""},
        beside={"QEMU": "vm"},
        missing={"vm": "no /dev/kvm"},
        questions=[
            Question("start", "[red]time[/red]", "", "ms", answers={
                "process": Answer(figure=Figure.of([0.5])), "vm": Answer(missing="no /dev/kvm"),
                "QEMU": Answer(figure=Figure.of([300.0])),
            })
        ],
    )  # fmt: skip
    show(report)
    text = capsys.readouterr().out
    assert all(part in text for part in ("[bold]a chip[/bold]", "500 µs", "300 ms", "by QEMU", "vm: no /dev/kvm"))
    assert max(map(len, text.splitlines())) <= 120
