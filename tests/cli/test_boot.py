"""`kvmpy boot`: options, exit codes, bad input, signals, and what a crash shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from console import DEADLINE, kvmpy, one_line
from peers import HAS_KVM, needs_kvm

IRQCHIP = ("--irqchip", "none")  # a VM without chips is gone sooner


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (7, 7), (255, 255)])
def test_the_guest_s_code_is_the_exit_code(image, code: int, expected: int) -> None:  # type: ignore[no-untyped-def]
    done = kvmpy("boot", image(f"mov al, {code}\nout 0xf4, al"), *IRQCHIP)
    assert (done.returncode, done.stderr) == (expected, b"")


def test_timeout(image) -> None:  # type: ignore[no-untyped-def]
    done = kvmpy("boot", image("again: jmp again"), *IRQCHIP, "--timeout", "0.2")
    assert done.returncode == 124
    assert "--timeout" in one_line(done.stderr)


def test_max_exits(image) -> None:  # type: ignore[no-untyped-def]
    done = kvmpy("boot", image("again: in al, 0x99\njmp again"), *IRQCHIP, "--max-exits", "50")
    assert done.returncode == 75
    assert "50 exits" in one_line(done.stderr)


def test_strict(image) -> None:  # type: ignore[no-untyped-def]
    path = image("mov dx, 0x1234\nout dx, al\nhlt")
    assert kvmpy("boot", path, *IRQCHIP).returncode == 0
    done = kvmpy("boot", path, *IRQCHIP, "--strict")
    assert done.returncode == 70
    assert b"write of 1 bytes at port 0x1234" in done.stderr


def test_debug_tells_the_reason_and_the_misses(image) -> None:  # type: ignore[no-untyped-def]
    done = kvmpy("boot", image("in al, 0x99\nhlt"), *IRQCHIP, "--debug")
    assert b"halt" in done.stderr
    assert b"no device at port 0x99: 1 x read of 1 bytes" in done.stderr


@pytest.mark.parametrize(
    ("bits", "mode", "source", "expected"),
    [
        (16, "real", "mov eax, cr0\nand al, 1\nout 0xf4, al", 0),
        (32, "protected", "mov eax, cr0\nand al, 1\nout 0xf4, al", 1),
        (64, "long", "mov rax, cr0\nshr rax, 31\nout 0xf4, al", 1),
    ],
)
def test_mode(image, bits: int, mode: str, source: str, expected: int) -> None:  # type: ignore[no-untyped-def]
    done = kvmpy("boot", image(source, bits=bits), *IRQCHIP, "--mode", mode)
    assert done.returncode == expected


def test_load_and_entry(image) -> None:  # type: ignore[no-untyped-def]
    path = image("hlt\nhlt\nhlt\nhlt\ncall here\nhere: pop ax\nshr ax, 8\nout 0xf4, al", origin=0x9000)
    assert kvmpy("boot", path, *IRQCHIP, "--load", "0x9000", "--entry", "0x9004").returncode == 0x90


def test_append_reaches_the_guest(image) -> None:  # type: ignore[no-untyped-def]
    path = image("again: lodsb\ntest al, al\njz done\nout 0xe9, al\njmp again\ndone: hlt")
    assert kvmpy("boot", path, *IRQCHIP, "--append", "hello guest").stdout == b"hello guest"


@pytest.mark.parametrize("cpus", ["1", "2"])
def test_cpus_and_memory(image, cpus: str) -> None:  # type: ignore[no-untyped-def]
    path = image("mov al, 0x34\nout 0x70, al\nin al, 0x71\nout 0xf4, al")
    done = kvmpy("boot", path, "--memory", "24M", "--cpus", cpus)
    assert done.returncode == (24 - 16) * 16  # CMOS 0x34: 64 KiB units above 16 MiB, low byte


def test_json(image) -> None:  # type: ignore[no-untyped-def]
    done = kvmpy(
        "boot", image("mov al, 'k'\nout 0xe9, al\nmov ebx, 0x1234\nmov al, 9\nout 0xf4, al"), *IRQCHIP, "--json"
    )
    report = json.loads(done.stdout)
    assert done.returncode == report["exit_code"] == report["code"] == 9
    assert (report["stop"], report["output"], report["accelerator"]) == ("exit", "k", "kvm" if HAS_KVM else "soft")
    assert report["registers"][0]["rbx"] == "0x1234"
    assert report["entries"][0] >= 1


# Crashes


def test_a_triple_fault_prints_the_evidence(image) -> None:  # type: ignore[no-untyped-def]
    source = "mov rbx, 0x323456700\nstart: mov rcx, [rbx + 0x89]\nhlt"
    done = kvmpy("boot", image(source, bits=64, origin=0x100000), *IRQCHIP, "--mode", "long")
    report = done.stderr.decode()
    assert done.returncode == 70
    assert "triple-fault" in report
    assert "mov rcx, qword ptr [rbx + 0x89]" in report
    assert "rbx 0000000323456700" in report
    assert "0x323456789, 4-level paging" in report  # the walk of CR2
    assert "the PDPT entry is not present" in report
    assert "#PF: beyond the table's limit" in report
    assert "shutdown" in report
    assert "Traceback" not in report


def test_symbols_of_the_sidecar_are_shown(tmp_path: Path) -> None:
    source = tmp_path / "crash.asm"
    source.write_text("nop\nbroken: ud2\n")
    done = kvmpy(
        "asm", str(source), "--bits", "64", "--origin", "0x100000", "-o", str(tmp_path / "crash.bin"), "--sidecar"
    )
    assert done.returncode == 0
    report = kvmpy("boot", str(tmp_path / "crash.bin"), *IRQCHIP).stderr.decode()
    assert "0x100001 <broken>" in report


def test_an_instruction_the_host_cannot_run_is_shown_or_runs(image) -> None:  # type: ignore[no-untyped-def]
    done = kvmpy("boot", image("fninit\nhlt"), *IRQCHIP)
    if done.returncode == 70:
        assert b"internal-error" in done.stderr
        assert b"fninit" in done.stderr
    else:
        assert done.returncode == 0


# Bad files


def test_missing_file() -> None:
    done = kvmpy("boot", "no-such-file.bin")
    assert done.returncode == 66
    assert "hello.bin" in one_line(done.stderr)


@pytest.mark.parametrize("kind", ["empty", "directory", "device", "unreadable"])
def test_files_that_are_no_images(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.bin"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    target = {"device": "/dev/zero", "unreadable": "/proc/self/mem"}.get(kind, str(path))
    done = kvmpy("boot", target)
    assert done.returncode == 66
    assert target.rsplit("/", 1)[-1] in one_line(done.stderr)


def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.img"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    done = kvmpy("boot", str(path))
    assert done.returncode == 66
    assert "memory; give it more" in one_line(done.stderr)


def test_a_truncated_image(tmp_path: Path) -> None:
    guests = Path(__file__).resolve().parents[2] / "kvmpy" / "guests"
    (tmp_path / "guest.bin").write_bytes((guests / "guest.bin").read_bytes()[:-100])
    shutil.copy(guests / "guest.json", tmp_path)
    done = kvmpy("boot", str(tmp_path / "guest.bin"))
    assert done.returncode == 66
    assert "damaged" in one_line(done.stderr)


@pytest.mark.parametrize("entry", ["0x7bff", "0x7c27", "0xffffffffffffffff"])
def test_an_entry_outside_the_image(entry: str) -> None:
    done = kvmpy("boot", "hello.bin", "--entry", entry)
    assert done.returncode == 66
    assert "outside the image" in one_line(done.stderr)


@pytest.mark.parametrize("load", ["0x1", "0x7c01", "0x9f000"])
def test_odd_addresses_work(image, load: str) -> None:  # type: ignore[no-untyped-def]
    assert kvmpy("boot", image("mov al, 3\nout 0xf4, al"), *IRQCHIP, "--load", load).returncode == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--memory", "12345"], ["--memory", "0"], ["--memory", "64X"], ["--memory", "8192T"], ["--cpus", "0"],
        ["--cpus", "x"], ["--cpus", "1000"], ["--cpus", "2", "--irqchip", "none"], ["--timeout", "-1"],
        ["--timeout", "nan"], ["--max-exits", "0"], ["--mode", "virtual"], ["--load", "-1"], ["--entry", "0xzz"],
        ["--what"], ["--load", "0xffffffffffffffffff"],
    ],
)  # fmt: skip
def test_bad_options_are_one_clear_failure(arguments: list[str]) -> None:
    done = kvmpy("boot", "hello.bin", *arguments)
    assert done.returncode in (2, 66)
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(b"kvmpy")


def test_no_arguments_shows_the_usage() -> None:
    done = kvmpy()
    assert done.returncode == 2
    assert b"usage" in done.stdout


def test_unknown_command() -> None:
    done = kvmpy("bot")
    assert done.returncode == 2
    assert "boot" in one_line(done.stderr)


# /dev/kvm, in a mount namespace of its own


def in_namespace(script: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = ["unshare", "--mount", "sh", "-euc", f"mount --make-rprivate /; {script}"]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload,no-any-return]


needs_root = pytest.mark.root("mounting")
KVM_DEVICE = os.stat("/dev/kvm").st_rdev if os.path.exists("/dev/kvm") else 0
BOOT_HELLO = f"{sys.executable} -m kvmpy boot hello.bin"


NO_KVM = {
    "no device": ("mount -t tmpfs none /dev", "/dev/kvm"),
    "something else": ("mount --bind /dev/null /dev/kvm", "KVM_GET_API_VERSION"),
    "no permission": (
        # It belongs to somebody else, and root may not look over permissions.
        "mount -t tmpfs none /dev; "
        f"mknod -m 600 /dev/kvm c {os.major(KVM_DEVICE)} {os.minor(KVM_DEVICE)}; chown 65534 /dev/kvm",
        "permission denied",
    ),
}
POWERLESS = "setpriv --bounding-set=-dac_override,-dac_read_search"


@needs_kvm
@needs_root
@pytest.mark.parametrize("case", NO_KVM)
def test_without_kvm_the_software_cpu_runs_the_guest_and_says_why(case: str) -> None:
    script, reason = NO_KVM[case]
    done = in_namespace(f"{script}; exec {POWERLESS} {BOOT_HELLO}")
    assert (done.returncode, done.stdout) == (0, b"Hello from real mode\n")
    told = one_line(done.stderr)
    assert "the software CPU runs the guest" in told
    assert reason in told.lower() + told


@needs_kvm
@needs_root
@pytest.mark.parametrize("case", NO_KVM)
@pytest.mark.parametrize(("option", "variable"), [("--accel kvm", ""), ("", "kvm")])
def test_without_kvm_asking_for_it_is_an_error(case: str, option: str, variable: str) -> None:
    script, reason = NO_KVM[case]
    environment = {**os.environ, "KVMPY_ACCEL": variable}
    done = in_namespace(f"{script}; exec {POWERLESS} {BOOT_HELLO} {option}", env=environment)
    assert done.returncode == 69
    told = one_line(done.stderr)
    assert reason in told.lower() + told


def test_the_software_cpu_can_be_asked_for() -> None:
    for environment, arguments in (({"KVMPY_ACCEL": "soft"}, ()), ({}, ("--accel", "soft"))):
        done = kvmpy("boot", "hello.bin", "--json", *arguments, env={**os.environ, **environment})
        report = json.loads(done.stdout)
        assert (report["accelerator"], report["stop"]) == ("soft", "halt")
        assert report["output"] == "Hello from real mode\n"
        assert done.stderr == b""


@pytest.mark.parametrize(("arguments", "variable"), [(("--accel", "tcg"), ""), ((), "tcg")])
def test_an_accelerator_that_there_is_not(arguments: tuple[str, ...], variable: str) -> None:
    done = kvmpy("boot", "hello.bin", *arguments, env={**os.environ, "KVMPY_ACCEL": variable})
    assert done.returncode == 2
    assert b"soft" in done.stderr
    assert b"Traceback" not in done.stderr


# Unicorn missing, or another one


def with_unicorn(tmp_path: Path, library: bytes | None) -> dict[str, str]:
    """Return an environment in which `unicorn` is a package with this library, or none."""
    package = tmp_path / "unicorn"
    (package / "lib").mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    if library is not None:
        (package / "lib" / "libunicorn.so.2").write_bytes(library)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("library", [None, b"", b"no library at all"])
def test_a_unicorn_that_cannot_be_loaded(tmp_path: Path, library: bytes | None) -> None:
    environment = with_unicorn(tmp_path, library)
    done = kvmpy("boot", "hello.bin", "--accel", "soft", env=environment)
    assert done.returncode == 69
    assert "unicorn==2.1.4" in one_line(done.stderr)
    if HAS_KVM:
        assert kvmpy("boot", "hello.bin", "--accel", "kvm", env=environment).returncode == 0


def test_a_unicorn_of_another_build(tmp_path: Path) -> None:
    """What of the engine's inside is ours was looked at in one build: the same version, built otherwise, is another."""
    spec = find_spec("unicorn")
    assert spec
    real = (Path(str(spec.origin)).parent / "lib" / "libunicorn.so.2").read_bytes()
    (tmp_path / "other.c").write_text("unsigned uc_version(void) { return 0; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "other.c"], check=True)
    at = real.index(b"GNU\0") + 4  # its build ID
    for library in ((tmp_path / "other.so").read_bytes(), real[:at] + b"another" + real[at + 7 :]):
        done = kvmpy("boot", "hello.bin", "--accel", "soft", env=with_unicorn(tmp_path, library))
        assert done.returncode == 69
        assert "needs unicorn 2.1.4" in one_line(done.stderr)
        assert "another build is installed; remove it with 'pip uninstall unicorn'" in one_line(done.stderr)
