"""The engine under the software CPU: what of it is ours, and that it still is others'."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "kvmpy" / "softcpu" / "src"
PAGE = Path(__file__).parents[2] / "docs" / "engine.md"
OTHERS = """
import unicorn
from unicorn.x86_const import *

def others():  # 5! on an engine that is not kvmpy's, with a port, CPUID and MSRs, which ours take the place of
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(0x1000, 0x1000)
    uc.mem_write(0x1000, bytes.fromhex("b801000000b905000000f7e1e2fce6998bd831c00fa289f5"))
    seen = []
    note = lambda uc, port, size, value, _: seen.append((port, value))
    uc.hook_add(unicorn.UC_HOOK_INSN, note, None, 1, 0, UC_X86_INS_OUT)
    uc.emu_start(0x1000, 0x1018)
    return seen, uc.reg_read(UC_X86_REG_ESI)

def ours():
    from kvmpy import SoftAccelerator, assemble
    from kvmpy.accel.testbed import Testbed
    with SoftAccelerator() as soft, Testbed(soft, 64) as bed:
        return bed.run(assemble("mov al, 7\\nout 0x80, al\\nhlt").code)
"""


@pytest.mark.parametrize("order", ["others(), ours(), others()", "ours(), others(), ours()"])
def test_other_users_of_unicorn_are_left_alone(order: str) -> None:
    """In the same process, whoever comes first; an engine that was there before is used on."""
    pytest.importorskip("unicorn")
    done = subprocess.run([sys.executable, "-c", f"{OTHERS}\nprint(*({order}))"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mine, theirs = "IoOut(port=128, size=1, data=b'\\x07', count=1)", "([(153, 120)], 0)"
    assert done.stdout.strip() == " ".join(mine if "ours" in who else theirs for who in order.split(", "))


def test_the_page_names_all_that_is_replaced() -> None:
    (table,) = re.findall(r"#define UNICORN_REPLACED\(F\)(.*?)\n\n", (SOURCE / "unicorn.h").read_text(), re.DOTALL)
    replaced = re.findall(r"F\([\w *]+, (\w+),", table)
    assert len(replaced) > 20
    told = re.findall(r"`(\w+)`", "\n".join(line for line in PAGE.read_text().splitlines() if line.startswith("| `")))
    assert sorted(told) == sorted(replaced)


def test_the_page_names_the_phases_and_what_is_pending() -> None:
    header, page = (SOURCE / "softcpu.h").read_text(), PAGE.read_text()
    for name in ("soft_phase", "soft_pending"):
        (body,) = re.findall(rf"enum {name} {{(.*?)}};", header, re.DOTALL)
        for state in re.findall(r"^ +([A-Z_]+),", body, re.MULTILINE):
            assert state in page
