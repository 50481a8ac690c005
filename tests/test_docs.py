"""The documents name what there is, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from console import KVMPY
from peers import require

import kvmpy
from kvmpy import cli, errors
from kvmpy.accel import exits
from kvmpy.accel.probe import PROBES
from kvmpy.boot.image import bundled_guests
from kvmpy.cli import COMMANDS
from kvmpy.cli.exit_codes import ExitCode
from kvmpy.machine.stop import StopKind

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    targets += re.findall(r"`((?:docs|tests|tools|guest)/[\w./-]+)`", page.read_text())
    for target in targets:
        if "://" not in target:
            base = page.parent if f"]({target}" in page.read_text() else ROOT
            assert (base / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_at_most_100_wide(page: Path) -> None:
    """But for tables, whose rows cannot be broken."""
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("| ")] == []


SITE = (ROOT / "mkdocs.yml").read_text()


def test_every_page_is_in_the_site_s_table_of_contents() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in SITE


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    assert sorted(re.findall(r"^::: kvmpy\.(\w+)$", pages, re.MULTILINE)) == sorted(kvmpy.__all__)


def example(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / name)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_example_of_a_device() -> None:
    """The lamps grow from the right, one by one; then the guest counts them."""
    rows = ["." * (7 - n) + "*" * (n + 1) for n in range(8)]
    assert example("lamps.py").splitlines() == [*rows, "exit, code 8"]


def test_the_example_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Put where the page says, it is a command."""
    path = ROOT / "docs" / "examples" / "size_command.py"
    spec = importlib.util.spec_from_file_location("kvmpy.cli.size", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "kvmpy.cli.size", module)
    monkeypatch.setitem(cli.COMMANDS, "size", "how large a guest image is")
    assert cli.main(["size", "hello.bin"]) == 0
    size = Path(bundled_guests()["hello.bin"]).stat().st_size
    assert capsys.readouterr().out == f"    0x7c00 {size:8} bytes\n"
    assert cli.main(["size", "no-such.bin"]) == 66


@pytest.fixture
def qemu_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The commands of the page on QEMU, with its own translator: KVM is not for it on every host."""
    require("qemu-system-x86_64")
    text = (ROOT / "docs" / "qemu.md").read_text().replace(" \\\n", " ")
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    (tmp_path / "kvmpy").symlink_to(ROOT / "kvmpy")
    monkeypatch.chdir(tmp_path)
    return [command.replace("qemu-system-x86_64", "qemu-system-x86_64 -accel tcg") for command in commands]


def test_qemu_boots_the_kernel_as_the_page_says(qemu_commands: list[str]) -> None:
    child = pexpect.spawn(qemu_commands[0], timeout=60)
    child.expect_exact("[real]")
    child.expect_exact("\n> ")
    child.sendline("halt 3")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 7


def test_qemu_boots_the_kernel_as_the_readme_says(qemu_commands: list[str]) -> None:
    command = re.search(r"^    (qemu-system.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command
    child = pexpect.spawn(command[1].replace("x86_64", "x86_64 -accel tcg"), timeout=60)
    child.expect_exact("[real]")
    child.expect_exact("\n> ")
    child.close(force=True)


def test_qemu_boots_the_smallest_guest_from_a_disk(qemu_commands: list[str]) -> None:
    copy, sign, boot, cut, ours = qemu_commands[1:]
    subprocess.run(["bash", "-euc", f"{copy}\n{sign}"], check=True)
    child = pexpect.spawn(boot, timeout=60)
    child.expect_exact("Hello from real mode")
    child.send("\x01x")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    subprocess.run(["bash", "-euc", cut], check=True)
    done = subprocess.run([*KVMPY, *ours.split()[1:], "--accel", "soft"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"Hello from real mode\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_commands_has_each_one_s_help(name: str) -> None:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    assert spec
    assert spec.loader
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    page = site.on_page_markdown((ROOT / "docs" / "command-line.md").read_text())
    assert f"## kvmpy {name}\n" in page
    assert f"usage: kvmpy {name}" in page


def constants(of: type) -> dict[str, object]:
    return {name: value for name, value in vars(of).items() if name.isupper()}


def test_every_exit_is_explained() -> None:
    kinds = exits.Exit.__args__
    assert len(kinds) == 18
    assert all(f"\n| `{kind.__name__}` |" in REFERENCE for kind in kinds)


def test_every_stop_reason_is_explained() -> None:
    assert all(f"\n| `{kind}` |" in REFERENCE for kind in constants(StopKind).values())


def test_every_exit_code_is_explained() -> None:
    codes = set(constants(ExitCode).values())
    listed = REFERENCE.partition("## Exit codes")[2].partition("##")[0]
    assert all(re.search(rf"^\| (\d+, )?{code}\b", listed, re.MULTILINE) for code in codes)


def test_every_error_is_explained_and_public() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.KvmpyError]
    for kind in kinds:
        assert f"\n| `{kind.__name__}` |" in REFERENCE
        assert getattr(kvmpy, kind.__name__) is kind


def test_every_feature_is_explained() -> None:
    for name, (meaning, _) in PROBES.items():
        assert f"\n| `{name}` | {meaning} |" in REFERENCE


def test_the_list_of_operations_is_that_of_the_dry_run(tmp_path: Path) -> None:
    """By number and first words; root's, for an ordinary user has no control groups."""
    page = (ROOT / "docs" / "containers.md").read_text()
    listed = re.findall(r"^ {5,6}(\d+) (\S+ \S+)", page, re.MULTILINE)
    assert len(listed) > 20
    done = subprocess.run(
        [*KVMPY, "container", "run", "--dry-run", tmp_path, "--", "sh"], capture_output=True, text=True
    )
    shown = dict(re.findall(r"^ *(\d+) (\S+ \S+)", done.stdout.replace(str(tmp_path), "/home/me/root"), re.MULTILINE))
    if os.geteuid() == 0:
        assert [(number, words) for number, words in listed if shown[number] != words] == []
    assert {words for _, words in listed} >= {"let nobody", "execute sh"}


def test_pages_show_the_examples_as_they_are() -> None:
    """They can be read as files, too, so the code stands in them; it is the file that another test runs."""
    shown = []
    for page in (ROOT / "docs").glob("**/*.md"):
        for path, code in re.findall(
            r'^```python title="(.*?)"\n(.*?)```$', page.read_text(), re.MULTILINE | re.DOTALL
        ):
            assert code == (ROOT / path).read_text(), page
            shown.append(path)
        assert not re.search(r"8\s*<\s*-", page.read_text()), page  # a marker that something else would replace
    assert sorted(shown) == ["docs/examples/lamps.py", "docs/examples/size_command.py"]
