"""The other model of virtualization: containers, made of namespaces, mounts and cgroups.

A configuration becomes a plan, an ordered list of typed operations (`plan.py`); each operation stands for system calls,
written down as a *tape* (`tape.py`); and a *stage* of a few lines of C plays the tape between clone and execve
(`native/stage.c`), so that no Python ever runs inside a container.

Everything that `create` needs imports C modules only: an interpreter with its usual modules starts in 25 ms, without
them in 5, and a container manager starts one for every verb.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.api import Container, Finished
    from kvmpy.container.simple import Wish

_HOMES = {"Container": "api", "Finished": "api", "Wish": "simple"}

__all__ = ["Container", "Finished", "Wish"]


def __getattr__(name: str) -> object:
    """Import the Python API when it is first used (PEP 562): the runtime itself does without."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kvmpy.container' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"kvmpy.container.{_HOMES[name]}"), name)
