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
SYSTEM_PYTHON = "/usr/bin/python3"
NEEDED = "import sys, ctypes, fcntl, json, resource, select, subprocess, termios; sys.exit(sys.version_info < (3, 11))"

# Run by the launcher's own Python, whose version the code is for. Docstrings (optimize=2) and columns for tracebacks
# (no_debug_ranges) would be half of it.
ARCHIVE = """
from __future__ import annotations

import marshal, os, sys
from importlib.util import MAGIC_NUMBER

HEAD = 16384  # what main.py reads at once
root, target, editable = sys.argv[1:]
modules, code = {}, b""
for part in ("", "/container", "/container/cgroup", "/container/operations", "/container/verbs"):
    names = os.listdir(f"{root}/kvmpy{part}") if part else ["__init__.py", "errors.py"]
    for name in sorted(names):
        if not name.endswith(".py") or name in ("main.py", "api.py", "simple.py", "default_filter.py", "small_root.py"):
            continue
        file = f"kvmpy{part}/{name}"
        status = os.stat(f"{root}/{file}")
        with open(f"{root}/{file}", encoding="utf-8") as source:
            text = source.read().replace("from __future__ import annotations", "", 1)  # 0.15 ms to import
        compiled = compile(text, f"{root}/{file}", "exec", annotations.compiler_flag, dont_inherit=True, optimize=2)
        data = marshal.dumps(compiled)
        stamp = (status.st_mtime_ns, status.st_size) if editable == "1" else None
        if name == "archive.py":
            loader = compiled
            continue
        modules[file[:-3].removesuffix("/__init__").replace("/", ".")] = (file, stamp, len(code), len(data))
        code += data
head = MAGIC_NUMBER + marshal.dumps((HEAD, loader, modules))
assert len(head) <= HEAD, len(head)
with open(target, "wb") as archive:
    archive.write(head.ljust(HEAD, bytes(1)) + code)
"""


def build_all(root: Path, target: Path, editable: bool) -> None:
    """Compile the programs of a checkout into `target`, and archive its modules; if `editable`, these may change."""
    sources = root / "kvmpy" / "container" / "native"
    target.mkdir(parents=True, exist_ok=True)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[:1]
    python = f'-DPYTHON="{find_python()}"'
    for name, (source, options) in PROGRAMS.items():
        command = [*compiler, *OPTIONS, *options, python, "-o", str(target / name), str(sources / source)]
        subprocess.run(command, check=True)
    arguments = [str(root), str(target / "modules"), str(int(editable))]
    subprocess.run([find_python(), "-I", "-S", "-X", "no_debug_ranges", "-c", ARCHIVE, *arguments], check=True)


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
    build_all(ROOT, ROOT / "kvmpy" / "container" / "native", True)
