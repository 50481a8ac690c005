"""A root directory out of the host's own programs: for a container where no image is at hand."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


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


def own_python() -> list[str]:
    """Return the volumes that this Python needs besides those of a small root."""
    prefixes = {sys.prefix, sys.base_prefix}
    return [f"{prefix}:{prefix}:ro" for prefix in sorted(prefixes) if not f"{prefix}/".startswith("/usr/")]
