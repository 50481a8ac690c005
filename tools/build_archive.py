"""Compile the container runtime: a program and the code of its modules (kvmpy/container/archive.py).

    python -I -S -B -X no_debug_ranges tools/build_archive.py ROOT DIRECTORY EDITABLE

tools/build_stage.py runs it with the launcher's own Python, whose version the code is for. Docstrings (optimize=2) and
columns for tracebacks (no_debug_ranges) would be half of it.
"""

from __future__ import annotations

import marshal
import os
import sys
from importlib import _bootstrap_external
from importlib.util import MAGIC_NUMBER

PYC_HEADER = MAGIC_NUMBER + bytes(12)  # flags, time and size, which nobody looks at
PARTS = ("", "/container", "/container/cgroup", "/container/operations", "/container/verbs")
OTHERS = ("archive.py", "api.py", "simple.py", "default_filter.py", "small_root.py")  # not of the runtime
HOT_VERBS = ("create", "start", "delete", "kill", "state", "exec")  # what callers run for each container
ALL = ("kvmpy.container.main", "kvmpy.container.command_line")  # what each verb goes through
CGROUP = "v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "v1"
USUAL = dict.fromkeys(("create", "delete"), (f"kvmpy.container.cgroup.{CGROUP}",))  # imported while they run


def compiled(file: str, end: str = "") -> bytes:
    """Return the code of a file, with some more statements at its end."""
    with open(file, encoding="utf-8") as source:
        text = source.read().replace("from __future__ import annotations", "", 1)  # 0.15 ms to import
    flags = annotations.compiler_flag
    return marshal.dumps(compile(text + end, file, "exec", flags, dont_inherit=True, optimize=2))


def main(root: str, directory: str, editable: bool) -> None:
    """Write both."""
    modules, code = {}, b""
    for part in PARTS:
        names = os.listdir(f"{root}/kvmpy{part}") if part else ["__init__.py", "errors.py"]
        for name in sorted(names):
            if not name.endswith(".py") or name in OTHERS:
                continue
            file = f"kvmpy{part}/{name}"
            status = os.stat(f"{root}/{file}")
            stamp = (status.st_mtime_ns, status.st_size) if editable else None
            data = compiled(f"{root}/{file}")
            modules[file[:-3].removesuffix("/__init__").replace("/", ".")] = (file, stamp, len(code), len(data))
            code += data
    verbs = {verb: imports_of(root, verb) for verb in HOT_VERBS}
    start = compiled(f"{root}/kvmpy/container/archive.py", f"\nstart({modules}, {verbs})\n")
    for name, data in (("main", PYC_HEADER + start), ("modules", code)):
        with open(f"{directory}/{name}", "wb") as written:
            written.write(data)


def imports_of(root: str, verb: str) -> tuple[str, ...]:
    """Return the modules that a verb imports, each after those that it needs itself."""
    done: list[str] = []
    loader = _bootstrap_external._LoaderBasics  # type: ignore[attr-defined]
    ordinary = loader.exec_module

    def exec_module(self: object, module: object) -> None:
        ordinary(self, module)
        done.append(module.__name__)  # type: ignore[attr-defined]

    loader.exec_module = exec_module
    sys.path.insert(0, root)
    for name in (*ALL, f"kvmpy.container.verbs.{verb}", *USUAL.get(verb, ())):
        __import__(name)
    del sys.path[0]
    loader.exec_module = ordinary
    for name in [name for name in sys.modules if name.split(".")[0] == "kvmpy"]:
        del sys.modules[name]
    return tuple(name for name in done if name.split(".")[0] == "kvmpy")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
