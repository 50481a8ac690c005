"""A program that cannot be executed says why, on the container's standard error, and ends with 126 or 127."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from console import KVMPY
from container.oci import Bundle, Runtime

from kvmpy.container import Container, Wish

TRUE = Path("/bin/true").read_bytes()
LOADER = b"/lib64/ld-linux-x86-64.so.2"
NOWHERE = b"/nowhere/ld-linux-x86-64.so"
AARCH64 = b"\xb7\0"  # EM_AARCH64 of <elf.h>, at e_machine


def elf_with(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


# What a file holds, the code of the process, and what it is told.
FILES: dict[str, tuple[bytes, int, str]] = {
    "no loader": (
        TRUE.replace(LOADER, NOWHERE), 127,
        f"its loader {NOWHERE.decode()} is not in the container; add it and the libraries, or use a static program",
    ),
    "no interpreter": (b"#!/nowhere -x\n", 127, "its interpreter /nowhere is not in the container; add it"),
    "blanks before it": (b"#! \t/nowhere\n", 127, "its interpreter /nowhere is not in the container; add it"),
    "carriage return": (
        b"#!/bin/sh\r\necho x\r\n", 127,
        "its first line, #!/bin/sh, ends in a carriage return (CRLF); save it with Unix line ends",
    ),
    "control characters": (
        b"#!/no\x1b[31m\x07where\n", 127, "its interpreter /no?[31m?where is not in the container; add it",
    ),
    "loader of the interpreter": (
        b"#!/bin/lost\n", 127,
        f"its interpreter /bin/lost needs the loader {NOWHERE.decode()}, which is not in the container",
    ),
    "text": (b"echo x\n", 126, "it is neither an ELF file nor a script with #!"),
    "empty": (b"", 126, "it is empty"),
    "no name": (b"#!\n", 126, "it has a first line that names no interpreter"),
    "a long name": (
        b"#!/" + b"n" * 300 + b"\n", 126, "it has a first line that is longer than the kernel reads (255 bytes)",
    ),
    "text as its interpreter": (
        b"#!/bin/text\n", 126, "its interpreter /bin/text is neither an ELF file nor a script with #!",
    ),
    "another processor's interpreter": (
        b"#!/bin/arm\n", 126,
        "its interpreter /bin/arm is a program for another processor: ELF machine 183, aarch64",
    ),
    "an interpreter below a file": (
        b"#!/bin/text/sh\n", 126, "its interpreter /bin/text/sh is no file: a part of its path is no directory",
    ),
    "text as its loader": (
        TRUE.replace(LOADER, b"/bin/text".ljust(len(LOADER), b"\0")), 126,
        "its loader /bin/text is neither an ELF file nor a script with #!",
    ),
    "a loader with a blank": (
        TRUE.replace(LOADER, b"/no such/ld-linux-x86-64.so"), 127,
        "its loader /no such/ld-linux-x86-64.so is not in the container; add it and the libraries, or use a static "
        "program",
    ),
    "a loader with a carriage return": (
        TRUE.replace(LOADER, b"/nowhere/ld-linux-x86-64.s\r"), 127,
        "its loader /nowhere/ld-linux-x86-64.s? is not in the container; add it and the libraries, or use a static "
        "program",
    ),
    "big-endian": (
        elf_with(elf_with(TRUE, 5, b"\2"), 18, b"\0\x16"), 126,
        "it is a program for another processor: ELF machine 22",
    ),
    "another processor": (
        elf_with(TRUE, 18, AARCH64), 126, "it is a program for another processor: ELF machine 183, aarch64",
    ),
    "an old processor": (elf_with(TRUE, 18, b"\x04\0"), 126, "it is a program for another processor: ELF machine 4"),
    "cut off": (TRUE[:100], 126, "it is damaged, or no program"),
    "itself": (b"#!/bin/broken\n", 126, "too many interpreters, or symbolic links"),
    "an interpreter that is none": (
        b"#!/etc/passwd\n", 126,
        "permission denied: it, or its interpreter, is not executable, or lies on a noexec mount",
    ),
}  # fmt: skip


@pytest.fixture(params=FILES)
def broken(request: pytest.FixtureRequest, rootfs: Path) -> tuple[Path, int, str]:
    """A root directory with /bin/broken, the code it must end with, and the line it must write."""
    content, code, line = FILES[request.param]
    beside = {"lost": TRUE.replace(LOADER, NOWHERE), "text": b"text\n", "arm": elf_with(TRUE, 18, AARCH64)}
    for name, data in {"broken": content, **beside}.items():
        (rootfs / "bin" / name).write_bytes(data)
        (rootfs / "bin" / name).chmod(0o755)
    return rootfs, code, f"exec /bin/broken: {line}\n"


def test_run(broken: tuple[Path, int, str], bundle: Bundle, runtime: Runtime) -> None:
    _, code, line = broken
    bundle.process["args"] = ["broken"]
    done = runtime.run(bundle)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)


def test_exec(broken: tuple[Path, int, str], bundle: Bundle, runtime: Runtime) -> None:
    _, code, line = broken
    bundle.sh("exec sleep 1000")
    name = runtime.new_name()
    runtime.ok("create", "-b", bundle.save(), name)
    try:
        runtime.ok("start", name)
        done = runtime("exec", name, "broken")
        assert (done.returncode, done.stdout, done.stderr) == (code, "", line)
    finally:
        runtime.ok("delete", "--force", name)


@pytest.mark.parametrize("command", [("container", "run"), ("run", "--as", "container")])
def test_the_command_line(broken: tuple[Path, int, str], command: tuple[str, ...]) -> None:
    rootfs, code, line = broken
    done = subprocess.run([*KVMPY, *command, rootfs, "--", "broken"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.endswith(line)


def test_the_api(broken: tuple[Path, int, str]) -> None:
    rootfs, code, line = broken
    with Container.from_wish(Wish(str(rootfs), ["sleep", "1000"])) as box:
        box.start()
        done = box.exec(["broken"])
    assert (done.code, done.stdout, done.stderr) == (code, b"", line.encode())


def test_arguments_that_are_too_long(bundle: Bundle, runtime: Runtime) -> None:
    """One may have 32 pages: execve(2), MAX_ARG_STRLEN."""
    bundle.process["args"] = ["echo", "x" * 131_072]
    done = runtime.run(bundle)
    assert (done.returncode, done.stdout) == (126, "")
    assert done.stderr == "exec /bin/echo: its arguments and environment are too long\n"


def test_the_first_place_of_path_where_it_is_counts(bundle: Bundle, runtime: Runtime) -> None:
    """execvp(3) goes on behind a file that cannot be executed; what is told is why that one could not."""
    (bundle.rootfs / "one").mkdir()
    (bundle.rootfs / "one/thing").write_bytes(TRUE.replace(LOADER, NOWHERE))
    (bundle.rootfs / "one/thing").chmod(0o755)
    bundle.process |= {"args": ["thing"], "env": ["PATH=/none:/one:/bin:/other"]}
    done = runtime.run(bundle)
    assert (done.returncode, done.stderr[:17]) == (127, "exec /one/thing: ")


def test_what_is_no_directory_in_path_is_passed_over(bundle: Bundle, runtime: Runtime) -> None:
    (bundle.rootfs / "file").touch()
    bundle.process |= {"args": ["true"], "env": ["PATH=/file:/bin:/file"]}
    assert runtime.run(bundle).returncode == 0
    bundle.process |= {"args": ["nowhere"], "env": ["PATH=/bin:/file"]}
    assert 'exec: "nowhere": executable file not found in $PATH' in runtime.run(bundle).stderr


@pytest.mark.parametrize("make", ["mkfifo", "mkdir", "socket"])
def test_what_is_no_file_is_refused_before_it_is_created(
    bundle: Bundle, runtime: Runtime, make: str, tmp_path: Path
) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "mkfifo": lambda path: subprocess.run(["mkfifo", path], check=True),
        "mkdir": lambda path: path.mkdir(),
        "socket": lambda path: subprocess.run(
            ["python3", "-c", "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", path], check=True
        ),
    }
    path = bundle.rootfs / "bin/thing"
    makers[make](path)
    path.chmod(0o755)
    bundle.process["args"] = ["thing"]
    assert runtime.error("create", "-b", bundle.save(), "x") == 'exec: "thing": permission denied'
