"""Compiles the binding: every `cdef/*.h` against <linux/kvm.h>, together with the C part in `src/`.

Each `#define NAME ...` in those files becomes an integer the compiler looks up. One that the installed headers lack is
absent at run time (`binding.has`) instead of breaking the build.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
from kvmpy.kvm.capabilities import CAPABILITIES  # noqa: E402 - the checkout is not on the path before

TOPICS = ("types", "system", "memory", "irq", "vm", "vcpu", "run", "stats", "enter", "functions")
ABSENT = -1


def constants(declarations: str) -> list[str]:
    """Return the names declared as `#define NAME ...`."""
    return re.findall(r"^#define (\w+) \.\.\.$", declarations, re.MULTILINE)


def fallbacks(names: list[str]) -> str:
    """Return C that gives the names missing from older headers the value `ABSENT`."""
    return "\n".join(f"#ifndef {name}\n#define {name} ({ABSENT})\n#endif" for name in names)


capabilities = "\n".join(f"#define {name} ..." for name in CAPABILITIES)
declarations = "\n".join([capabilities, *((HERE / "cdef" / f"{topic}.h").read_text() for topic in TOPICS)])

ffibuilder = FFI()
ffibuilder.cdef(declarations)
ffibuilder.set_source(
    "kvmpy.kvm._kvm",
    f'#include "enter.h"\n#include "newer.h"\n{fallbacks(constants(declarations))}\n',
    sources=["kvmpy/kvm/src/enter.c"],
    include_dirs=["kvmpy/kvm/src", "kvmpy/kvm/cdef"],
    depends=["kvmpy/kvm/src/enter.h", "kvmpy/kvm/src/newer.h", "kvmpy/kvm/cdef/functions.h"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
