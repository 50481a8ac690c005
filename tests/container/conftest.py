"""What the container tests share: a root directory, and the proof that nothing of the host's has changed."""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("container.oci", "container.attacker")
from console import DEADLINE
from container.attacker import arm
from container.oci import IN_PYTHON, Bundle, Runtime
from peers import require

BUSYBOX = shutil.which("busybox")
PROGRAMS = (
    "sh ls cat mount umount id true false ps sleep hostname ip grep echo test mkdir rmdir rm touch head tail wc env "
    "kill stty chroot mknod dd ln readlink stat chmod chown sync nproc cut tr sed sort uniq yes date pwd printf su tty"
).split()
NOBODY = 65534


@functools.cache
def host_programs() -> list[str]:
    """Return the host's own programs, as far as it has them, and the libraries that they load."""
    programs = [path for name in PROGRAMS if (path := shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin"))]
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
    return programs + sorted(set(re.findall(r"(/\S+) \(0x", listed)))


def make_rootfs(directory: Path) -> Path:
    """Fill a directory with busybox, or the programs that the host has, and what a system has in /etc."""
    for name in ("bin", "etc", "tmp", "root", "home/ann"):
        (directory / name).mkdir(parents=True)
    if BUSYBOX:
        shutil.copy(BUSYBOX, directory / "bin/busybox")
        for name in PROGRAMS:
            (directory / "bin" / name).symlink_to("busybox")
    else:
        for path in host_programs():
            target = directory / ("bin" if os.path.basename(path) in PROGRAMS else os.path.dirname(path)[1:])
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nann:x:1001:\nstaff:x:50:ann\n")
    (directory / "tmp").chmod(0o1777)
    if os.geteuid() == 0:
        os.chown(directory / "home/ann", 1000, 1001)
    return directory


@pytest.fixture
def rootfs() -> Iterator[Path]:
    """A root directory of the test's own that everyone may enter, also without root."""
    top = Path(tempfile.mkdtemp(prefix="kvmpy-test-"))
    top.chmod(0o755)
    (top / "rootfs").mkdir()
    try:
        yield make_rootfs(top / "rootfs")
    finally:
        shutil.rmtree(top)


@pytest.fixture
def attacked(rootfs: Path, tmp_path: Path) -> Path:
    """A root directory with an attacker in it, and a program that is slow to find."""
    require("gcc")
    arm(rootfs, tmp_path)
    return rootfs


def is_fifo(path: Path) -> bool:
    return stat.S_ISFIFO(path.stat().st_mode)


@pytest.fixture
def runtime(tmp_path: Path, unchanged_host: None) -> Runtime:
    """kvmpy-oci with a root of its own."""
    return Runtime(IN_PYTHON, tmp_path / "root")


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Bundle:
    """A bundle whose container would run `true`."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    return Bundle(directory, rootfs)
