"""The demos: each a short file that makes one thing happen, says what and why, and checks what it says.

A demo is a function `run(scene)` (see scene.py) and `CHECK`, commands with which anyone may look for themselves. What
its guest runs is guest/lessons/NAME.asm.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

DEMOS = {
    "trap": "a privileged instruction, its exit, and the answer that Python gives",
    "modes": "real, protected, long: the climb of every PC, instruction by instruction",
    "paging": "an address on its way through the page tables, a fault, and its repair",
    "interrupts": "from a device's line to the guest's handler, and back",
    "device": "a new device in twenty lines of Python, and a guest that uses it",
    "two-guests": "two systems at once on one host, neither able to reach the other",
    "namespaces": "each of the eight on its own: before, inside, and outside again",
    "chroot": "how root breaks out of a chroot, and why pivot_root holds",
    "limits": "memory, processes and CPU time, exceeded on purpose",
    "from-nothing": "a container in sixty lines of Python, without kvmpy",
    "side-by-side": "a process, a container and a machine say who they are, and what they can reach",
    "layers": "lower, upper, whiteout, and a hundred containers over one base",
}


def load(name: str) -> ModuleType:
    """Import the file of a demo."""
    from importlib import import_module

    return import_module(f"kvmpy.demos.{name.replace('-', '_')}")
