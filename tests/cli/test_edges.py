"""The command line where things end: streams that are full or closed, sizes, bytes that are no text, other files."""

from __future__ import annotations

import gzip
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import termios
import time
from pathlib import Path

import pexpect
import pytest
from console import AS_NOBODY, DEADLINE, KVMPY, kvmpy, one_line
from peers import require

ROOT = Path(__file__).parents[2]
GUEST = str(ROOT / "guest" / "hello.asm")
PRINTING = {
    "--help": ["--help"],
    "--version": ["--version"],
    "boot --help": ["boot", "--help"],
    "info": ["info", "--accel", "soft"],
    "disasm": ["disasm", "hello.bin"],
    "completion": ["completion", "bash"],
    "asm": ["asm", GUEST],
    "asm -o -": ["asm", GUEST, "-o", "-"],
    "demo": ["demo"],
    "boot": ["boot", "hello.bin", "--accel", "soft"],
    "boot --json": ["boot", "hello.bin", "--json", "--accel", "soft"],
    "run --json": ["run", "--as", "process", "--json", "true"],
}


@pytest.mark.parametrize("what", PRINTING)
def test_standard_output_that_is_full(what: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*KVMPY, *PRINTING[what]], stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert done.returncode == 74
    assert "output" in one_line(done.stderr)


@pytest.mark.parametrize("what", PRINTING)
def test_standard_output_that_is_closed(what: str) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *KVMPY, *PRINTING[what]]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert done.returncode == 74
    assert "output" in one_line(done.stderr)


CODES = {
    "boot no-such.bin": 66,
    "boot no-such.bin --debug": 66,
    "boot hello.bin --debug": 0,
    "boot hello.bin --mode long": 70,
    "boot hello.bin --cpus none": 2,
    "boot guest.bin --max-exits 3": 75,
    "nonsense": 2,
    "run --as process nothing": 127,
    "run --as process sh -- -c 'echo x >&2; exit 9'": 9,
    "container run no-such": 125,
    "asm no-such.asm": 66,
    "demo no-such": 2,
}


@pytest.mark.parametrize("command", CODES)
def test_standard_error_that_is_full_or_closed_changes_no_code(command: str) -> None:
    """The interpreter makes 120 of what it cannot write out when it ends."""
    arguments = shlex.split(command)
    wanted = CODES[command]
    assert kvmpy(*arguments).returncode == wanted
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*KVMPY, *arguments], stdout=subprocess.PIPE, stderr=full, timeout=DEADLINE)
    assert done.returncode == wanted
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *KVMPY, *arguments], capture_output=True, timeout=DEADLINE
    )
    assert closed.returncode == wanted


def test_debug_shows_where_an_error_came_from_and_changes_no_code() -> None:
    done = kvmpy("boot", "no-such.bin", "--debug")
    *trace, last = done.stderr.decode().splitlines()
    assert done.returncode == 66
    assert trace[0] == "Traceback (most recent call last):"
    assert last == kvmpy("boot", "no-such.bin").stderr.decode().strip()


@pytest.mark.parametrize("size", ["30G", "1T"])
def test_more_memory_than_the_host_has_is_only_taken_when_it_is_touched(size: str) -> None:
    done = kvmpy("boot", "hello.bin", "--accel", "soft", "--memory", size)
    assert done.returncode in (0, 71)
    assert done.returncode == 0 or "ask for less memory" in one_line(done.stderr)


@pytest.mark.parametrize("size", ["1" + "0" * 100, "5000T", "0", "-1", "1P", "x", ""])
def test_sizes_that_are_none(size: str) -> None:
    done = kvmpy("boot", "hello.bin", f"--memory={size}")
    assert done.returncode == 2
    assert b"is no size" in done.stderr
    assert len(done.stderr) < 1000


def test_a_command_line_for_the_guest_that_is_no_text(tmp_path: Path) -> None:
    """The bytes arrive as they are: a guest prints what RSI points to."""
    source = "next: lodsb\ntest al, al\njz done\nout 0xe9, al\njmp next\ndone: hlt"
    (tmp_path / "a.asm").write_text(source)
    assert kvmpy("asm", str(tmp_path / "a.asm"), "-o", str(tmp_path / "a.img")).returncode == 0
    command = [os.fsencode(word) for word in (*KVMPY, "boot", str(tmp_path / "a.img"), "--accel", "soft", "--append")]
    done = subprocess.run([*command, b"a\xff\xfe"], capture_output=True, timeout=DEADLINE)
    assert (done.stdout, done.returncode) == (b"a\xff\xfe", 0)


def test_few_descriptors(tmp_path: Path) -> None:
    command = ["sh", "-c", 'ulimit -n 5; exec "$@"', "sh", *KVMPY, "boot", "hello.bin", "--accel", "soft"]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE)
    assert done.returncode == 71
    assert "ulimit -n" in one_line(done.stderr)


@pytest.mark.root("to become another user, whose processes can be counted")
@pytest.mark.parametrize(
    "command",
    [
        "boot hello.bin --accel soft", "boot hello.bin --accel soft --json", "boot guest.bin --cpus 2 --accel soft",
        "run --as vm hello.bin", "run --as process true", "demo two-guests", "info", "compare --quick",
    ],
)  # fmt: skip
def test_a_user_who_may_have_no_more_threads(command: str) -> None:
    done = subprocess.run(
        [*AS_NOBODY, "prlimit", "--nproc=1", *KVMPY, *command.split()], capture_output=True, timeout=DEADLINE
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 71, 125)
    assert done.returncode == 0 or "ulimit -u" in done.stderr.decode().splitlines()[-1]


# At the first sight of the module the signal comes, as from Ctrl-C.
INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

wanted = sys.argv.pop(1)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
runpy.run_module("kvmpy", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module", ["kvmpy.cli", "kvmpy.errors", "argparse", "kvmpy.cli.boot", "kvmpy.machine.machine", "kvmpy.cpu.state"]
)
def test_ctrl_c_while_importing(module: str) -> None:
    done = subprocess.run(
        [KVMPY[0], "-c", INTERRUPTED_IMPORT, module, "boot", "hello.bin", "--accel", "soft"],
        capture_output=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


FILES = {
    "an ELF file": lambda: Path(shutil.which("true") or "/bin/true").read_bytes(),
    "compressed by gzip": lambda: gzip.compress(b"kernel"),
    "a Linux kernel": lambda: bytes(0x202) + b"HdrS" + bytes(1000),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_no_flat_image_say_what_they_are(what: str, tmp_path: Path) -> None:
    (tmp_path / "guest.img").write_bytes(FILES[what]()[:4096])
    done = kvmpy("boot", str(tmp_path / "guest.img"), "--accel", "soft")
    assert done.returncode == 66
    assert what in one_line(done.stderr)
    insisting = kvmpy("boot", str(tmp_path / "guest.img"), "--accel", "soft", "--mode", "real", "--timeout", "0.1")
    assert (insisting.returncode, insisting.stderr) == (66, done.stderr)  # its head is no code, whoever says so


@pytest.mark.parametrize(("bits", "mode"), [(32, "protected"), (64, "long")])
def test_the_remedy_for_an_elf_file_works(bits: int, mode: str, tmp_path: Path) -> None:
    """GNU as and ld make it, objcopy does what the message says; the guest's code is its last byte and the entry."""
    require("gcc", "objcopy")
    source = tmp_path / "kernel.s"
    source.write_text(".byte 0xcc\n.globl _start\n_start:\nmov $7, %al\noutb %al, $0xf4\nhlt\n")
    elf = tmp_path / "kernel.elf"
    command = ["gcc", f"-m{bits}", "-nostdlib", "-static", "-Wl,-Ttext=0x200000,--build-id=none", "-o", elf, source]
    subprocess.run(command, check=True)
    told = one_line(kvmpy("boot", str(elf)).stderr)
    load, entry = re.findall(rf"{mode} mode, loaded at (0x\w+), entered at (0x\w+)$", told.strip())[0]
    assert entry == "0x200001"
    subprocess.run(["objcopy", "-O", "binary", elf, tmp_path / "kernel.bin"], check=True)
    options = ["--mode", mode, "--load", load, "--entry", entry, "--accel", "soft"]
    assert kvmpy("boot", str(tmp_path / "kernel.bin"), *options).returncode == 7


@pytest.mark.parametrize("options", ["", "-c", "-static -no-pie -Wl,-Ttext=0x1000"])
def test_the_remedy_for_an_elf_file_without_a_place_works(options: str, tmp_path: Path) -> None:
    """What gcc makes by default can lie anywhere, an object file lies nowhere, and at 0x1000 the boot tables are."""
    require("gcc", "objcopy")
    (tmp_path / "k.c").write_text('void _start(void) { __asm__("mov $7, %al; outb %al, $0xf4; hlt"); }')
    gcc = ["gcc", "-ffreestanding", "-o", "k"]
    subprocess.run([*gcc, "-nostdlib", *options.split(), "k.c"], cwd=tmp_path, check=True)
    told = one_line(kvmpy("boot", str(tmp_path / "k")).stderr)
    linked = re.findall(r"gcc's options '(-.*)' do", told)[0]
    subprocess.run([*gcc, *linked.split(), "-Wl,--build-id=none", "k.c"], cwd=tmp_path, check=True)
    told = one_line(kvmpy("boot", str(tmp_path / "k")).stderr)
    load, entry = re.findall(r"long mode, loaded at (0x\w+), entered at (0x\w+)$", told.strip())[0]
    subprocess.run(["objcopy", "-O", "binary", "k", "k.bin"], cwd=tmp_path, check=True)
    command = ["boot", str(tmp_path / "k.bin"), "--mode", "long", "--load", load, "--entry", entry, "--accel", "soft"]
    assert kvmpy(*command).returncode == 7


def test_a_source_is_no_image(tmp_path: Path) -> None:
    source = tmp_path / "my.asm"
    source.write_text("    mov al, 5\n    out 0xf4, al\n")
    told = one_line(kvmpy("boot", str(source)).stderr)
    remedy = re.findall(r"'kvmpy (asm .*)'", told)[0]
    assert kvmpy(*remedy.split()).returncode == 0
    assert kvmpy("boot", str(tmp_path / "my.bin"), "--accel", "soft").returncode == 5


@pytest.mark.parametrize(
    ("size", "told"), [("100001", "is no whole number of pages; write 102400"), ("65T", "is no size; write 64M, 1G")]
)
def test_a_machines_memory_is_whole_pages(size: str, told: str) -> None:
    done = kvmpy("boot", "hello.bin", "--memory", size)
    assert done.returncode == 2
    assert told in done.stderr.decode()


def test_the_largest_memory_that_is_named_is_not_refused_as_no_size() -> None:
    largest = re.findall(r"up to (\w+)", kvmpy("boot", "hello.bin", "--memory", "x").stderr.decode())[0]
    assert b"no size" not in kvmpy("boot", "hello.bin", "--memory", largest, "--accel", "soft").stderr


def test_the_remedy_for_a_disks_image_works(tmp_path: Path) -> None:
    """Its first sector is what a PC boots; here it writes 5 to the debug-exit port."""
    (tmp_path / "FILE").write_bytes(bytes.fromhex("b005e6f4f4").ljust(510, b"\0") + b"\x55\xaa" + bytes(1474048))
    told = one_line(kvmpy("boot", str(tmp_path / "FILE")).stderr)
    remedy = re.findall(r"'(head .*)'", told)[0]
    subprocess.run(["sh", "-c", remedy], cwd=tmp_path, check=True)
    assert kvmpy("boot", str(tmp_path / "sector.bin"), "--accel", "soft").returncode == 5


@pytest.mark.parametrize(
    ("size", "options", "remedy"),
    [
        (0x90000, ["--load", "0x20000"], "load it lower"),
        (0xA0000, [], "real mode reaches no further; load the rest from the guest, or begin in another mode"),
        (0x200000, ["--mode", "long", "--memory", "2M"], "give it more memory"),
    ],
)
def test_an_image_that_does_not_fit_is_told_what_helps(
    size: int, options: list[str], remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "a.img").write_bytes(b"\xf4" * size)
    done = kvmpy("boot", str(tmp_path / "a.img"), *options)
    assert one_line(done.stderr).endswith(f"; {remedy}\n")
    assert done.returncode == 66


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM, signal.SIGTERM])
def test_no_signal_leaves_the_terminal_raw(number: signal.Signals) -> None:
    child = pexpect.spawn(KVMPY[0], [*KVMPY[1:], "boot", "echo.bin", "--accel", "soft"], timeout=DEADLINE)
    before = termios.tcgetattr(child.child_fd)
    end = time.monotonic() + DEADLINE
    while termios.tcgetattr(child.child_fd) == before and time.monotonic() < end:
        select.select([], [], [], 0.01)
    assert termios.tcgetattr(child.child_fd) != before
    os.kill(child.pid, number)
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd) == before
    child.close()
    assert child.exitstatus == 128 + number


@pytest.mark.parametrize("command", ["info", "boot hello.bin", "container run /", "compare --quick", "demo trap"])
def test_a_checkout_that_was_not_built_says_how(command: str, tmp_path: Path) -> None:
    """The sources alone, as git has them."""
    shutil.copytree(ROOT / "kvmpy", tmp_path / "kvmpy", ignore=shutil.ignore_patterns("*.so", "guests", "__pycache__"))
    for built in ("stage", "kvmpy-oci", "modules"):
        (tmp_path / "kvmpy/container/native" / built).unlink(missing_ok=True)
    start = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)]\n"
        "from kvmpy.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [KVMPY[0], "-c", start, *command.split()], capture_output=True, timeout=DEADLINE, cwd=tmp_path
    )
    told = (done.stdout + done.stderr).decode()
    assert done.returncode in (66, 69, 71, 125)
    assert "pip install -e ." in told
    assert "Traceback" not in told


# The signal comes when kvmpy has said that it wants it, and the machine does not run yet.
EARLY = """
import os, signal, sys
from kvmpy.cli import main
from kvmpy.machine.machine import Machine

begin = Machine._begin_run

def early(machine):
    os.kill(os.getpid(), signal.SIGTERM)
    begin(machine)

Machine._begin_run = early
sys.exit(main(["boot", "echo.bin", "--accel", "soft"]))
"""


def test_a_signal_just_before_the_guest_runs_is_not_lost() -> None:
    with subprocess.Popen([KVMPY[0], "-c", EARLY], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(DEADLINE) == 143


def test_what_ended_the_output_is_told() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*KVMPY, "boot", "hello.bin"], stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (74, b"kvmpy: output-closed: standard output: no space left on device\n")


@pytest.mark.parametrize("command", ["info --nosuch", "container run /nowhere -- true", "nosuch"])
def test_without_standard_error_nothing_goes_to_standard_output(command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {command} 2>&-', "sh", *KVMPY], stdout=subprocess.PIPE, timeout=DEADLINE
    )
    assert done.returncode in (2, 125)
    assert done.stdout == b""


def test_help_of_a_command_s_command() -> None:
    done = subprocess.run([*KVMPY, "help", "container", "run"], capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout.startswith("usage: kvmpy container run ")


@pytest.mark.parametrize(
    ("command", "usage"), [("container run root", "container run"), ("run --as container root", "run")]
)
def test_a_forgotten_separator_is_named(command: str, usage: str) -> None:
    """Users of podman and docker write none: their options end at the first word that is none."""
    done = kvmpy(*command.split(), "sh", "-c", "exit 3")
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"usage: kvmpy {usage} ")
    assert b"unrecognized arguments: -c exit 3; write -- before the program: -- sh -c exit 3\n" in done.stderr
