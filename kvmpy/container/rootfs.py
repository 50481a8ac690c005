"""Where a path of the container's leads, by the symbolic links of its root directory as they are now.

This only tells which directories to make. What is opened is opened by openat2(2), which cannot be led out.
"""

from __future__ import annotations

import posix

MOST_LINKS = 40  # the kernel's own limit on a way


def resolve(root: str, path: str, covered: list[str]) -> str:
    """Return the path without symbolic links; its end may be missing.

    Nothing is looked up below a path of `covered`: there another mount will be by then.
    """
    done: list[str] = []
    todo = path.split("/")[::-1]
    links = 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            del done[-1:]
            continue
        done.append(name)
        here = "/" + "/".join(done)
        if any(here.startswith(f"{mount}/") for mount in covered):
            continue
        try:
            target = posix.readlink(root + here)
        except OSError:
            continue
        links += 1
        if links > MOST_LINKS:
            return path
        if target.startswith("/"):
            done.clear()
        else:
            done.pop()
        todo += target.split("/")[::-1]
    return "/" + "/".join(done)
