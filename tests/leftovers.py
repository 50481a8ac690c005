"""What kvmpy could leave behind on the host: told by the names that it gives, since others use the host meanwhile."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from kvmpy.container.cgroup import find_hierarchies
from kvmpy.container.state import default_root

# What kvmpy, or a test, calls a container and so its control groups, or a folder and so what is mounted there.
OURS = re.compile(r"(?:^|/)(?:kvmpy|run|compare|rootfs)-[^/]*")
ANOTHERS = re.compile(rf"kvmpy-test-(?!{os.getpid()}-)\d+-")  # a container of tests that run beside these
SECONDS = 10.0


def host_state() -> set[str]:
    """Return the mounts, control groups, interfaces and kept containers that have a name of kvmpy's."""
    mounts = [line.split(" ", 5)[3:5] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [f"mount of {root} at {point}" for root, point in mounts]
    for hierarchy in find_hierarchies():
        found += (path for path, _, _ in os.walk(hierarchy.mounted))
    found += (f"interface /{name}" for name in os.listdir("/sys/class/net"))
    root = Path(default_root())
    found += (f"container /{name}" for name in (os.listdir(root) if root.exists() else []))
    return {name for name in found if OURS.search(name) and not ANOTHERS.search(name)}


def left_since(before: set[str]) -> set[str]:
    """Return what is there and was not, and stays: what others make beside goes again."""
    end = time.monotonic() + SECONDS
    left = host_state() - before
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left &= host_state()
    return left
