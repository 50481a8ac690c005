"""What the container tests share: a root directory, and the proof that nothing of the host's has changed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("container.oci")
from container.oci import IN_PYTHON, Bundle, Runtime

from kvmpy.container.cgroup import find_hierarchies
from kvmpy.container.state import default_root

BUSYBOX = shutil.which("busybox")
PROGRAMS = (
    "sh ls cat mount umount id true false ps sleep hostname ip grep echo test mkdir rmdir rm touch head tail wc env "
    "kill stty chroot mknod dd ln readlink stat chmod chown sync nproc cut tr sed sort uniq yes date pwd printf su tty"
).split()
NOBODY = 65534


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip with a reason what this machine cannot do."""
    for item in items:
        if "rootfs" in getattr(item, "fixturenames", ()):
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="containers of these tests need root"))
            elif not BUSYBOX:
                item.add_marker(pytest.mark.skip(reason="no busybox; install busybox-static"))


def host_state() -> dict[str, list[str]]:
    """Return what a container must not change: mounts, control groups, interfaces, kept containers."""
    groups: list[str] = []
    for hierarchy in find_hierarchies():
        groups += (str(path) for path in Path(hierarchy.mounted).glob("**/") if "process_api" not in str(path))
    root = Path(default_root())
    return {
        "mounts": [line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()],
        "groups": sorted(groups),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "containers": sorted(name for name in os.listdir(root) if name[0] != ".") if root.exists() else [],
    }


@pytest.fixture
def unchanged_host() -> Iterator[None]:
    """The host is afterwards what it was before; containers of other tests run beside, so it is asked for by name."""
    before = host_state()
    yield
    after = host_state()
    assert {kind: sorted(set(after[kind]) ^ set(before[kind])) for kind in before} == {kind: [] for kind in before}


def make_rootfs(directory: Path) -> Path:
    """Fill a directory with busybox, and what a system has in /etc."""
    assert BUSYBOX
    for name in ("bin", "etc", "tmp", "root", "home/ann"):
        (directory / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    for name in PROGRAMS:
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nann:x:1001:\nstaff:x:50:ann\n")
    (directory / "tmp").chmod(0o1777)
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
