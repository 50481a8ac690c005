"""Every command that kvmpy prints does what is said of it: it is run, or parsed where somebody else runs it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import printed
import pytest
from container.conftest import make_rootfs

from kvmpy.cli import command_module

DEADLINE = 60
ROOT = printed.ROOT
ORDINARY = os.geteuid() != 0
# Commands by how they begin that are run elsewhere, and where.
ELSEWHERE = {
    "python3 -m venv": ".ci/newcomer",
    "python -m pytest": ".ci/newcomer",
    "pip install -e '.[dev]'": ".ci/run",
    "podman ": "tests/container/test_podman.py",
    "qemu-system-x86_64 ": "tests/test_docs.py",
    "source <(kvmpy completion": "tests/cli/test_completion.py",
    "kvmpy completion fish | source": "tests/cli/test_completion.py",
    "kvmpy compare": "tests/cli/test_compare.py",
    "kvmpy demo ": "tests/demos",
    "man 2 ": "the manual, which a bare machine does not have",
}
SHOWS_ITS_CODE = r"printf 'mem\nhalt 3\n' | kvmpy boot guest.bin; echo $?"
FILL_MEMORY = "kvmpy container run --memory 16M root -- sh -c 'x=0123456789; while :; do x=$x$x; done'; echo $?"
# What ends otherwise than with 0, and why.
CODES = {
    "kvmpy run --as process sh -- -c 'exit 3'": 3,
    "kvmpy boot lessons/trap.bin --debug": 70,  # its RDMSR of a register that is none is #GP without a handler
    "kvmpy boot lessons/device.bin --strict": 70,  # nobody plugged the device in
    SHOWS_ITS_CODE: 3,  # the monitor's `halt 3`
    FILL_MEMORY: 137,  # SIGKILL: the group's limit is reached
}
LIMITS = re.compile(r"container run .*--(memory|cpus|pids) |--share")
CODE_WITHOUT_ROOT = 125
PRINTED = sorted({*printed.of_pages(), *printed.of_help(), *printed.of_demos()})
RUN_HERE = [line for line in PRINTED if not line.startswith(tuple(ELSEWHERE)) and " " in line]
FILES = [line for line in PRINTED if " " not in line and "/" in line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with all that the commands name."""
    for name in ("root", "rootfs", "ROOTFS"):
        (tmp_path / name).mkdir()
        make_rootfs(tmp_path / name)
    (tmp_path / "LAYER/upper").mkdir(parents=True)
    (tmp_path / "my.bin").write_bytes(b"\x90" * 0x7F + b"\xf4")  # nop, and hlt at last: right in every mode
    (tmp_path / "my.asm").write_text("hlt\n")
    (tmp_path / "disk.img").write_bytes(b"\xf4" + bytes(509) + b"\x55\xaa" + bytes(1 << 20))
    (tmp_path / "sector.bin").write_bytes((tmp_path / "disk.img").read_bytes()[:512])
    (tmp_path / "kvmpy").symlink_to(ROOT / "kvmpy")
    shutil.copy(ROOT / "guest/hello.asm", tmp_path)
    return tmp_path


def script_of(command: str) -> str:
    """Return the command as a script; a placeholder of a lesson is what its lesson calls it."""
    return command.replace('"$(command -v busybox)"', "ROOTFS/bin/sh")


@pytest.mark.parametrize("command", RUN_HERE)
@pytest.mark.usefixtures("unchanged_host")
def test_a_printed_command_runs(command: str, folder: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    wanted = CODE_WITHOUT_ROOT if ORDINARY and LIMITS.search(command) else CODES.get(command, 0)
    if " -it " in command:
        child = pexpect.spawn("bash", ["-euc", script_of(command)], cwd=folder, env=environment, timeout=DEADLINE)
        child.expect(r"[#$] ")
        child.sendline("exit")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == wanted
        return
    done = subprocess.run(
        ["bash", "-uc", script_of(command)], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=DEADLINE,
    )  # fmt: skip
    code = int(done.stdout.split()[-1]) if command.endswith("; echo $?") else done.returncode
    assert code == wanted, done.stderr.decode()
    assert b"Traceback" not in done.stderr or "--debug" in command


@pytest.mark.parametrize("beginning", ELSEWHERE)
def test_what_is_run_elsewhere_is_still_printed(beginning: str) -> None:
    assert [line for line in PRINTED if line.startswith(beginning)]


@pytest.mark.parametrize("file", FILES)
def test_a_file_to_look_at_is_there(file: str) -> None:
    assert (ROOT / file).is_file()


def kvmpy_words(command: str) -> list[str]:
    """Return the words of a command's first call of kvmpy."""
    words = shlex.split(re.sub(r'sudo "\$\(command -v kvmpy\)"', "kvmpy", command))
    words = words[words.index("kvmpy") + 1 :]
    ends = [words.index(word) for word in ("|", "&&", "<", ">", ";") if word in words]
    return words[: min(ends, default=len(words))]


@pytest.mark.parametrize("command", [line for line in PRINTED if "kvmpy compare" in line or "kvmpy demo " in line])
def test_a_command_that_takes_long_is_one(command: str) -> None:
    name, *arguments = kvmpy_words(command)
    command_module(name).parser().parse_args(arguments)


# Placeholders in messages, and what stands for them.
PLACEHOLDERS = {"COMMAND": "boot", "NAME": "trap", "TEXT": "x"}
ADVISED = sorted(line for line in printed.of_messages() if line.startswith(("kvmpy ", "sudo ")))


@pytest.mark.parametrize("command", ADVISED)
def test_a_command_that_a_message_advises_is_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = [PLACEHOLDERS.get(word, word) for word in kvmpy_words(command)]
    if name == "help":
        name, arguments = arguments[0], ["--help"]
    parser = command_module(name).parser()
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            parser.parse_args(arguments)
    elif arguments[:1] == ["--append"]:
        parser.parse_args(["file", *arguments])
    elif arguments:
        parser.parse_args(arguments)


@pytest.mark.root("sudo(8) for somebody who may")
@pytest.mark.calls("sudo")
def test_sudo_finds_a_kvmpy_of_a_virtual_environment(tmp_path: Path) -> None:
    """sudo has a PATH of its own (sudoers(5), secure_path): a name alone would not be found."""
    advised = next(line for line in ADVISED if line.startswith("sudo "))
    script = advised.replace("demo limits", "--version")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout.startswith("kvmpy ")


def blocks_of_python() -> list[str]:
    """Return the README's programs: indented blocks that import kvmpy."""
    blocks = re.split(r"\n(?=\S)", (ROOT / "README.md").read_text())
    return ["\n".join(line[4:] for line in block.splitlines() if line.startswith("    ")) for block in blocks]


PROGRAMS = [block for block in blocks_of_python() if re.match(r"\s*(import|from) ", block)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: re.findall("kvmpy.[A-Z]\\w+|Wish", program)[-1])
def test_a_program_of_the_readme_runs(program: str, folder: Path) -> None:
    """What it prints stands behind some of them."""
    program, _, shown = program.partition("\nIoOut")
    if ORDINARY and "stats()" in program:
        pytest.skip("needs root: control groups")
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"IoOut{shown.rstrip()}\n" if shown else done.stdout


def test_the_readme_has_its_programs() -> None:
    assert len(PROGRAMS) == 3


def test_what_the_readme_shows_of_the_kernel_is_what_it_prints() -> None:
    """Line by line, in this order; what is left out is marked."""
    block = (ROOT / "README.md").read_text().partition("    $ kvmpy boot guest.bin\n")[2].partition("\n\n")[0]
    shown = [line.strip() for line in block.splitlines() if line.strip() not in ("…", ">")]
    assert len(shown) > 8
    command = [sys.executable, "-m", "kvmpy", "boot", "guest.bin", "--accel", "soft"]
    done = subprocess.run(command, input="halt\n", capture_output=True, text=True, timeout=DEADLINE)
    printed = iter(line.strip() for line in done.stdout.splitlines())
    assert [line for line in shown if line not in printed] == []
