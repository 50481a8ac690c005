"""Every struct of the binding lies in memory as the compiler lays it out from <linux/kvm.h>."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kvmpy.kvm.binding import ffi

CDEF = Path(__file__).parents[2] / "kvmpy" / "kvm" / "cdef"
NAMES = sorted(
    {
        name
        for path in CDEF.glob("*.h")
        for name in re.findall(r"^(struct \w+)\s*\{", path.read_text(), re.MULTILINE)
        if name.startswith("struct kvm_")
    }
)
needs_compiler = pytest.mark.calls("gcc")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What gcc says: size and alignment of each struct, then offset and size of each of its fields."""
    folder = tmp_path_factory.mktemp("structs")
    lines = []
    for name in NAMES:
        numbers = [f"sizeof({name})", f"_Alignof({name})"]
        for field, _ in fields(name):
            numbers += [f"offsetof({name}, {field})", size_of_field(name, field)]
        lines += [f'printf("{name}' + " %zu" * len(numbers) + f'\\n", {", ".join(numbers)});']
    program = '#include <stddef.h>\n#include <stdio.h>\n#include "newer.h"\nint main(void) {\n'
    (folder / "structs.c").write_text(program + "\n".join(lines) + "\nreturn 0; }\n")
    subprocess.run(
        ["gcc", "-w", f"-I{CDEF.parent / 'src'}", "-o", folder / "structs", folder / "structs.c"], check=True
    )
    said = subprocess.run([folder / "structs"], check=True, capture_output=True, text=True).stdout
    return {" ".join(words[:2]): list(map(int, words[2:])) for words in map(str.split, said.splitlines())}


def fields(name: str) -> list[tuple[str, object]]:
    return [(field, info) for field, info in ffi.typeof(name).fields if field]


def size_of_field(name: str, field: str) -> str:
    is_open = dict(fields(name))[field].type.kind == "array" and dict(fields(name))[field].type.length is None  # type: ignore[attr-defined]
    return "(size_t)0" if is_open else f"sizeof((({name} *)0)->{field})"


def test_there_are_structs() -> None:
    assert len(NAMES) > 40


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_a_struct_is_as_the_compiler_has_it(name: str, compiled: dict[str, list[int]]) -> None:
    ours = [ffi.sizeof(name), ffi.alignof(name)]
    for _, info in fields(name):
        kind = info.type  # type: ignore[attr-defined]
        is_open = kind.kind == "array" and kind.length is None
        ours += [info.offset, 0 if is_open else ffi.sizeof(kind)]  # type: ignore[attr-defined]
    assert ours == compiled[name]
    assert ffi.new(f"{name} *")
