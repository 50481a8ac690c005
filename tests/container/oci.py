"""A runtime of OCI bundles as its callers see it: a command line. kvmpy-oci's, or another implementation's."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
from console import DEADLINE

MAIN = Path(__file__).parents[2] / "kvmpy/container/main.py"
LAUNCHER = str(MAIN.parent / "native/kvmpy-oci")
IN_PYTHON = (sys.executable, "-I", "-S", str(MAIN))

Json = dict[str, Any]
CAPABILITIES = [f"CAP_{name}" for name in "CHOWN DAC_OVERRIDE FOWNER MKNOD SETGID SETUID SYS_CHROOT KILL".split()]
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777"],
    },
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]


@contextlib.contextmanager
def on_terminal(command: list[str], **options: Any) -> Iterator[pexpect.spawn[bytes]]:
    """A shell on a terminal of the test's, at its prompt; it is gone with the block."""
    shell = pexpect.spawn(command[0], command[1:], timeout=DEADLINE, **options)
    try:
        shell.expect("# ")
        yield shell
    finally:
        shell.close(force=True)


def leave(shell: pexpect.spawn[bytes], code: int) -> None:
    """End a shell with a code, which must be the code of what it runs in."""
    shell.sendline(f"exit {code}")
    shell.expect(pexpect.EOF)
    shell.wait()
    assert shell.exitstatus == code


class Bundle:
    """A bundle on disk whose configuration a test changes before it is used."""

    def __init__(self, directory: Path, rootfs: Path) -> None:
        self.directory = directory
        self.rootfs = rootfs
        self.process: Json = {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        }
        self.linux: Json = {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"],
        }
        self.config: Json = {
            "ociVersion": "1.0.2",
            "root": {"path": str(rootfs)},
            "hostname": "box",
            "process": self.process,
            "mounts": copy.deepcopy(MOUNTS),
            "linux": self.linux,
        }
        if os.geteuid() != 0:
            self._without_root()

    def _without_root(self) -> None:
        """Only a user namespace gives an ordinary user the others; it has one id, and no control groups."""
        self.linux["namespaces"] = [{"type": "user"}, *self.linux["namespaces"]]
        for field, own in (("uidMappings", os.geteuid()), ("gidMappings", os.getegid())):
            self.linux[field] = [{"containerID": 0, "hostID": own, "size": 1}]
        del self.linux["resources"]
        self.config["mounts"][2]["options"].remove("gid=5")

    def sh(self, script: str) -> None:
        """Let the container run a shell script."""
        self.process["args"] = ["sh", "-c", script]

    def save(self) -> Path:
        """Write config.json."""
        (self.directory / "config.json").write_text(json.dumps(self.config))
        return self.directory


class Runtime:
    """One implementation, with a root of its own."""

    def __init__(self, command: tuple[str, ...], root: Path) -> None:
        self.command = command
        self.root = root
        self._count = 0

    def new_name(self) -> str:
        """Return a name that no other test has."""
        self._count += 1
        return f"kvmpy-test-{os.getpid()}-{self._count}"

    def __call__(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end. What is written goes to files: a pipe would stay open as long as a container lives."""
        command = [*self.command, "--root", str(self.root), *map(str, arguments)]
        options = {"stdin": subprocess.DEVNULL, **options} if "input" not in options else options
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(command, text=True, timeout=DEADLINE, stdout=out, stderr=err, **options)
            for stream in (out, err):
                stream.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())

    def ok(self, *arguments: object, **options: Any) -> str:
        """Run a verb that must succeed without a word of complaint; return what it printed."""
        done = self(*arguments, **options)
        assert done.stderr == ""
        assert done.returncode == 0
        return done.stdout

    def run(self, bundle: Bundle, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return self("run", "-b", bundle.save(), self.new_name(), **options)

    def output(self, bundle: Bundle, script: str = "") -> str:
        """Return what a container prints; it must succeed."""
        if script:
            bundle.sh(script)
        done = self.run(bundle)
        assert done.stderr == ""
        assert done.returncode == 0
        return done.stdout.strip()

    def state(self, name: str) -> Json:
        """Return a container's state."""
        found: Json = json.loads(self.ok("state", name))
        return found

    def error(self, *arguments: object, code: int = 1, **options: Any) -> str:
        """Run a verb that must fail; return its one line of complaint."""
        done = self(*arguments, **options)
        assert done.returncode == code, done
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        return lines[0].removeprefix("kvmpy-oci: ")
