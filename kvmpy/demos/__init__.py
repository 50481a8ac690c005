"""The demos: each a short file that makes one thing happen, says what and why, and checks what it says.

A demo is a function `run(scene)` (see scene.py) and `CHECK`, commands with which anyone may look for themselves. What
its guest runs is guest/lessons/NAME.asm.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

DEMOS = {
    "trap": "a privileged instruction, its exit, and Python's answer",
    "modes": "real, protected, long: the climb of every PC, step by step",
    "paging": "an address on its way through the tables, a fault, its repair",
    "interrupts": "from a device's line to the guest's handler, and back",
    "device": "a device in twenty lines of Python, and a guest that uses it",
    "two-guests": "two systems at once on one host, neither reaches the other",
    "namespaces": "each of the eight on its own: before, inside, outside again",
    "chroot": "how root breaks out of a chroot, and why pivot_root holds",
    "limits": "memory, processes and CPU time, exceeded on purpose",
    "from-nothing": "a container in sixty lines of Python, without kvmpy",
    "side-by-side": "process, container, machine: who are they, what can they reach?",
    "layers": "lower, upper, whiteout, and a hundred containers over one base",
}


def load(name: str) -> ModuleType:
    """Import the file of a demo."""
    from importlib import import_module

    return import_module(f"kvmpy.demos.{name.replace('-', '_')}")
