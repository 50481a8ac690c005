"""The modules of the runtime in one file, made when the package was built (tools/build_stage.py).

Finding, opening and reading thirty files takes as long as running them. main.py reads the archive, whose first part is
this module itself, and calls `install()`.
"""

from __future__ import annotations

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    Entry = tuple[str, tuple[int, int] | None, int, int]


class Archive:
    """A finder and loader (importlib.abc) of modules: name -> (file, its time and size or None, where its code is).

    The time and size are there in a checkout: a module that was edited since is left to the ordinary import.
    """

    def __init__(self, root: str, fd: int, start: int, modules: dict[str, Entry]) -> None:
        self.root = root
        self.fd = fd
        self.start = start
        self.modules = modules

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Return how to load a module, or None: it is not here, or not any more."""
        if name not in self.modules:
            return None
        file, stamp, _, _ = self.modules[name]
        file = f"{self.root}/{file}"
        if stamp:
            status = posix.stat(file)
            if stamp != (status.st_mtime_ns, status.st_size):
                return None
        package = file.endswith("/__init__.py")
        spec = ModuleSpec(name, self, origin=file, is_package=package)  # type: ignore[arg-type]
        if package:
            spec.submodule_search_locations = [file.removesuffix("/__init__.py")]
        return spec

    def create_module(self, _spec: object) -> None:
        """Let the import system make an ordinary module."""

    def exec_module(self, module: object) -> None:
        """Run the module's code."""
        file, _, at, size = self.modules[module.__name__]  # type: ignore[attr-defined]
        module.__file__ = f"{self.root}/{file}"  # type: ignore[attr-defined]
        exec(marshal.loads(posix.pread(self.fd, size, self.start + at)), module.__dict__)


def install(root: str, fd: int, start: int, modules: dict[str, Entry]) -> None:
    """Let `import` look here first; code begins at `start` in the open archive."""
    sys.meta_path.insert(0, Archive(root, fd, start, modules))
