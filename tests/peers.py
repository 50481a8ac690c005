"""What tests need of the machine: programs of others, root, KVM. What it lacks is told as a sum, with its remedy."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable

import pytest

# The package of Debian's that has a program.
PACKAGES = {
    "as": "binutils", "busybox": "busybox-static", "chromium": "chromium", "fish": "fish", "gcc": "gcc",
    "ndisasm": "nasm", "newuidmap": "uidmap", "nm": "binutils", "objcopy": "binutils", "podman": "podman conmon",
    "ps": "procps", "qemu-system-x86_64": "qemu-system-x86", "readelf": "binutils", "runc": "runc",
    "setpriv": "util-linux", "strace": "strace", "zsh": "zsh", "ip": "iproute2", "sudo": "sudo",
}  # fmt: skip
HAS_KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
NO_KVM = "no usable /dev/kvm"
needs_kvm = pytest.mark.skipif(not HAS_KVM, reason=NO_KVM)
REMEDIES = (
    (r"apt install .*(?=\)$)", ""),
    (r"needs root", "run as root"),
    ("/dev/kvm", "a /dev/kvm that this user may open"),
    (r"^this (host|kernel|processor)\b", "nothing to do: not on this host ('kvmpy info')"),
)


def why_not(item: pytest.Item) -> str:
    """Return why the marks `calls` and `root` of a test cannot be had here, or an empty text."""
    programs = [name for mark in item.iter_markers("calls") for name in mark.args]
    roots = [mark.args[0] for mark in item.iter_markers("root") if os.geteuid() != 0]
    return f"needs root: {roots[0]}" if roots else missing(*programs)


def missing(*programs: str) -> str:
    """Return what must be installed for these programs to be there, or an empty text."""
    lacking = [name for name in programs if not shutil.which(name)]
    packages = sorted({PACKAGES[name] for name in lacking})
    return f"no {', '.join(lacking)} (apt install {' '.join(packages)})" if lacking else ""


def require(*programs: str) -> None:
    """Skip the test where one of the programs is missing; for what is known only while it runs."""
    if why := missing(*programs):
        pytest.skip(why)


def remedy(reason: str) -> str:
    """Return what would make a skipped test run, or its reason where nothing general is known."""
    for pattern, words in REMEDIES:
        if found := re.search(pattern, reason):
            return words or found[0]
    return reason


def sums(reasons: Iterable[str]) -> list[str]:
    """Return a line for each remedy, with how many tests wait for it, most first."""
    return [f"{count:5}: {words}" for words, count in Counter(map(remedy, reasons)).most_common()]
