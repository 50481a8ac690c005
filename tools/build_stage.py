"""Compile the container runtime's native programs (kvmpy/container/native): static, without a C library.

    python tools/build_stage.py

Done when the package is built; run it again after a change of the C sources.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "kvmpy" / "container" / "native"

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
SYSTEM_PYTHON = "/usr/bin/python3"
NEEDED = "import sys, ctypes, fcntl, json, resource, select, subprocess, termios; sys.exit(sys.version_info < (3, 11))"


def build_all(sources: Path, target: Path) -> None:
    """Compile each program of `sources` into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[:1]
    python = f'-DPYTHON="{find_python()}"'
    for name, (source, options) in PROGRAMS.items():
        subprocess.run(
            [*compiler, *OPTIONS, *options, python, "-o", str(target / name), str(sources / source)], check=True
        )


def find_python() -> str:
    """Return the interpreter that the launcher starts.

    The system's is preferred: everyone may run it, it starts 2 ms sooner than one made of shared libraries, and it
    outlives a virtual environment. The runtime needs nothing but the standard library.
    """
    try:
        if subprocess.run([SYSTEM_PYTHON, "-I", "-S", "-c", NEEDED], capture_output=True).returncode == 0:
            return SYSTEM_PYTHON
    except OSError:
        pass
    return sys.executable


if __name__ == "__main__":
    build_all(NATIVE, NATIVE)
