"""What a configuration makes of a container, seen from inside; what is expected the specification and kernel say."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from container.oci import IN_PYTHON, Bundle, Runtime
from peers import require

NAMESPACE_FILES = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup", "user": "user"}


def mounts_of(text: str) -> dict[str, tuple[str, set[str]]]:
    """Return (filesystem, options) by mount point from lines of mount(8)."""
    found = {}
    for line in text.splitlines():
        _, _, point, _, kind, options = line.split(" ", 5)
        found[point] = kind, set(options.strip("()").split(","))
    return found


def bind(source: Path | str, target: str, *options: str) -> dict[str, object]:
    return {"destination": target, "source": str(source), "options": ["bind", *options]}


# Namespaces


@pytest.mark.root("namespaces without a user namespace")
@pytest.mark.parametrize("kind", NAMESPACE_FILES)
def test_a_namespace_is_joined_by_its_path(bundle: Bundle, runtime: Runtime, kind: str) -> None:
    file = NAMESPACE_FILES[kind]
    option = {"network": "--net", "user": "--user", "cgroup": "--cgroup"}.get(kind, f"--{kind}")
    more = ["--fork"] if kind == "pid" else ["--map-root-user"] if kind == "user" else []
    holder = subprocess.Popen(["unshare", option, *more, "sh", "-c", "echo; read x"], stdin=-1, stdout=-1)
    assert holder.stdout
    holder.stdout.readline()
    try:
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        pid = int(children[0]) if kind == "pid" else holder.pid
        path = f"/proc/{pid}/ns/{file}"
        theirs = os.readlink(path)
        bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] != kind]
        bundle.linux["namespaces"].append({"type": kind, "path": path})
        if kind == "user":  # it has one group, and that is not 5
            bundle.config["mounts"][2]["options"].remove("gid=5")
            bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] != "cgroup"]
        assert runtime.output(bundle, f"readlink /proc/self/ns/{file}") == theirs
        if kind == "user":
            assert runtime.output(bundle, "cat /proc/self/uid_map").split() == ["0", "0", "1"]
    finally:
        holder.kill()
        for pid in map(int, children):
            os.kill(pid, 9)
        holder.wait()
        holder.stdout.close()
        assert holder.stdin
        holder.stdin.close()


@pytest.mark.root("namespaces without a user namespace")
def test_a_namespace_that_is_not_asked_for_is_the_hosts(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["namespaces"] = [{"type": "mount"}, {"type": "uts"}]
    seen = runtime.output(bundle, "for n in /proc/self/ns/*; do readlink $n; done").split()
    for file in ("pid", "net", "ipc", "user", "cgroup"):
        assert os.readlink(f"/proc/self/ns/{file}") in seen


@pytest.mark.root("the ids of others")
def test_ids_are_mapped(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["namespaces"].append({"type": "user"})
    for field in ("uidMappings", "gidMappings"):
        bundle.linux[field] = [{"containerID": 0, "hostID": 100000, "size": 1000}]
    for path in (bundle.rootfs, *bundle.rootfs.rglob("*")):
        os.lchown(path, 100000, 100000)
    script = "id -u; id -g; cat /proc/self/uid_map; touch /tmp/mine; cat /proc/self/setgroups; ls -l /dev/null"
    uid, gid, inside, outside, size, groups, *device = runtime.output(bundle, script).split()
    assert (uid, gid, inside, outside, size, groups) == ("0", "0", "0", "100000", "1000", "allow")
    assert device[0] == "crw-rw-rw-"
    assert (bundle.rootfs / "tmp/mine").stat().st_uid == 100000


def as_nobody(bundle: Bundle, wrapper: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a bundle without root, in a copy that nobody owns; its ids map to nobody's own and, it may be, more."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    shutil.copytree(bundle.save(), top / "bundle")
    for path in (top, top / "bundle", bundle.rootfs, *bundle.rootfs.rglob("*")):
        os.lchown(path, 65534, 65534)
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-I",
        "-S",
        IN_PYTHON[3],
    ]
    command += ["--root", str(top / "root"), "run", "-b", str(top / "bundle"), "rootless"]
    try:
        done = subprocess.run([*wrapper, *command], cwd="/", capture_output=True, text=True, timeout=30)
    finally:
        shutil.rmtree(top)
    if "can't open file" in done.stderr:
        pytest.skip("an ordinary user cannot read this checkout")
    return done


@pytest.mark.root("to become another user")
@pytest.mark.calls("newuidmap")
@pytest.mark.parametrize(("granted", "expected"), [(True, "0 65534 1 1 100000 500 7"), (False, "")])
def test_ids_of_others_are_mapped_by_newuidmap(bundle: Bundle, runtime: Runtime, granted: bool, expected: str) -> None:
    """/etc/subuid says which ids nobody may use; here one of the test's own, in a mount namespace."""
    bundle.linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user", "network")]
    del bundle.linux["resources"]
    for field in ("uidMappings", "gidMappings"):
        own = {"containerID": 0, "hostID": 65534, "size": 1}
        bundle.linux[field] = [own, {"containerID": 1, "hostID": 100000, "size": 500}]
    bundle.config["mounts"][2]["options"].remove("gid=5")
    bundle.process["user"] = {"uid": 7, "gid": 7}
    bundle.sh("cat /proc/self/uid_map; id -u")
    ids = bundle.directory / "ids"
    ids.write_text("nobody:100000:500\n" if granted else "")
    script = f'for f in subuid subgid; do touch /etc/$f; mount --bind {ids} /etc/$f; done; exec "$@"'
    had = [Path(f"/etc/{name}").exists() for name in ("subuid", "subgid")]
    done = as_nobody(bundle, ["unshare", "-m", "sh", "-c", script, "sh"])
    for name, there in zip(("subuid", "subgid"), had, strict=True):
        if not there:
            Path(f"/etc/{name}").unlink(missing_ok=True)
    if granted:
        assert done.stderr == ""
        assert " ".join(done.stdout.split()) == expected
    else:
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].endswith("newgidmap refused; see /etc/subuid and /etc/subgid")


@pytest.mark.root("the ids of others")
def test_an_idmapped_mount_shows_other_owners(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").touch()
    for path in (data, data / "file"):
        os.chown(path, 5, 6)
    bundle.process["user"] = {"uid": 1005, "gid": 1006}
    ids = [{"containerID": 0, "hostID": 1000, "size": 100}]
    bundle.config["mounts"].append(bind(data, "/data") | {"uidMappings": ids, "gidMappings": ids})
    assert runtime.output(bundle, "stat -c '%u %g' /data/file; touch /data/new") == "1005 1006"
    assert ((data / "new").stat().st_uid, (data / "new").stat().st_gid) == (5, 6)


@pytest.mark.root("namespaces without a user namespace")
def test_clocks_are_shifted(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5, "nanosecs": 7}}
    seconds, *offsets = runtime.output(bundle, "cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets").split()
    assert int(seconds) > 1_000_000
    assert offsets == ["monotonic", "5", "7", "boottime", "1000000", "0"]


def test_names(bundle: Bundle, runtime: Runtime) -> None:
    bundle.config["domainname"] = "example.org"
    seen = runtime.output(bundle, "hostname; cat /proc/sys/kernel/domainname").split()
    assert seen == ["box", "example.org"]


# Mounts


def test_mounts_have_their_types_and_options(bundle: Bundle, runtime: Runtime) -> None:
    bundle.config["mounts"].append(
        {
            "destination": "/deep/er",
            "type": "tmpfs",
            "source": "x",
            "options": ["noexec", "noatime", "size=1m", "mode=700"],
        }
    )
    mounts = mounts_of(runtime.output(bundle, "mount"))
    assert mounts["/proc"][0] == "proc"
    assert mounts["/dev/pts"][1] >= {"nosuid", "noexec", "mode=620", "ptmxmode=666"}
    assert mounts["/sys"][1] >= {"ro", "nosuid", "nodev", "noexec"}
    kind, options = mounts["/deep/er"]
    whose = {option for option in options if option.startswith(("uid=", "gid="))}  # in a user namespace it is told
    assert (kind, options - whose) == ("tmpfs", {"rw", "noexec", "noatime", "size=1024k", "mode=700"})


def test_binds_of_files_and_directories(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "a/sub").mkdir(parents=True)
    (tmp_path / "a/file").write_text("text")
    bundle.config["mounts"] += [
        bind(tmp_path / "a", "/a", "ro", "nosuid"),
        bind(tmp_path / "a/file", "/new/place/file"),
        bind("../bundle", "/here"),  # relative to the bundle
    ]
    script = "cat /a/file /new/place/file; ls /here; mount | grep ' /a '; touch /a/x || echo refused"
    bundle.sh(script)
    done = runtime.run(bundle)
    text, name, rest = done.stdout.partition("config.json\n")
    assert (text, name) == ("texttext", "config.json\n")
    assert "ro,nosuid" in rest
    assert rest.endswith("refused\n")


@pytest.mark.root("namespaces without a user namespace")
def test_a_recursive_bind_can_be_read_only_to_the_bottom(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    """The mount below is made in a mount namespace of the test's own."""
    (tmp_path / "a/below").mkdir(parents=True)
    bundle.config["mounts"] += [
        {"destination": "/flat", "source": str(tmp_path / "a"), "options": ["rbind", "ro"]},
        {"destination": "/all", "source": str(tmp_path / "a"), "options": ["rbind", "rro"]},
    ]
    bundle.sh("touch /flat/below/x && echo wrote; touch /all/below/x || echo refused; touch /flat/x || echo refused")
    inner = f'mount -t tmpfs none {tmp_path}/a/below && exec "$@"'
    wrapped = Runtime(("unshare", "-m", "sh", "-c", inner, "sh", *runtime.command), runtime.root)
    assert wrapped.run(bundle).stdout.split() == ["wrote", "refused", "refused"]


@pytest.mark.parametrize(
    ("option", "field"), [("rshared", "shared:"), ("rslave", ""), ("rprivate", ""), ("runbindable", "unbindable")]
)
def test_propagation_of_a_mount(bundle: Bundle, runtime: Runtime, tmp_path: Path, option: str, field: str) -> None:
    bundle.config["mounts"].append(bind(tmp_path, "/p", option))
    line = runtime.output(bundle, "grep ' /p ' /proc/self/mountinfo")
    optional = line.split(" - ")[0].split(" ", 6)[6:]
    assert (field in optional[0]) if field else optional == []


@pytest.mark.parametrize(("value", "field"), [("rshared", "shared:"), ("private", ""), ("unbindable", "unbindable")])
def test_propagation_of_the_root(bundle: Bundle, runtime: Runtime, value: str, field: str) -> None:
    bundle.linux["rootfsPropagation"] = value
    line = runtime.output(bundle, "grep ' / / ' /proc/self/mountinfo || grep ' / ' /proc/self/mountinfo").splitlines()[
        0
    ]
    optional = line.split(" - ")[0].split(" ")[6:]
    assert any(word.startswith(field) for word in optional) if field else optional == []


@pytest.mark.root("the ids of others")
def test_tmpcopyup_begins_with_what_the_image_has(bundle: Bundle, runtime: Runtime) -> None:
    (bundle.rootfs / "etc/sub").mkdir()
    (bundle.rootfs / "etc/sub/file").write_text("x" * 100_000)
    (bundle.rootfs / "etc/sub/file").chmod(0o640)
    os.chown(bundle.rootfs / "etc/sub/file", 3, 4)
    (bundle.rootfs / "etc/link").symlink_to("sub/file")
    bundle.config["mounts"].append(
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=755"]}
    )
    script = "stat -c '%a %u %g %s' /etc/sub/file; readlink /etc/link; wc -l < /etc/passwd; echo new > /etc/passwd"
    assert runtime.output(bundle, script).splitlines() == ["640 3 4 100000", "sub/file", "2"]
    assert (bundle.rootfs / "etc/passwd").read_text().count("\n") == 2


def test_a_mount_can_be_changed_later(bundle: Bundle, runtime: Runtime) -> None:
    bundle.config["mounts"].append({"destination": "/dev/shm", "options": ["remount", "ro", "exec"]})
    options = mounts_of(runtime.output(bundle, "mount"))["/dev/shm"][1]
    assert "ro" in options
    assert "noexec" not in options


def test_a_read_only_dev_has_its_devices(bundle: Bundle, runtime: Runtime) -> None:
    next(mount for mount in bundle.config["mounts"] if mount["destination"] == "/dev")["options"].append("ro")
    bundle.sh("touch /dev/x || cat /dev/null; ls /dev/zero")
    assert runtime.run(bundle).stdout == "/dev/zero\n"


def test_a_long_option_of_a_filesystem(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    """fsconfig(2) takes 255 bytes; an overlay of several layers has more."""
    layers = [tmp_path / (f"{n}" * 120) for n in range(3)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / f"f{number}").touch()
    bundle.config["mounts"].append(
        {
            "destination": "/o",
            "type": "overlay",
            "source": "overlay",
            "options": ["lowerdir=" + ":".join(map(str, layers))],
        }
    )
    assert runtime.output(bundle, "ls /o").split() == ["f0", "f1", "f2"]


def test_a_destination_stays_inside(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    """Test 8 of what makes a runtime safe: by `..`, by absolute and dangling links (CVE-2024-45310)."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle.rootfs / "abs").symlink_to(str(outside))
    (bundle.rootfs / "up").symlink_to("../../../../../.." + str(outside))
    for target in ("/abs/new", "/up/newer", "/../../dots"):
        bundle.config["mounts"].append({"destination": target, "type": "tmpfs", "source": "t"})
    mounts = mounts_of(runtime.output(bundle, "mount"))
    assert {f"{outside}/new", f"{outside}/newer", "/dots"} <= set(mounts)
    assert list(outside.iterdir()) == []
    assert (bundle.rootfs / str(outside)[1:] / "new").is_dir()


# Devices and paths


@pytest.mark.root("making devices")
def test_devices_as_configured(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["devices"] = [
        {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 1, "gid": 2},
        {"type": "b", "path": "/dev/sub/block", "major": 7, "minor": 300},
        {"type": "p", "path": "/tmp/pipe", "fileMode": 0o600},
    ]
    script = "stat -c '%F %t:%T %a %u:%g' /dev/fuse /dev/sub/block /tmp/pipe /dev/null"
    assert runtime.output(bundle, script).splitlines() == [
        "character special file a:e5 640 1:2",
        "block special file 7:12c 666 0:0",
        "fifo 0:0 600 0:0",
        "character special file 1:3 666 0:0",
    ]


@pytest.mark.root("making devices")
def test_device_rules(bundle: Bundle, runtime: Runtime) -> None:
    if not Path("/sys/fs/cgroup/devices").exists():
        pytest.skip("this host has no devices controller of version 1")
    bundle.linux["devices"] = [{"type": "c", "path": "/dev/tun", "major": 10, "minor": 200}]
    bundle.sh("cat /dev/null && echo null; (: < /dev/tun)")
    assert "open /dev/tun: Operation not permitted" in runtime.run(bundle).stderr
    bundle.linux["resources"]["devices"].append({"allow": True, "type": "c", "major": 10, "minor": 200, "access": "r"})
    assert "not permitted" not in runtime.run(bundle).stderr


def test_masked_and_read_only_paths(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["maskedPaths"] += ["/etc/passwd", "/home", "/nothing/here", "/etc/group/x"]
    bundle.linux["readonlyPaths"] += ["/tmp", "/etc/group", "/nothing"]
    bundle.sh("wc -c < /etc/passwd; ls /home | wc -l; touch /tmp/x || echo a; echo > /etc/group || echo b")
    assert runtime.run(bundle).stdout.split() == ["0", "0", "a", "b"]


def test_a_read_only_root(bundle: Bundle, runtime: Runtime) -> None:
    bundle.config["root"]["readonly"] = True
    bundle.sh("touch /x || echo refused; touch /dev/shm/x && echo wrote")
    assert runtime.run(bundle).stdout.split() == ["refused", "wrote"]


def test_sysctl_of_the_containers_own(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmni": "77"}
    assert runtime.output(bundle, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni").split() == ["1", "77"]


# The process


def status(bundle: Bundle, runtime: Runtime) -> dict[str, str]:
    lines = runtime.output(bundle, "cat /proc/self/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.root("the ids of others")
def test_the_five_capability_sets(bundle: Bundle, runtime: Runtime) -> None:
    names = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    bundle.process["capabilities"] = names
    bundle.process["user"] = {"uid": 1000, "gid": 1001}  # for root execve(2) computes the sets anew
    seen = status(bundle, runtime)
    assert int(seen["CapBnd"], 16) == 1 | 1 << 5 | 1 << 13
    assert int(seen["CapInh"], 16) == 1 << 5
    assert int(seen["CapAmb"], 16) == 1 << 5
    assert int(seen["CapPrm"], 16) == 1 << 5  # of a user's program only what is ambient is left


@pytest.mark.root("the ids of others")
def test_user_groups_and_umask(bundle: Bundle, runtime: Runtime) -> None:
    bundle.process["user"] = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o077}
    script = "id -u; id -g; grep Groups /proc/self/status; umask"
    assert runtime.output(bundle, script).split() == ["7", "8", "Groups:", "9", "10", "0077"]


@pytest.mark.root("the ids of others")
def test_no_groups_of_the_callers(bundle: Bundle, runtime: Runtime) -> None:
    bundle.sh("grep Groups /proc/self/status")
    done = runtime.run(bundle, extra_groups=[33, 44])
    assert done.stdout.split() == ["Groups:"]


def test_no_new_privileges(bundle: Bundle, runtime: Runtime) -> None:
    assert status(bundle, runtime)["NoNewPrivs"] == "1"
    bundle.process["noNewPrivileges"] = False
    assert status(bundle, runtime)["NoNewPrivs"] == "0"


def test_resource_limits(bundle: Bundle, runtime: Runtime) -> None:
    bundle.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    lines = runtime.output(bundle, "cat /proc/self/limits").splitlines()
    assert next(line for line in lines if line.startswith("Max open files")).split()[3:5] == ["100", "200"]
    assert next(line for line in lines if line.startswith("Max core file size")).split()[4:6] == ["0", "0"]


def test_out_of_memory_score(bundle: Bundle, runtime: Runtime) -> None:
    bundle.process["oomScoreAdj"] = 321
    assert runtime.output(bundle, "cat /proc/self/oom_score_adj") == "321"


def test_scheduling_and_io_priority(bundle: Bundle, runtime: Runtime) -> None:
    bundle.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 5}
    bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE"}
    fields = runtime.output(bundle, "cat /proc/self/stat").rpartition(")")[2].split()
    assert (fields[16], fields[38]) == ("5", "3")  # proc(5): nice, policy (SCHED_BATCH)


def test_personality(bundle: Bundle, runtime: Runtime) -> None:
    bundle.linux["personality"] = {"domain": "LINUX32"}
    assert runtime.output(bundle, "cat /proc/self/personality") == "00000008"


def test_preserved_descriptors(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("handed on\n")
    bundle.sh("cat <&3; ls /proc/self/fd")
    caller = Runtime(("sh", "-c", f'exec 3< {tmp_path}/file 4< /; exec "$@"', "sh", *runtime.command), runtime.root)
    done = caller("run", "--preserve-fds", 1, "-b", bundle.save(), runtime.new_name())
    assert done.stdout.split() == ["handed", "on", "0", "1", "2", "3", "4"]  # 4 is ls's own


def test_annotations_are_in_the_state(bundle: Bundle, runtime: Runtime) -> None:
    bundle.config["annotations"] = {"org.example.key": "value"}
    name = runtime.new_name()
    runtime.ok("create", "-b", bundle.save(), name)
    try:
        assert runtime.state(name)["annotations"] == {"org.example.key": "value"}
    finally:
        runtime.ok("delete", "--force", name)


# Seccomp


def profile(bundle: Bundle, *rules: dict[str, object], default: str = "SCMP_ACT_ALLOW", **more: object) -> None:
    bundle.linux["seccomp"] = {
        "defaultAction": default,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rules,
        **more,
    }


def rule(*names: str, action: str = "SCMP_ACT_ERRNO", **more: object) -> dict[str, object]:
    return {"names": names, "action": action, **more}


def test_a_system_call_is_refused_with_its_errno(bundle: Bundle, runtime: Runtime) -> None:
    profile(bundle, rule("mkdir", "mkdirat", errnoRet=28), rule("symlink", "symlinkat"))
    bundle.sh("mkdir /x; ln -s a /y; grep Seccomp: /proc/self/status")
    done = runtime.run(bundle)
    assert done.stdout.split() == ["Seccomp:", "2"]
    assert "No space left" in done.stderr
    assert "Operation not permitted" in done.stderr


def test_a_rule_for_arguments(bundle: Bundle, runtime: Runtime) -> None:
    """kill(2) is refused for signal 12 only."""
    profile(bundle, rule("kill", args=[{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]))
    bundle.sh("trap 'echo usr1' USR1; kill -USR1 $$; kill -USR2 $$ || echo refused")
    assert sorted(runtime.run(bundle).stdout.split()) == ["refused", "usr1"]


def test_a_profile_is_compiled_once(bundle: Bundle, runtime: Runtime) -> None:
    profile(bundle, rule("mkdir"))
    assert runtime.run(bundle).returncode == 0
    (kept,) = (runtime.root / ".seccomp").iterdir()
    written = kept.stat().st_mtime_ns
    assert runtime.run(bundle).returncode == 0
    assert kept.stat().st_mtime_ns == written
    profile(bundle, rule("rmdir"))
    assert runtime.run(bundle).returncode == 0
    assert len(list((runtime.root / ".seccomp").iterdir())) == 2


@pytest.mark.parametrize(
    ("rules", "more", "message"),
    [
        (
            [rule("no_such_call")],
            {},
            "linux.seccomp.syscalls[0].names: this libseccomp knows no system call 'no_such_call'",
        ),
        ([rule("mkdir", action="SCMP_ACT_X")], {}, "linux.seccomp.syscalls[0].action: 'SCMP_ACT_X' is not one of"),
        (
            [],
            {"architectures": ["SCMP_ARCH_VAX"]},
            "linux.seccomp.architectures[0]: there is no architecture 'SCMP_ARCH_V",
        ),
        ([], {"flags": ["X"]}, "linux.seccomp.flags[0]: 'X' is not one of"),
        ([rule("mkdir", action="SCMP_ACT_NOTIFY")], {}, "linux.seccomp.listenerPath is missing"),
        (
            [rule("mkdir", args=[{"index": 0, "value": 1, "op": "X"}])],
            {},
            "linux.seccomp.syscalls[0].args[0].op: 'X' is",
        ),
    ],
)
def test_a_bad_profile(
    bundle: Bundle, runtime: Runtime, rules: list[dict[str, object]], more: dict[str, object], message: str
) -> None:
    profile(bundle, *rules)
    bundle.linux["seccomp"] |= more
    assert runtime.error("create", "-b", bundle.save(), "x").startswith(message)


def test_calls_that_are_newer_than_the_library(bundle: Bundle, runtime: Runtime) -> None:
    profile(bundle, rule("fchmodat2", "cachestat", "mseal", "statmount"))
    assert runtime.output(bundle, "echo fine") == "fine"


def test_what_is_newer_than_all_profiles_is_not_there(bundle: Bundle, runtime: Runtime) -> None:
    """An allow list does not name it; a C library that heard EPERM would not fall back on what it knows."""
    require("gcc")
    source = bundle.directory / "calls.c"
    calls = "165, 470, 1000, 0x40000001"  # mount, what nobody knows yet, and write in the x32 way
    source.write_text(
        "#include <errno.h>\n#include <stdio.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n"
        f"int main(void) {{ long calls[] = {{{calls}}};"
        ' for (int i = 0; i < 4; i++) printf("%d ", syscall(calls[i], -1, 0, 0, 0) < 0 ? errno : 0); }'
    )
    subprocess.run(["gcc", "-static", "-o", str(bundle.rootfs / "bin/calls"), str(source)], check=True)
    from kvmpy.container.default_filter import default_filter

    bundle.linux["seccomp"] = default_filter()
    assert runtime.output(bundle, "calls").split()[:3] == ["1", "38", "38"]


def test_another_process_is_asked(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    """The listener gets the container process state and the descriptor on which it would answer."""
    import json

    path = str(tmp_path / "listener")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    got: list[tuple[bytes, int]] = []

    def take() -> None:
        connection, _ = listener.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
            got.append((data, len(fds)))
            for fd in fds:
                got.append((os.readlink(f"/proc/self/fd/{fd}").encode(), 0))
                os.close(fd)

    thread = threading.Thread(target=take)
    thread.start()
    profile(bundle, rule("mkdir", action="SCMP_ACT_NOTIFY"), listenerPath=path, listenerMetadata="mine")
    try:
        assert runtime.output(bundle, "echo ran") == "ran"
    finally:
        thread.join(10)
        listener.close()
    (data, count), (kind, _) = got
    state = json.loads(data)
    assert count == 1
    assert kind == b"anon_inode:seccomp notify"
    assert (state["fds"], state["metadata"], state["state"]["status"]) == (["seccompFd"], "mine", "creating")
    assert state["pid"] == state["state"]["pid"] > 0


# Hooks


def hook(tmp_path: Path, kind: str, script: str = "cat") -> dict[str, object]:
    log = tmp_path / "log"
    return {
        "path": "/bin/sh",
        "args": ["sh", "-c", f"echo {kind} $(readlink /proc/self/ns/uts) $( ({script}) | wc -c) $A >> {log}"],
        "env": ["PATH=/bin:/usr/bin", "A=b"],
    }


def test_hooks_run_in_their_order_and_namespaces(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    bundle.config["mounts"].append(bind(log, str(log)))
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    bundle.config["hooks"] = {kind: [hook(tmp_path, kind)] for kind in kinds}
    inside = runtime.output(bundle, "readlink /proc/self/ns/uts")
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == list(kinds)
    host = os.readlink("/proc/self/ns/uts")
    assert [line[1] for line in lines] == [host, host, inside, inside, host, host]
    assert all(int(line[2]) > 100 and line[3] == "b" for line in lines)  # each got the state, and its environment


def test_nobody_has_signals_blocked(bundle: Bundle, runtime: Runtime, tmp_path: Path) -> None:
    """The runtime holds them back while it makes a container (proc(5), status, SigBlk)."""
    log = tmp_path / "log"
    log.touch()
    bundle.config["mounts"].append(bind(log, str(log)))
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    script = f"while read a b; do [ $a = SigBlk: ] && echo $b; done < /proc/self/status >> {log}; true"
    bundle.config["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", script]}] for kind in kinds}
    assert int(runtime.output(bundle, "grep SigBlk /proc/self/status").split()[1], 16) == 0
    assert [int(mask, 16) for mask in log.read_text().split()] == [0] * len(kinds)


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failing_hook_leaves_nothing(bundle: Bundle, runtime: Runtime, tmp_path: Path, kind: str) -> None:
    """Test 27: and poststop hooks still run (runtime.md, Lifecycle)."""
    bundle.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}],
        "poststop": [hook(tmp_path, "poststop")],
    }
    line = runtime.error("create", "-b", bundle.save(), "x")
    assert line.startswith(f"hooks.{kind}[0]: /bin/sh: exit status 3")
    assert (tmp_path / "log").read_text().startswith("poststop")
    assert not (runtime.root / "x").exists()


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer"])
def test_a_hook_has_its_time(bundle: Bundle, runtime: Runtime, kind: str) -> None:
    bundle.config["hooks"] = {kind: [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    assert runtime.error("create", "-b", bundle.save(), "x") == f"hooks.{kind}[0]: /bin/sleep: took longer than 1 s"


def test_a_missing_hook(bundle: Bundle, runtime: Runtime) -> None:
    bundle.config["hooks"] = {"createRuntime": [{"path": "/no/hook"}]}
    line = runtime.error("create", "-b", bundle.save(), "x")
    assert line == "hooks.createRuntime[0]: /no/hook: no such file or directory"


def test_hooks_after_the_start_only_warn(bundle: Bundle, runtime: Runtime) -> None:
    bundle.config["hooks"] = {kind: [{"path": "/bin/false"}] for kind in ("poststart", "poststop")}
    bundle.sh("echo ran")
    done = runtime.run(bundle)
    assert (done.stdout, done.returncode) == ("ran\n", 0)
    assert "hooks.poststart[0]: /bin/false: exit status 1" in done.stderr
    assert "hooks.poststop[0]: /bin/false: exit status 1" in done.stderr
