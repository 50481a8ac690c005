"""config.json: what is wrong is told with its field, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from container.oci import Bundle, Runtime

from kvmpy.container.capabilities import mask
from kvmpy.container.config import CONFIG, check
from kvmpy.container.host import absolute, parse_json, to_json
from kvmpy.container.mount_options import MountOptions
from kvmpy.container.rootfs import resolve
from kvmpy.errors import ContainerError

MINIMAL: dict[str, Any] = {"ociVersion": "1.0.2", "process": {"cwd": "/"}, "root": {"path": "rootfs"}}


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the minimal configuration with one field changed; a path's numbers make lists."""
    config: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    names = path.split(".")
    here: Any = config
    for name, following in zip(names, [*names[1:], ""], strict=True):
        last = following == ""
        new = value if last else [] if following.isdigit() else {}
        if name.isdigit():
            here.append(new)
            here = here[-1]
        elif last:
            here[name] = new
        else:
            here = here.setdefault(name, new)
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", 1, "config.json.ociVersion: 1 is not a text"),
        ("ociVersion", "2.0.0", "config.json.ociVersion: version 2.0.0 is unknown; kvmpy knows 1.0.0 to 1.2.1"),
        ("ociVersion", "one", "config.json.ociVersion: 'one' is no version; write 1.2.1"),
        ("process.cwd", "tmp", "config.json.process.cwd: 'tmp' is no absolute path"),
        ("process.cwd", "/a\0b", "config.json.process.cwd: the path has a zero byte"),
        ("process.terminal", "yes", "config.json.process.terminal: 'yes' is not true or false"),
        ("process.args", "true", "config.json.process.args: 'true' is not a list"),
        ("process.args", ["a", 2], "config.json.process.args[1]: 2 is not a text"),
        ("process.user.uid", -1, "config.json.process.user.uid: -1 is not a whole number from 0 to 4294967295"),
        ("process.user.uid", True, "config.json.process.user.uid: True is not a whole number from 0 to 4294967295"),
        ("process.rlimits.0.type", "RLIMIT_CPU", "config.json.process.rlimits[0].soft is missing"),
        ("root.path", "", "config.json.root.path: the path is empty"),
        ("mounts.0.type", "proc", "config.json.mounts[0].destination is missing"),
        ("linux.namespaces.0.type", "net", "config.json.linux.namespaces[0].type: 'net' is not one of user, cgroup, "),
        ("linux.resources.memory.limit", "1G", "config.json.linux.resources.memory.limit: '1G' is not a whole number"),
        ("linux.sysctl", {"net.x": 1}, "config.json.linux.sysctl.net.x: 1 is not a text"),
        ("linux.seccomp.syscalls", [], "config.json.linux.seccomp.defaultAction is missing"),
        ("hooks.poststop.0.path", "x", "config.json.hooks.poststop[0].path: 'x' is no absolute path"),
        ("hooks", [], "config.json.hooks: [] is not an object"),
        ("annotations.a", 1, "config.json.annotations.a: 1 is not a text"),
    ],
)
def test_an_error_names_its_field(path: str, value: object, message: str) -> None:
    with pytest.raises(ContainerError) as caught:
        check(changed(path, value), CONFIG, "config.json")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("field", ["ociVersion", "process.cwd", "root.path"])
def test_what_the_specification_requires(field: str) -> None:
    config = json.loads(json.dumps(MINIMAL))
    *above, name = field.split(".")
    del (config[above[0]] if above else config)[name]
    with pytest.raises(ContainerError, match=rf"^config.json.{field} is missing$"):
        check(config, CONFIG, "config.json")


def test_unknown_fields_and_nulls_are_accepted() -> None:
    config = changed("linux.resources.future", {"x": 1}) | {"windows": {}, "hooks": None}
    checked = check(config, CONFIG, "config.json")
    assert checked["linux"]["resources"]["future"] == {"x": 1}
    assert "hooks" not in checked


@pytest.mark.parametrize("text", ["", "{", "[1,]", "{}x", "\ufeff{}", "nul", '{"a": 1' + "}" * 3, "[" * 100_000])
def test_what_is_no_json(bundle: Bundle, runtime: Runtime, text: str) -> None:
    (bundle.directory / "config.json").write_text(text)
    line = runtime.error("create", "-b", bundle.directory, "x")
    assert line.startswith(f"{bundle.directory}/config.json is no JSON: ")
    assert not (runtime.root / "x").exists()


def test_a_file_that_is_not_there(runtime: Runtime, tmp_path: Path) -> None:
    line = runtime.error("create", "-b", tmp_path, "x")
    assert line == f"{tmp_path}/config.json: no such file or directory"


def test_bytes_that_are_no_text(bundle: Bundle, runtime: Runtime) -> None:
    (bundle.directory / "config.json").write_bytes(b'{"ociVersion": "\xff"}')
    assert "is no JSON: 'utf-8' codec" in runtime.error("create", "-b", bundle.directory, "x")


@pytest.mark.root("control groups")
@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("linux.namespaces", [{"type": "pid"}], "linux.namespaces: 'mount' is missing; without it the mounts would"),
        ("linux.namespaces", [{"type": "mount"}, {"type": "mount"}], "linux.namespaces[1].type: mount is there twice"),
        (
            "linux.namespaces",
            [{"type": "mount"}, {"type": "ipc", "path": "/none"}],
            "linux.namespaces[1].path: /none: no",
        ),
        (
            "linux.namespaces",
            [{"type": "mount"}],
            "hostname: it would change the host's; add 'uts' to linux.namespaces",
        ),
        (
            "linux.namespaces",
            [{"type": "mount", "path": "/proc/self/ns/mnt"}],
            "mounts: the mount namespace is joined by",
        ),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings: there is no user name"),
        ("linux.timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets: there is no new time namespace"),
        ("linux.sysctl", {"kernel.panic": "1"}, "linux.sysctl: kernel.panic is the whole host's"),
        ("linux.sysctl", {"net/../kernel/panic": "1"}, "linux.sysctl: 'net/../kernel/panic' is no name of a sysctl"),
        ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt: kvmpy does not support it"),
        ("linux.cgroupsPath", "/a/../../b", "linux.cgroupsPath: '/a/../../b' leads upwards"),
        ("linux.resources", {"cpu": {"cpus": "99"}}, "linux.resources.cpu.cpus: 99 cannot be written to "),
        ("linux.resources", {"memory": {"limit": 4096, "swap": 1}}, "linux.resources.memory.swap: 1 cannot be written"),
        ("linux.resources", {"hugepageLimits": [{"pageSize": "3KB", "limit": 1}]}, "linux.resources.hugepageLimits: "),
        ("linux.devices", [{"type": "c", "path": "/dev/x"}], "linux.devices[0]: major and minor are missing"),
        ("root.path", "nothing", "root.path: "),
        ("process.args", [], "process.args is missing; it is the program and its arguments"),
        (
            "process.capabilities",
            {"bounding": ["CAP_ALL"]},
            "process.capabilities.bounding: there is no capability 'CAP_A",
        ),
        (
            "process.capabilities",
            {"bounding": ["CHOWN"]},
            "process.capabilities.bounding: there is no capability 'CHOWN'",
        ),
        ("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], "process.rlimits[0].type: there is no limit"),
        (
            "process.rlimits",
            [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}],
            "process.rlimits[0].soft: 2 is more than the",
        ),
        (
            "process.rlimits",
            [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2,
            "process.rlimits[1].type: RLIMIT_CPU is t",
        ),
        ("process.scheduler", {"policy": "SCHED_X"}, "process.scheduler.policy: 'SCHED_X' is not one of SCHED_OTHER"),
        ("process.ioPriority", {"class": "X"}, "process.ioPriority.class: 'X' is not one of IOPRIO_CLASS_RT"),
        ("process.terminal", True, "process.terminal: a terminal needs --console-socket"),
        ("mounts", [{"destination": "/x"}], "mounts[0].type is missing; only a bind mount has none"),
        ("mounts", [{"destination": "/x", "options": ["bind"]}], "mounts[0].source is missing"),
        ("mounts", [{"destination": "/x", "type": "nofs"}], "mount nofs on /x: no such device"),
        ("mounts", [{"destination": "/x", "type": "tmpfs", "options": ["y=1"]}], "mount tmpfs on /x, y=1: invalid arg"),
        ("mounts", [{"destination": "/x", "source": "/none", "options": ["bind"]}], "mounts[0].source: /none: no such"),
    ],
)
def test_what_cannot_be_leaves_nothing(
    bundle: Bundle, runtime: Runtime, part: str, value: object, message: str
) -> None:
    *above, name = part.split(".")
    (bundle.config[above[0]] if above else bundle.config)[name] = value
    assert runtime.error("create", "-b", bundle.save(), "x").startswith(message)
    assert not (runtime.root / "x").exists()


def test_options_sort_themselves() -> None:
    options = MountOptions("ro nosuid rw rbind rprivate rro mode=755 nr_blocks sync idmap defaults".split())
    assert options.attributes == (2, 1)  # nosuid is set, ro cleared
    assert options.recursive == (1, 0)
    assert options.propagation == [(1 << 18, True)]
    assert options.data == [("mode", "755"), ("nr_blocks", None), ("sync", None)]
    assert options.bind
    assert options.bind_all
    assert options.idmap


def test_the_last_atime_wins() -> None:
    assert MountOptions(["noatime", "strictatime"]).attributes == (0x20, 0x70)
    assert MountOptions(["strictatime", "relatime"]).attributes == (0, 0x70)


def test_capabilities_have_the_kernels_numbers() -> None:
    assert mask(["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"], "x") == 1 | 1 << 21 | 1 << 40


@pytest.mark.parametrize(
    ("path", "base", "expected"),
    [
        ("a/b", "/c", "/c/a/b"),
        ("/a/../../b", "/c", "/b"),
        ("//a/./b/", "/", "/a/b"),
        ("..", "/c", "/"),
        ("", "/c", "/c"),
    ],
)
def test_absolute_paths(path: str, base: str, expected: str) -> None:
    assert absolute(path, base) == expected


def test_links_are_followed_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("/run")
    (tmp_path / "up").symlink_to("../../../etc")
    (tmp_path / "loop").symlink_to("loop")
    root = str(tmp_path)
    assert resolve(root, "/var/run/x/y", []) == "/run/x/y"
    assert resolve(root, "/up/passwd", []) == "/etc/passwd"
    assert resolve(root, "/var/run/x", ["/var"]) == "/var/run/x"
    assert resolve(root, "/loop/x", []) == "/loop/x"


@pytest.mark.parametrize("value", [{}, {"a": [1, -2.5, 'x"\n\u20ac', None, True]}, [], "", 0])
def test_json_is_what_the_standard_library_says(value: object) -> None:
    assert json.loads(to_json(value)) == value
    assert parse_json(f" \n{json.dumps(value)}\n ") == value
