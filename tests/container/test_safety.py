"""What a runtime has to stand to be called safe: numbered tests, each with the escape that it stops.

The numbers are those of the field's list; 22 and 23 are about images, and not here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from container.oci import IN_PYTHON, LAUNCHER, Bundle, Runtime
from leftovers import host_state, left_since
from peers import require

from kvmpy.container.host import start_time
from kvmpy.container.launch import NATIVE
from kvmpy.container.state import Store
from kvmpy.container.verbs.create import Extras, create, prepare
from kvmpy.container.verbs.delete import delete
from kvmpy.container.verbs.start import start
from kvmpy.errors import ContainerError


@contextlib.contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's, which ends with the block."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


F_GET_SEALS = 1034


def compiled(bundle: Bundle, name: str, source: str) -> str:
    """Compile a static program into the container's /bin."""
    require("gcc")
    path = bundle.directory / f"{name}.c"
    path.write_text(source)
    subprocess.run(["gcc", "-w", "-static", "-o", str(bundle.rootfs / "bin" / name), str(path)], check=True)
    return name


@pytest.fixture
def created(runtime: Runtime, bundle: Bundle) -> Iterator[str]:
    """The name for a container that is removed afterwards."""
    name = runtime.new_name()
    yield name
    runtime.ok("delete", "--force", name)


# 1: CVE-2019-5736


def hashes() -> dict[str, str]:
    files = [sys.executable, os.path.realpath(sys.executable), LAUNCHER, *map(str, Path(NATIVE).iterdir())]
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def test_01_cve_2019_5736_the_entry_point_is_the_runtime(bundle: Bundle, runtime: Runtime) -> None:
    """`#!/proc/self/exe` makes the kernel start whatever runs then: the stage, not the host's Python."""
    (bundle.rootfs / "evil").write_text("#!/proc/self/exe\n")
    (bundle.rootfs / "evil").chmod(0o755)
    before = hashes()
    bundle.process["args"] = ["/evil"]
    assert runtime.run(bundle).returncode == 255  # the stage, which finds nobody to report to
    assert hashes() == before


def test_01_cve_2019_5736_the_stage_cannot_be_written(bundle: Bundle, runtime: Runtime, created: str) -> None:
    """While a container waits for start, a program of exec's in it opens /proc/1/exe, and tries.

    Nobody may look into the stage (test_joining.py). An ordinary user's may be looked into while it waits; then it is
    in use, and sealed against every change.
    """
    before = hashes()
    runtime.ok("create", "-b", bundle.save(), created)
    pid = runtime.state(created)["pid"]
    with open(f"/proc/{pid}/exe", "rb") as stage:
        assert fcntl.fcntl(stage, F_GET_SEALS) == 0xF  # seal, shrink, grow, write
    done = runtime("exec", created, "sh", "-c", "echo x > /proc/1/exe; echo y >> /proc/1/exe")
    why = "Permission denied" if os.geteuid() == 0 else "Text file busy"
    assert done.stderr.count(f"create /proc/1/exe: {why}") == 2
    assert hashes() == before


# 2, 3: CVE-2024-21626


def test_02_cve_2024_21626_a_working_directory_by_descriptor(bundle: Bundle, runtime: Runtime) -> None:
    for number in range(3, 31):
        bundle.process["cwd"] = f"/proc/self/fd/{number}"
        assert runtime.error("create", "-b", bundle.save(), "x").startswith(f"make /proc/self/fd/{number} if it is mis")


def test_02_cve_2024_21626_a_leaked_directory_of_the_callers(bundle: Bundle, runtime: Runtime) -> None:
    leaky = Runtime(("bash", "-c", 'exec 7< / 8< /etc 42< /; exec "$@"', "sh", *runtime.command), runtime.root)
    for number in (7, 8, 42):
        bundle.process["cwd"] = f"/proc/self/fd/{number}"
        assert leaky.error("create", "-b", bundle.save(), "x").startswith("make /proc/self/fd/")


@pytest.mark.parametrize("number", [3, 4, 5, 7, 12, 14, 42])
def test_02_cve_2024_21626_a_leaked_directory_in_exec(
    bundle: Bundle, runtime: Runtime, created: str, number: int
) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    assert runtime("run", "--detach", "-b", bundle.save(), created).returncode == 0
    leaky = Runtime(("bash", "-c", f'exec {number}< /; exec "$@"', "sh", *runtime.command), runtime.root)
    line = leaky.error("exec", "--cwd", f"/proc/self/fd/{number}", created, "pwd", code=255)
    assert line.startswith(f"become user 0, group 0, in /proc/self/fd/{number}, ")


def test_03_a_leaked_descriptor_is_absent(bundle: Bundle, runtime: Runtime) -> None:
    leaky = Runtime(("bash", "-c", 'exec 7< / 42< /etc/passwd; exec "$@"', "sh", *runtime.command), runtime.root)
    bundle.sh("ls /proc/self/fd; cat /proc/self/fd/42")
    done = leaky.run(bundle)
    assert done.stdout.split() == ["0", "1", "2", "3"]  # 3 is ls's own
    assert "/proc/self/fd/42': No such file" in done.stderr or "/proc/self/fd/42: No such file" in done.stderr


# 4-8: CVE-2019-19921, CVE-2023-27561, CVE-2024-45310


@pytest.mark.parametrize(("number", "name"), [(4, "proc"), (5, "sys"), (6, "dev")])
def test_04_to_06_cve_2019_19921_a_link_where_a_directory_must_be(
    bundle: Bundle, runtime: Runtime, tmp_path: Path, number: int, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for target in (str(elsewhere), "/tmp", "."):
        (bundle.rootfs / name).symlink_to(target)
        line = runtime.error("create", "-b", bundle.save(), "x")
        assert line.endswith("too many levels of symbolic links"), number
        (bundle.rootfs / name).unlink()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.root("making devices")
@pytest.mark.parametrize("evil", ["link", "file", "device"])
def test_07_cve_2025_31133_dev_null_is_something_else(
    bundle: Bundle, runtime: Runtime, tmp_path: Path, evil: str
) -> None:
    """Without a tmpfs on /dev the image's own is there: what would mask a path would show another."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (bundle.rootfs / "dev").mkdir()
    null = bundle.rootfs / "dev/null"
    if evil == "link":
        null.symlink_to(secret)
    elif evil == "file":
        null.write_text("false")
    else:
        os.mknod(null, 0o020666, os.makedev(1, 5))
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if not m["destination"].startswith("/dev")]
    assert runtime.error("create", "-b", bundle.save(), "x").endswith("too many levels of symbolic links")
    assert secret.read_text() == "secret"


@pytest.mark.parametrize("target", ["/abs/new", "/up/new", "/../../new", "/abs/../up/./new"])
def test_08_cve_2024_45310_a_destination_stays_inside(
    bundle: Bundle, runtime: Runtime, tmp_path: Path, target: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle.rootfs / "abs").symlink_to(str(outside))
    (bundle.rootfs / "up").symlink_to("../../../../../.." + str(outside))
    bundle.config["mounts"].append({"destination": target, "type": "tmpfs", "source": "t"})
    bundle.config["mounts"].append({"destination": f"{target}.file", "source": "/etc/passwd", "options": ["bind"]})
    assert runtime.run(bundle).returncode == 0
    assert list(outside.iterdir()) == []


# 9: CVE-2021-30465


def test_09_cve_2021_30465_links_that_change_meanwhile(bundle: Bundle, tmp_path: Path, unchanged_host: None) -> None:
    """On a volume that two containers share, one swaps a directory for a link all the time; the other is made three
    hundred times with a mount below it."""
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    for directory in (volume / "a", outside):
        directory.mkdir(parents=True)
    (volume / "b").symlink_to("../../../../../.." + str(outside))
    bundle.config["mounts"] += [
        {"destination": "/volume", "source": str(volume), "options": ["bind"]},
        {"destination": "/volume/a/x", "type": "tmpfs", "source": "t"},
    ]
    bundle.linux["maskedPaths"], bundle.linux["readonlyPaths"] = [], []
    bundle.save()
    script = (
        "import ctypes, sys\n"
        "call = ctypes.CDLL(None).renameat2\n"
        "print(flush=True)\n"
        "while True: call(-100, b'a', -100, b'b', 2)\n"  # RENAME_EXCHANGE
    )
    store, made, refused = Store(str(tmp_path / "root")), 0, 0
    with subprocess.Popen([sys.executable, "-c", script], cwd=volume, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout
        swapper.stdout.readline()
        try:
            for _ in range(300):
                try:
                    with_null = create(store, "race", str(bundle.directory), Extras())
                except ContainerError:
                    refused += 1
                else:
                    made += 1
                    delete(with_null, True, print)
                assert list(outside.iterdir()) == []
        finally:
            swapper.kill()
    assert made + refused == 300
    assert made > 30  # it was no refusal of everything
    assert str(outside) not in Path("/proc/self/mountinfo").read_text()


# 10-12: masked and read-only paths


def test_10_a_masked_file_is_empty_and_stays(bundle: Bundle, runtime: Runtime) -> None:
    (bundle.rootfs / "secret").write_text("secret")
    bundle.linux["maskedPaths"].append("/secret")
    bundle.sh("wc -c < /secret; rm /secret; umount /secret && echo gone; echo x > /secret; wc -c < /secret")
    done = runtime.run(bundle)
    assert done.stdout.split() == ["0", "0"]
    assert "remove '/secret': Device or resource busy" in done.stderr


def test_11_a_masked_directory_is_empty_and_read_only(bundle: Bundle, runtime: Runtime) -> None:
    (bundle.rootfs / "secrets").mkdir()
    (bundle.rootfs / "secrets/one").touch()
    bundle.linux["maskedPaths"].append("/secrets")
    bundle.sh("ls /secrets | wc -l; touch /secrets/x; umount /secrets && echo gone; ls /sys/firmware | wc -l")
    done = runtime.run(bundle)
    assert done.stdout.split() == ["0", "0"]
    assert "Read-only file system" in done.stderr


def test_12_the_kernels_switches_cannot_be_written(bundle: Bundle, runtime: Runtime) -> None:
    files = ("sys/kernel/panic", "sys/vm/swappiness", "sysrq-trigger")
    bundle.sh(f"for f in {' '.join(files)}; do echo 1 > /proc/$f; done; true")
    there = sum(Path(f"/proc/{file}").exists() for file in files)
    assert runtime.run(bundle).stderr.count("Read-only file system") == there >= 2


def test_an_annotation_names_no_directory_of_the_hosts(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    """Whoever may write annotations (podman run --annotation, Kubernetes) is not the host."""
    outside = tmp_path / "outside"
    (outside / "upper").mkdir(parents=True)
    (outside / "upper/precious").write_text("secret")
    bundle.config["annotations"] = {"kvmpy.overlay": str(outside)}
    assert runtime.output(bundle, "echo new > /new; ls /") == runtime.output(bundle, "ls /")
    assert "precious" not in runtime.output(bundle, "ls /")
    assert (bundle.rootfs / "new").exists()
    assert [path.name for path in outside.rglob("*")] == ["upper", "precious"]


# 13-15: CVE-2022-29162 and what a program may do


def test_13_cve_2022_29162_nothing_is_inherited(bundle: Bundle, runtime: Runtime, created: str) -> None:
    bundle.sh("grep CapInh /proc/self/status; exec sleep 1000")
    bundle.save()
    done = runtime("run", "--detach", "-b", bundle.directory, created)
    assert done.returncode == 0
    seen = runtime.ok("exec", created, "grep", "-h", "CapInh", "/proc/1/status", "/proc/self/status")
    assert seen.split() == ["CapInh:", "0" * 16] * 2
    seen = runtime.ok("exec", "--cap", "NET_ADMIN", created, "grep", "CapInh", "/proc/self/status")
    assert seen.split() == ["CapInh:", "0" * 16]


@pytest.mark.root("the ids of others")
@pytest.mark.parametrize(("forbidden", "expected"), [(True, "1000"), (False, "0")])
def test_14_a_setuid_program_gains_nothing(bundle: Bundle, runtime: Runtime, forbidden: bool, expected: str) -> None:
    compiled(bundle, "who", '#include <stdio.h>\n#include <unistd.h>\nint main() { printf("%d\\n", geteuid()); }')
    (bundle.rootfs / "bin/who").chmod(0o4755)
    bundle.process |= {"user": {"uid": 1000, "gid": 1000}, "noNewPrivileges": forbidden}
    bundle.process["args"] = ["who"]
    assert runtime.run(bundle).stdout.strip() == expected


def test_15_the_default_filter(bundle: Bundle, runtime: Runtime) -> None:
    from kvmpy.container.default_filter import default_filter

    calls = {
        "unshare(CLONE_NEWUSER)": (272, 0x10000000, 1),
        "clone(CLONE_NEWUSER)": (56, 0x10000000 | 17, 1),
        "clone3": (435, 0, 38),
        "mount": (165, 0, 1),
        "keyctl": (250, 0, 1),
        "bpf": (321, 0, 1),
        "io_uring_setup": (425, 1, 1),
        "socket(AF_ALG)": (41, 38, 1),
        "socket(AF_VSOCK)": (41, 40, 1),
        "personality(ADDR_NO_RANDOMIZE)": (135, 0x40000, 1),
        "getpid": (39, 0, 0),
    }
    body = "".join(
        f'  errno = 0; syscall({number}, {argument}L, 5, 0, 0, 0); printf("%d\\n", errno);\n'
        for number, argument, _ in calls.values()
    )
    source = f"#include <errno.h>\n#include <stdio.h>\n#include <unistd.h>\nint main() {{\n{body}}}\n"
    compiled(bundle, "calls", source)
    bundle.linux["seccomp"] = default_filter()
    bundle.process["capabilities"] = {}
    seen = runtime.output(bundle, "grep Seccomp: /proc/self/status; calls").split()
    assert seen[:2] == ["Seccomp:", "2"]
    assert dict(zip(calls, map(int, seen[2:]), strict=True)) == {name: errno for name, (_, _, errno) in calls.items()}


# 16-20


def test_16_chroot_leads_nowhere(bundle: Bundle, runtime: Runtime) -> None:
    """The old way out: a directory kept open, chroot below it, and up from there."""
    source = """
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int main() {
            int top = open("/", O_RDONLY);
            mkdir("/jail", 0700);
            printf("%d ", chroot("/jail"));
            fchdir(top);
            for (int i = 0; i < 100; i++) chdir("..");
            printf("%d ", chroot("."));
            printf("%d\\n", access("/mark", F_OK));
        }
    """
    compiled(bundle, "breakout", source)
    (bundle.rootfs / "mark").touch()
    bundle.process["capabilities"] = {name: ["CAP_SYS_CHROOT"] for name in ("bounding", "effective", "permitted")}
    assert runtime.output(bundle, "breakout") == "0 0 0"  # it went up, and came out at its own root


KILLED_BY_ITSELF = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from kvmpy.container import operations as ops
from kvmpy.container.state import Store
from kvmpy.container.verbs import create

class Die(ops.Operation):
    def describe(self): return "die"
    def write(self, tape): tape.ask()
    def answer(self, launch): os.kill(os.getpid(), signal.SIGKILL)

creation = create.prepare(Store(sys.argv[2]), sys.argv[3], sys.argv[4], create.Extras())
creation.plan.operations.insert(int(sys.argv[5]), Die())
creation.run()
"""
KILLED_IN_A_STEP = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from kvmpy.container.state import Store, State
from kvmpy.container.cgroup import v1, v2
from kvmpy.container.verbs import create
from kvmpy.container.launch import Launch

of, name, after = sys.argv[5].split(".")
kind = {"Store": Store, "State": State, "Launch": Launch, "Cgroup": v1.CgroupV1, "Create": create}[of]
whole = getattr(kind, name)

def dies(*arguments, **named):
    if after == "after":
        whole(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(kind, name, dies)
creation = create.prepare(Store(sys.argv[2]), sys.argv[3], sys.argv[4], create.Extras(pid_file=sys.argv[4] + "/pid"))
creation.run()
"""
STEPS = [
    f"{step}.{when}"
    for step in ("Store.new", "Cgroup.create", "Cgroup.apply", "Launch.start", "State.set_process",
                 "Create.leave_shortcuts", "Create.write_pid_file", "Launch.go_on")
    for when in ("before", "after")
]  # fmt: skip
PACKAGE = str(Path(LAUNCHER).parents[3])


def killed_while_creating(script: str, bundle: Bundle, runtime: Runtime, name: str, argument: str) -> None:
    command = [sys.executable, "-I", "-c", script, PACKAGE, str(runtime.root), name, str(bundle.save()), argument]
    with tempfile.TemporaryFile("w+") as said:  # a container that is ready by then keeps what it was given
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=30)
        said.seek(0)
        assert done.returncode == -signal.SIGKILL, said.read()
    runtime.ok("delete", "--force", name)


@pytest.mark.usefixtures("no_stage_left")
def test_17_the_host_is_the_same_after_a_kill_at_every_operation(bundle: Bundle, runtime: Runtime) -> None:
    plan = prepare(Store(str(runtime.root)), "x", str(bundle.save()), Extras()).plan
    names = [type(operation).__name__ for operation in plan.operations]
    ready = names.index("TellReady")
    assert ready > 20
    before = host_state()
    for number in range(ready + 1):
        killed_while_creating(KILLED_BY_ITSELF, bundle, runtime, f"kill-{number}", str(number))
        assert left_since(before) == set(), names[number]
    assert list(runtime.root.iterdir()) == []


@pytest.mark.usefixtures("no_stage_left")
@pytest.mark.parametrize("step", STEPS)
def test_17_the_host_is_the_same_after_a_kill_at_every_step(bundle: Bundle, runtime: Runtime, step: str) -> None:
    if step.startswith("Cgroup") and os.geteuid() != 0:
        pytest.skip("needs root: control groups")
    if step.startswith("Cgroup") and not Path("/sys/fs/cgroup/memory").exists():
        pytest.skip("this host has no control groups of version 1")
    killed_while_creating(KILLED_IN_A_STEP, bundle, runtime, "kill-step", step)
    assert not runtime.root.exists() or list(runtime.root.iterdir()) == []


def stages() -> set[str]:
    """Return the processes that are stages just now."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if "memfd:stage" in os.readlink(process / "exe"):
                found.add(process.name)
    return found


@pytest.fixture
def no_stage_left() -> Iterator[None]:
    """No process that waits for something stays behind, after the time that a dying one may take."""
    before, end = stages(), time.monotonic() + 10
    yield
    while stages() - before and time.monotonic() < end:
        os.sched_yield()
    assert stages() - before == set()


def test_17_the_host_is_the_same_after_200_containers(bundle: Bundle, tmp_path: Path, unchanged_host: None) -> None:
    """In one process, so that a descriptor of each that stays open would be seen too."""
    bundle.save()
    store = Store(str(tmp_path / "root"))
    before = os.listdir("/proc/self/fd")
    for number in range(200):
        state = create(store, f"c{number}", str(bundle.directory), Extras())
        if number % 2:
            start(state, print)
        delete(state, True, print)
    assert os.listdir("/proc/self/fd") == before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert all(Path(f"/proc/{child}/exe").exists() for child in children)  # none is left unburied


def test_18_nobody_types_into_the_hosts_terminal(bundle: Bundle, runtime: Runtime) -> None:
    """CVE-2016-9962's kin: TIOCSTI on the caller's terminal, which is no controlling terminal of the container's."""
    source = """
        #include <errno.h>
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/ioctl.h>
        int main() { char c = 'x'; printf("%d %d\\n", ioctl(0, TIOCSTI, &c), open("/dev/tty", O_RDWR)); }
    """
    compiled(bundle, "type", source)
    bundle.process["args"] = ["type"]
    master, slave = os.openpty()
    done = subprocess.run(
        [*runtime.command, "--root", str(runtime.root), "run", "-b", str(bundle.save()), runtime.new_name()],
        stdin=slave, capture_output=True, text=True, timeout=30, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    os.close(master)
    assert done.stdout.split() == ["-1", "-1"]


@pytest.mark.root("making devices")
def test_19_a_made_device_cannot_be_opened(bundle: Bundle, runtime: Runtime) -> None:
    disk = next((path for path in Path("/sys/class/block").iterdir()), None)
    if disk is None or not Path("/sys/fs/cgroup/devices").exists():
        pytest.skip("this host has no disk, or no devices controller of version 1")
    major, minor = (disk / "dev").read_text().strip().split(":")
    bundle.sh(f"mknod /tmp/disk b {major} {minor} && ls -l /tmp/disk | cut -c1 && head -c1 /tmp/disk")
    done = runtime.run(bundle)
    assert done.stdout.strip() == "b"
    assert "Operation not permitted" in done.stderr


@pytest.mark.root("the ids of others")
def test_20_groups_cannot_be_dropped_without_privilege(bundle: Bundle, runtime: Runtime) -> None:
    """CVE-2014-8989: who is kept out as a member of a group must not leave it in a user namespace of one id."""
    bundle.linux["namespaces"].append({"type": "user"})
    for field in ("uidMappings", "gidMappings"):
        bundle.linux[field] = [{"containerID": 0, "hostID": 65534, "size": 1}]
    for path in (bundle.rootfs, *bundle.rootfs.rglob("*")):
        os.lchown(path, 65534, 65534)
    bundle.config["mounts"][2]["options"].remove("gid=5")
    source = """
        #include <errno.h>
        #include <grp.h>
        #include <stdio.h>
        int main() { gid_t g = 5; setgroups(1, &g); printf("%d\\n", errno); }
    """
    compiled(bundle, "groups", source)
    del bundle.linux["resources"]
    top = Path(tempfile.mkdtemp())
    os.chown(top, 65534, 65534)
    bundle.directory.chmod(0o755)
    shutil.copytree(bundle.save(), top / "bundle")
    command = [
        "/usr/bin/python3",
        "-I",
        "-S",
        IN_PYTHON[3],
        "--root",
        str(top / "root"),
        "run",
        "-b",
        str(top / "bundle"),
    ]
    bundle.process["args"] = ["groups"]
    config = json.loads((bundle.save() / "config.json").read_text())
    (top / "bundle/config.json").write_text(json.dumps(config))
    try:
        readable = subprocess.run(
            ["/usr/bin/python3", "-c", f"open({IN_PYTHON[3]!r})"], user=65534, capture_output=True
        )
        if readable.returncode:
            pytest.skip("an ordinary user cannot read this Python or this checkout")
        done = subprocess.run(
            [*command, "single"],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.stdout.strip(), done.stderr) == ("1", "")  # EPERM
    finally:
        shutil.rmtree(top)


# 21 and 24-30


@pytest.mark.parametrize("name", ["..", "a/b", "../../etc", ".", "a b", ""])
def test_21_a_name_is_no_path(bundle: Bundle, runtime: Runtime, name: str) -> None:
    for verb in (("create", "-b", bundle.save()), ("state",), ("delete", "--force"), ("start",)):
        assert runtime.error(*verb, "--", name).startswith("invalid id format: ")


@pytest.mark.root("control groups")
def test_24_a_group_that_climbs_out_and_a_fork_bomb(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["cgroupsPath"] = "/../../x"
    assert "leads upwards" in runtime.error("create", "-b", bundle.save(), "x")
    del bundle.linux["cgroupsPath"]
    bundle.linux["resources"]["pids"] = {"limit": 20}
    bundle.sh("i=0; while [ $i -lt 50 ]; do sleep 1000 & i=$((i+1)); echo $i; done")
    done = runtime.run(bundle)
    assert "fork" in done.stderr
    assert done.stdout.split()[-1] == "19"  # the shell is the twentieth


@pytest.mark.root("control groups")
@pytest.mark.parametrize("path", ["/", "//", ".", "./", "/."])
def test_24_the_hosts_own_group_is_refused(bundle: Bundle, runtime: Runtime, path: str) -> None:
    """All that is in a container's group is killed with it."""
    bundle.linux["cgroupsPath"] = path
    assert runtime.error("create", "-b", bundle.save(), "x").endswith("is the host's own group; name one below it")


@pytest.mark.root("control groups")
def test_24_a_group_of_others_is_refused(bundle: Bundle, runtime: Runtime) -> None:
    from kvmpy.container.cgroup import open_cgroup

    path = f"/kvmpy-others-{os.getpid()}"
    group = open_cgroup(path)
    group.create()
    writes = "; ".join(f"echo 0 > {file}" for file in group.join_files())
    with subprocess.Popen(["sh", "-c", f"{writes}; echo; exec sleep 1000"], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        try:
            bundle.linux["cgroupsPath"] = path
            line = runtime.error("create", "-b", bundle.save(), "x")
            assert line.startswith("linux.cgroupsPath: ")
            assert line.endswith("has processes of others in it")
            runtime.ok("delete", "--force", "x")
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()
            group.remove()


@pytest.mark.root("control groups")
def test_25_delete_kills_every_process(bundle: Bundle, runtime: Runtime, created: str) -> None:
    """Also without a pid namespace, and those that have left the session."""
    bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] != "pid"]
    pids = bundle.rootfs / "tmp/pids"
    bundle.sh("for i in 1 2 3; do sh -c 'echo $$ >> /tmp/pids; exec sleep 1000' & done; exec sleep 1000")
    done = runtime("run", "--detach", "-b", bundle.save(), created)
    assert done.returncode == 0
    while not pids.exists() or len(pids.read_text().split()) < 3:
        os.sched_yield()
    runtime.ok("delete", "--force", created)
    assert [start_time(int(pid)) for pid in pids.read_text().split()] == [0, 0, 0]


def test_26_a_pid_of_another_is_left_alone(bundle: Bundle, runtime: Runtime, created: str) -> None:
    runtime.ok("create", "-b", bundle.save(), created)
    pid = runtime.state(created)["pid"]
    with sleeping() as other:
        kept = runtime.root / created / "pid"
        started = kept.read_text().split()[1]
        kept.write_text(f"{other.pid} {started}")
        assert runtime.state(created)["status"] == "stopped"
        assert "not running" in runtime.error("kill", created, "9")
        assert other.poll() is None
        kept.write_text(f"{pid} {started}")


@pytest.mark.usefixtures("no_stage_left")
@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_27_a_failing_hook_leaves_nothing(bundle: Bundle, runtime: Runtime, created: str, kind: str) -> None:
    bundle.config["hooks"] = {kind: [{"path": "/bin/false"}]}
    before = host_state()
    if kind == "startContainer":
        runtime.ok("create", "-b", bundle.save(), created)
        assert runtime.error("start", created).startswith("hooks.startContainer[0]: /bin/false: exit status 1")
        runtime.ok("delete", "--force", created)
    else:
        assert runtime.error("create", "-b", bundle.save(), created).startswith(
            f"hooks.{kind}[0]: /bin/false: exit sta"
        )
    assert left_since(before) == set()


@pytest.mark.root("control groups")
def test_28_paused(bundle: Bundle, runtime: Runtime, created: str) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    assert runtime("run", "--detach", "-b", bundle.save(), created).returncode == 0
    pid = runtime.state(created)["pid"]
    runtime.ok("pause", created)
    assert "cannot exec in a paused container" in runtime.error("exec", created, "true", code=255)
    runtime.ok("delete", "--force", created)
    assert start_time(pid) == 0


def test_29_unknown_names_are_errors(bundle: Bundle, runtime: Runtime) -> None:
    bundle.process["capabilities"]["bounding"].append("CAP_EVERYTHING")
    assert "there is no capability 'CAP_EVERYTHING'" in runtime.error("create", "-b", bundle.save(), "x")
    bundle.process["capabilities"] = {}
    rule = {"names": ["getpid", "open_everything"], "action": "SCMP_ACT_ERRNO"}
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    assert "no system call 'open_everything'" in runtime.error("create", "-b", bundle.save(), "x")


def test_30_exec_fails_closed(bundle: Bundle, runtime: Runtime, created: str) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    assert runtime("run", "--detach", "-b", bundle.save(), created).returncode == 0
    runtime.error("exec", "--user", "nobody", created, "touch", "/tmp/ran", code=255)
    runtime.error("exec", "--cwd", "/no/where", created, "touch", "/tmp/ran", code=255)
    runtime.error("exec", "--cwd", "/bin/sh", created, "touch", "/tmp/ran", code=255)
    assert not (bundle.rootfs / "tmp/ran").exists()


# CVE-2025-52565, CVE-2025-52881


def test_cve_2025_52565_the_console_is_the_terminal_that_was_made(
    bundle: Bundle, runtime: Runtime, created: str, tmp_path: Path
) -> None:
    """The image has its own /dev/console and /dev/pts/0: the first is a link, the second never opened by its path."""
    directory = tempfile.mkdtemp()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/console")
        listener.listen()
        masters: list[int] = []

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                masters.extend(socket.recv_fds(connection, 4096, 4)[1])

        (bundle.rootfs / "dev").mkdir()
        (bundle.rootfs / "dev/console").symlink_to("/etc/passwd")
        bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] != "/dev"]
        bundle.process["terminal"] = True
        thread = threading.Thread(target=take)
        thread.start()
        line = runtime.error("create", "-b", bundle.save(), "--console-socket", f"{directory}/console", created)
        thread.join()
    for master in masters:
        os.close(master)
    shutil.rmtree(directory)
    assert line.endswith("too many levels of symbolic links")


def test_cve_2025_52881_sysctls_go_to_a_proc_of_our_own(bundle: Bundle, runtime: Runtime) -> None:
    """The image puts a tmpfs over /proc/sys: what is written for a sysctl must not land there."""
    bundle.linux["sysctl"] = {"net.ipv4.ip_default_ttl": "77"}
    bundle.config["mounts"].append({"destination": "/proc/sys/net", "type": "tmpfs", "source": "t"})
    bundle.linux["readonlyPaths"] = []
    assert runtime.output(bundle, "ls /proc/sys/net; umount /proc/sys/net 2> /dev/null; true") == ""
    bundle.config["mounts"].pop()
    assert runtime.output(bundle, "cat /proc/sys/net/ipv4/ip_default_ttl") == "77"
