"""Compiles the software CPU's binding. It needs no part of Unicorn: that is looked up when the first CPU is made."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
PARTS = (
    "library", "vm", "turns", "run", "flags", "translation", "paging", "access", "ports", "events", "deliver", "calls",
    "control", "debug", "mended",
)  # fmt: skip

ffibuilder = FFI()
for part in ("softcpu", "functions"):
    ffibuilder.cdef((HERE / "cdef" / f"{part}.h").read_text())
ffibuilder.set_source(
    "kvmpy.softcpu._softcpu",
    '#include "softcpu.h"\n',
    sources=[f"kvmpy/softcpu/src/{name}.c" for name in PARTS],
    include_dirs=["kvmpy/softcpu/src", "kvmpy/softcpu/cdef", "kvmpy/kvm/src"],
    depends=[
        *(f"kvmpy/softcpu/src/{name}.h" for name in ("softcpu", "cpu", "unicorn")),
        "kvmpy/softcpu/cdef/functions.h",
        "kvmpy/kvm/src/packed.h",
    ],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
