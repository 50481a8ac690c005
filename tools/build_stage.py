"""Build what makes the container runtime quick: the native programs, static and without a C library, and one archive
of the modules that a verb imports (kvmpy/container/archive.py).

    python tools/build_stage.py

Done when the package is built; run it again after a change of the C sources. Without a new archive, modules that were
edited are imported from their files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# No C library, no stack protector, nothing that needs a loader or a thread pointer.
OPTIONS = (
    "-Os -Wall -Wextra -Werror -std=gnu11 -static -nostdlib -nostartfiles -ffreestanding -fno-stack-protector -fno-pie"
    " -no-pie -fcf-protection=none -fno-asynchronous-unwind-tables -fno-builtin -s -Wl,--build-id=none"
    " -Wl,-z,noseparate-code"
).split()
PROGRAMS = {
    "stage": ("stage.c", ["-Wl,--section-start=.tape=0x10000000"]),
    "kvmpy-oci": ("launcher.c", []),
}
ARCHIVER = str(ROOT / "tools" / "build_archive.py")
SYSTEM_PYTHON = "/usr/bin/python3"
NEEDED = "import sys, ctypes, fcntl, json, resource, select, subprocess, termios; sys.exit(sys.version_info < (3, 11))"


def build_all(root: Path, target: Path, editable: bool) -> None:
    """Compile the programs of a checkout into `target`, and archive its modules; if `editable`, these may change."""
    sources = root / "kvmpy" / "container" / "native"
    target.mkdir(parents=True, exist_ok=True)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[:1]
    python = find_python()
    arguments = [str(root), str(target), str(int(editable))]
    subprocess.run([python, "-I", "-S", "-B", "-X", "no_debug_ranges", ARCHIVER, *arguments], check=True)
    magic = int.from_bytes((target / "main").read_bytes()[:4], "little")
    chosen = [f'-DPYTHON="{python}"', f"-DMAGIC={magic:#x}"]
    for name, (source, options) in PROGRAMS.items():
        command = [*compiler, *OPTIONS, *options, *chosen, "-o", str(target / name), str(sources / source)]
        subprocess.run(command, check=True)


def find_python() -> str:
    """Return the interpreter that the launcher starts, by the path that names its version: the archive is for that.

    The system's is preferred: everyone may run it, it starts 2 ms sooner than one made of shared libraries, and it
    outlives a virtual environment. The runtime needs nothing but the standard library.
    """
    python = sys.executable
    try:
        if subprocess.run([SYSTEM_PYTHON, "-I", "-S", "-c", NEEDED], capture_output=True).returncode == 0:
            python = SYSTEM_PYTHON
    except OSError:
        pass
    return os.path.realpath(python)


if __name__ == "__main__":
    build_all(ROOT, ROOT / "kvmpy" / "container" / "native", True)
