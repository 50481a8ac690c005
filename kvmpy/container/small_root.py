"""A root directory out of the host's own programs: for a container where no image is at hand."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"


def small_root(folder: Path) -> list[str]:
    """Make a directory that can be a container's root; return the volumes, as `Wish` has them, that it needs.

    The programs are the host's directories, read-only; everything else is the directory's own.
    """
    volumes = []
    for name in ("usr", "bin", "sbin", "lib", "lib64"):
        path = f"/{name}"
        if os.path.islink(path):
            (folder / name).symlink_to(os.readlink(path))
        elif os.path.isdir(path):
            volumes.append(f"{path}:{path}:ro")
    (folder / "etc").mkdir()
    (folder / "tmp").mkdir()
    return volumes


def find_python() -> tuple[str, list[str]]:
    """Return a Python that runs in a small root, and the volumes that it needs besides: the host's own needs none."""
    if os.access(SYSTEM_PYTHON, os.X_OK):
        return SYSTEM_PYTHON, []
    prefixes = {sys.prefix, sys.base_prefix}
    return sys.executable, [f"{prefix}:{prefix}:ro" for prefix in sorted(prefixes)]
