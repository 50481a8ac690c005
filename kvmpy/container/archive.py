"""What the launcher starts Python with: the runtime with its modules compiled into one file.

Finding, opening and reading thirty files takes as long as running them. tools/build_archive.py compiles this file with
a call of `start()` at its end; main.py starts the runtime without an archive.
"""

from __future__ import annotations

import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    Entry = tuple[str, tuple[int, int] | None, int, int]

PROGRAM = "kvmpy/container/native/main"  # this file, compiled
CODE = "kvmpy/container/native/modules"  # the code of one module after the other


class Archive:
    """A finder and loader (importlib.abc) of modules: name -> (file, its time and size or None, where its code is).

    The time and size are there in a checkout: a module that was edited since is left to the ordinary import.
    """

    def __init__(self, root: str, modules: dict[str, Entry]) -> None:
        self.root = root
        self.modules = modules

    def has(self, name: str) -> bool:
        """Whether a module is here, and has not been edited since."""
        if name not in self.modules:
            return False
        file, stamp, _, _ = self.modules[name]
        if not stamp:
            return True
        try:
            status = posix.stat(f"{self.root}/{file}")
        except FileNotFoundError:
            return False
        return stamp == (status.st_mtime_ns, status.st_size)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Return how to load a module, or None: it is not here, or not any more."""
        return self.spec(name) if self.has(name) else None

    def spec(self, name: str) -> ModuleSpec:
        """Return how to load a module that is here."""
        file = f"{self.root}/{self.modules[name][0]}"
        package = file.endswith("/__init__.py")
        spec = ModuleSpec(name, self, origin=file, is_package=package)  # type: ignore[arg-type]
        if package:
            spec.submodule_search_locations = [file.removesuffix("/__init__.py")]
        return spec

    def create_module(self, _spec: object) -> None:
        """Let the import system make an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        self.run([module])

    def run(self, modules: Iterable[ModuleType]) -> None:
        """Run the code of modules; the file is open no longer, since it might have become descriptor 0."""
        archive = posix.open(f"{self.root}/{CODE}", posix.O_RDONLY | posix.O_CLOEXEC)
        for module in modules:
            file, _, at, size = self.modules[module.__name__]
            module.__file__ = f"{self.root}/{file}"
            exec(marshal.loads(posix.pread(archive, size, at)), module.__dict__)
        posix.close(archive)

    def load(self, names: tuple[str, ...]) -> None:
        """Import these, each after those that it needs, or none if one was edited.

        The import system itself takes 50 µs for each, and has nothing to find out here.
        """
        if not all(map(self.has, names)):
            return
        for name in names:
            module = sys.modules[name] = type(sys)(name)
            spec = module.__spec__ = self.spec(name)
            if spec.submodule_search_locations:
                module.__path__ = spec.submodule_search_locations
        for name in names:
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, sys.modules[name])
        self.run([sys.modules[name] for name in names])


def start(modules: dict[str, Entry], verbs: dict[str, tuple[str, ...]]) -> None:
    """Run the command line, with what its verb imports already there."""
    gc.disable()  # the process lives for milliseconds
    root = __file__.removesuffix(f"/{PROGRAM}")
    archive = Archive(root, modules)
    sys.meta_path.insert(0, archive)
    sys.path.append(root)
    for word in sys.argv[1:]:
        if word in verbs:
            archive.load(verbs[word])
            break
    from kvmpy.container.main import main

    main()
