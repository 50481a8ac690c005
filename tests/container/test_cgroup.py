"""Control groups: version 1 on this host's hierarchies, version 2 as far as a hybrid host has it."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container.oci import IN_PYTHON, Bundle, Runtime

from kvmpy.container.cgroup import find_hierarchies, open_cgroup, reopen, unescape
from kvmpy.container.cgroup.base import ALWAYS_ALLOWED, Cgroup, Hierarchy
from kvmpy.container.cgroup.device_filter import program
from kvmpy.container.cgroup.v1 import CgroupV1
from kvmpy.container.cgroup.v2 import CgroupV2, cpu_weight, files_of
from kvmpy.errors import ContainerError

pytestmark = [
    pytest.mark.root("control groups"),
    pytest.mark.usefixtures("unchanged_host"),
]
HIERARCHIES = list(find_hierarchies())
V1 = [hierarchy for hierarchy in HIERARCHIES if hierarchy.version == 1]
V2 = [hierarchy for hierarchy in HIERARCHIES if hierarchy.version == 2]
NAME = f"kvmpy-group-{os.getpid()}"


@pytest.fixture(autouse=True)
def unchanged_controllers() -> Iterator[None]:
    """Which controllers the root of version 2 passes on is the host's: what a group enabled is taken back."""
    files = [Path(hierarchy.mounted) / "cgroup.subtree_control" for hierarchy in V2]
    before = [set(file.read_text().split()) for file in files]
    yield
    for file, names in zip(files, before, strict=True):
        for name in set(file.read_text().split()) - names:
            file.write_text(f"-{name}")


@pytest.fixture(params=["v1", "v2"])
def group(request: pytest.FixtureRequest) -> Iterator[Cgroup]:
    """A new group of each version that this host has."""
    made: Cgroup
    if request.param == "v1":
        if not V1:
            pytest.skip("this host has no hierarchy of version 1")
        made = CgroupV1.at(V1, f"/{NAME}/deep/er")
    else:
        if not V2:
            pytest.skip("this host has no hierarchy of version 2")
        made = CgroupV2.at(V2, f"/{NAME}/deep/er")
    made.create()
    yield made
    made.kill_all()
    made.remove()
    for directory in made.directories.values():
        for above in list(Path(directory).parents)[:2]:
            above.rmdir()


@contextlib.contextmanager
def join(group: Cgroup) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a group, which it joined by writing to what a container's process writes to."""
    writes = "; ".join(f"echo 0 > {path}" for path in group.join_files())
    with subprocess.Popen(["sh", "-c", f"{writes}; echo; exec sleep 1000"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_the_hosts_hierarchies_are_found() -> None:
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup" in line}
    assert {hierarchy.mounted for hierarchy in HIERARCHIES} == mounted


def test_processes_join_and_are_killed(group: Cgroup) -> None:
    with join(group) as process:
        assert group.pids() == [process.pid]
        group.kill_all()
        assert process.wait(10) == -9
        assert group.pids() == []


def test_processes_below_belong_to_the_group(group: Cgroup) -> None:
    below = type(group)({controllers: f"{directory}/below" for controllers, directory in group.directories.items()})
    below.create()
    with join(below) as process:
        assert group.pids() == [process.pid]
        group.kill_all()
        process.wait(10)
    group.remove()
    assert not any(Path(directory).exists() for directory in below.directories.values())


def test_freezing(group: Cgroup) -> None:
    if group.version == 1 and not group.controller("freezer"):  # type: ignore[attr-defined]
        pytest.skip("this host has no freezer")
    with join(group):
        assert not group.frozen()
        group.freeze(True)
        assert group.frozen()
        group.freeze(False)
        assert not group.frozen()


def test_what_is_kept_finds_it_again(group: Cgroup) -> None:
    again = reopen(group.directories)
    assert type(again) is type(group)
    assert again.process_directory() == group.process_directory()


def test_statistics_have_the_shape_of_runcs(group: Cgroup) -> None:
    statistics = group.statistics()
    assert set(statistics) == {"cpu", "memory", "pids"}
    assert statistics["cpu"]["usage"]["total"] >= 0
    assert statistics["memory"]["usage"]["limit"] == 0


def test_a_group_that_is_gone_is_empty(group: Cgroup) -> None:
    group.remove()
    assert group.pids() == []
    assert not group.frozen()
    group.remove()


@pytest.mark.parametrize("path", ["/a/../b", "..", "../../x", "/.."])
def test_a_path_that_climbs_out(path: str) -> None:
    """Test 24."""
    with pytest.raises(ContainerError, match="leads upwards"):
        open_cgroup(path)


def test_a_relative_path_is_below_our_own() -> None:
    hierarchy = Hierarchy(1, "memory", "/sys/fs/cgroup/memory", "/", "/user/me")
    assert hierarchy.directory("x/y") == "/sys/fs/cgroup/memory/user/me/x/y"
    assert hierarchy.directory("/x") == "/sys/fs/cgroup/memory/x"


def test_a_hierarchy_that_shows_a_part() -> None:
    """In a container the mount's root is the container's group, and our place is below it."""
    hierarchy = Hierarchy(2, "", "/sys/fs/cgroup", "/outer", "/outer/inner")
    assert hierarchy.directory("x") == "/sys/fs/cgroup/inner/x"


def test_blanks_in_paths() -> None:
    assert unescape("/a\\040b\\011c\\134d") == "/a b\tc\\d"


# Version 1: each limit is read back from the kernel


V1_LIMITS: list[tuple[str, str, dict[str, Any], str]] = [
    ("memory", "memory.limit_in_bytes", {"memory": {"limit": 32 << 20}}, str(32 << 20)),
    ("memory", "memory.soft_limit_in_bytes", {"memory": {"reservation": 16 << 20}}, str(16 << 20)),
    ("memory", "memory.swappiness", {"memory": {"swappiness": 7}}, "7"),
    ("memory", "memory.oom_control", {"memory": {"disableOOMKiller": True}}, "oom_kill_disable 1"),
    ("cpu", "cpu.shares", {"cpu": {"shares": 512}}, "512"),
    ("cpu", "cpu.cfs_quota_us", {"cpu": {"quota": 20000, "period": 50000}}, "20000"),
    ("cpu", "cpu.cfs_period_us", {"cpu": {"quota": 20000, "period": 50000}}, "50000"),
    ("cpu", "cpu.cfs_quota_us", {"cpu": {"quota": -1}}, "-1"),
    ("cpuset", "cpuset.cpus", {"cpu": {"cpus": "0"}}, "0"),
    ("cpuset", "cpuset.mems", {"cpu": {"mems": "0"}}, "0"),
    ("pids", "pids.max", {"pids": {"limit": 12}}, "12"),
    ("pids", "pids.max", {"pids": {"limit": -1}}, "max"),
    ("pids", "pids.max", {"pids": {"limit": 0}}, "max"),
]


@pytest.mark.parametrize(("controller", "file", "resources", "expected"), V1_LIMITS)
def test_a_limit_of_version_1(controller: str, file: str, resources: dict[str, Any], expected: str) -> None:
    if not any(controller in hierarchy.controllers.split(",") for hierarchy in V1):
        pytest.skip(f"this host has no {controller} controller of version 1")
    group = CgroupV1.at(V1, f"/{NAME}")
    group.create()
    try:
        group.apply(resources)
        directory = group.controller(controller)
        assert Path(f"{directory}/{file}").read_text().strip().startswith(expected)
    finally:
        group.remove()


def test_a_disk_is_throttled() -> None:
    disks = [path for path in Path("/sys/class/block").iterdir() if not (path / "partition").exists()]
    if not disks or not any("blkio" in hierarchy.controllers for hierarchy in V1):
        pytest.skip("this host has no disk, or no blkio controller of version 1")
    number = (disks[0] / "dev").read_text().strip()
    major, minor = map(int, number.split(":"))
    group = CgroupV1.at(V1, f"/{NAME}")
    group.create()
    try:
        group.apply({"blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}]}})
        assert (
            Path(f"{group.controller('blkio')}/blkio.throttle.read_bps_device").read_text() == f"{number} {1 << 20}\n"
        )
    finally:
        group.remove()


@pytest.mark.skipif(not any("memory" in h.controllers for h in V1), reason="no memory controller of version 1")
def test_memory_and_swap_move_together() -> None:
    """memory.limit_in_bytes must never be more than memory.memsw.limit_in_bytes: the order of writing depends."""
    group = CgroupV1.at(V1, f"/{NAME}")
    group.create()
    try:
        if not Path(f"{group.controller('memory')}/memory.memsw.limit_in_bytes").exists():
            pytest.skip("this kernel does not count swap")
        for size in (32 << 20, 64 << 20, 16 << 20):
            group.apply({"memory": {"limit": size, "swap": 2 * size}})
            statistics = group.statistics()["memory"]
            assert (statistics["usage"]["limit"], statistics["swap"]["limit"]) == (size, 2 * size)
    finally:
        group.remove()


def test_a_controller_that_is_missing_is_named() -> None:
    group = CgroupV1({"memory": "/nowhere"})
    with pytest.raises(ContainerError, match=r"^linux.resources.pids.limit: this host has no pids controller"):
        group.apply({"pids": {"limit": 1}})
    with pytest.raises(ContainerError, match=r"^linux.resources.rdma.mlx5_1: this host has no rdma controller"):
        group.apply({"rdma": {"mlx5_1": {"hcaHandles": 1}}})


@pytest.mark.parametrize("group", [CgroupV1({"blkio": "/nowhere"}), CgroupV2({"": "/nowhere"})])
def test_what_linux_has_no_more_is_named(group: Cgroup) -> None:
    with pytest.raises(ContainerError, match=r"^linux.resources.blockIO.leafWeight: Linux has had no such weight"):
        group.apply({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}})


def test_what_version_2_has_not_is_named() -> None:
    with pytest.raises(ContainerError, match=r"^linux.resources.network: version 2"):
        CgroupV2({"": "/nowhere"}).apply({"network": {"classID": 1}})


# Version 2: what its files would be, by the conversions that runc documents


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (1, 1), (1 << 30, 10000)])
def test_shares_become_a_weight(shares: int, weight: int) -> None:
    """1 + (shares - 2) * 9999 / 262142, as Kubernetes' KEP 2254 has it."""
    assert cpu_weight(shares) == weight


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"memory": {"limit": 100, "swap": 150}}, {"memory.max": 100, "memory.swap.max": 50}),
        ({"memory": {"limit": 100, "swap": 100}}, {"memory.max": 100, "memory.swap.max": 0}),
        ({"memory": {"limit": -1, "swap": -1}}, {"memory.max": "max", "memory.swap.max": "max"}),
        ({"memory": {"reservation": 50}}, {"memory.low": 50}),
        ({"cpu": {"quota": 5, "period": 10}}, {"cpu.max": "5 10"}),
        ({"cpu": {"quota": 5}}, {"cpu.max": "5 100000"}),
        ({"cpu": {"period": 10}}, {"cpu.max": "max 10"}),
        ({"cpu": {"quota": -1}}, {"cpu.max": "max 100000"}),
        ({"cpu": {"shares": 1024, "idle": 1, "cpus": "0-1", "mems": "0"}},
         {"cpu.weight": 39, "cpu.idle": 1, "cpuset.cpus": "0-1", "cpuset.mems": "0"}),
        ({"pids": {"limit": 0}}, {"pids.max": "max"}),
        ({"pids": {"limit": 7}}, {"pids.max": 7}),
        ({"blockIO": {"weight": 100, "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 9}]}},
         {"io.bfq.weight": 100, "io.max": "8:0 wiops=9"}),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}, {"hugetlb.2MB.max": 4}),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 16, "weight": 300}]}}, {"io.bfq.weight": "8:16 300"}),
        ({"rdma": {"mlx": {"hcaHandles": 3, "hcaObjects": 9}}}, {"rdma.max": "mlx hca_handle=3 hca_object=9"}),
        ({"rdma": {"mlx5_1": {"hcaObjects": 100}}}, {"rdma.max": "mlx5_1 hca_object=100"}),
    ],
)  # fmt: skip
def test_limits_become_files_of_version_2(resources: dict[str, Any], expected: dict[str, object]) -> None:
    assert {file: value for file, value, _ in files_of(resources)} == expected


@pytest.mark.skipif(not V2, reason="this host has no hierarchy of version 2")
def test_version_2_refuses_what_is_no_controllers_file() -> None:
    group = CgroupV2.at(V2, f"/{NAME}")
    group.create()
    try:
        for file in ("cgroup.procs", "../x", "a/b"):
            with pytest.raises(ContainerError, match="is no file of a controller"):
                group.apply({"unified": {file: "1"}})
        with pytest.raises(ContainerError, match=r"linux.resources.memory.limit: 5 cannot be written to .*lacks it"):
            group.apply({"memory": {"limit": 5}})
    finally:
        group.remove()


@pytest.mark.skipif(not V2, reason="this host has no hierarchy of version 2")
def test_a_limit_of_version_2() -> None:
    """Huge pages are all that a hybrid host counts in version 2."""
    if "hugetlb" not in (Path(V2[0].mounted) / "cgroup.controllers").read_text().split():
        pytest.skip("this host has no hugetlb controller of version 2")
    group = CgroupV2.at(V2, f"/{NAME}/below")
    group.create()
    try:
        group.apply({"hugepageLimits": [{"pageSize": "2MB", "limit": 8 << 20}]})
        assert Path(group.directory, "hugetlb.2MB.max").read_text() == f"{8 << 20}\n"
        group.apply({"unified": {"hugetlb.2MB.max": "max"}})
        assert Path(group.directory, "hugetlb.2MB.max").read_text() == "max\n"
    finally:
        group.remove()
        Path(group.directory).parent.rmdir()


@pytest.mark.skipif(not V2, reason="this host has no hierarchy of version 2")
def test_a_container_is_born_in_a_group_of_version_2(bundle: Bundle, runtime: Runtime) -> None:
    """Where the host shows nothing but version 2; in a mount namespace of the test's own."""
    inner = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    only_v2 = Runtime(("unshare", "-m", "sh", "-c", inner, "sh", *IN_PYTHON), runtime.root)
    bundle.linux["resources"] = {}
    bundle.linux["cgroupsPath"] = f"/{NAME}"
    bundle.config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]})
    bundle.sh("grep ^0: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs; ls -d /sys/fs/cgroup/cgroup.controllers")
    done = only_v2.run(bundle)
    assert done.stderr == ""
    own, *pids, file = done.stdout.split()
    assert own == "0::/"
    assert "1" in pids
    assert file == "/sys/fs/cgroup/cgroup.controllers"


def allowed(rules: list[dict[str, Any]], kind: str, major: int, minor: int, access: str) -> bool:
    """Run a device program: what each instruction does is said in the kernel's instruction-set document."""
    letters = {"m": 1, "r": 2, "w": 4}
    context = {0: {"b": 1, "c": 2}[kind] | sum(letters[letter] for letter in access) << 16, 4: major, 8: minor}
    code, registers, at = program(rules), [0] * 11, 0
    while True:
        operation, names, offset, number = struct.unpack_from("<BBhi", code, at * 8)
        at, target, source = at + 1, names & 15, names >> 4
        if operation == 0x61:
            registers[target] = context[offset]
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0xB7:
            registers[target] = number
        elif operation == 0x57:
            registers[target] &= number
        elif operation == 0x77:
            registers[target] >>= number
        elif operation in (0x15, 0x55):
            at += offset if (registers[target] == number) is (operation == 0x15) else 0
        else:
            assert operation == 0x95
            return bool(registers[0])


DENY_ALL = {"allow": False, "access": "rwm"}
TUN = {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "r"}


@pytest.mark.parametrize(
    ("rules", "asked", "expected"),
    [
        ([], ("c", 1, 1, "rwm"), True),
        ([DENY_ALL], ("c", 1, 3, "r"), False),
        ([DENY_ALL, TUN], ("c", 10, 200, "r"), True),
        ([DENY_ALL, TUN], ("c", 10, 200, "rw"), False),
        ([DENY_ALL, TUN], ("c", 10, 201, "r"), False),
        ([DENY_ALL, TUN], ("b", 10, 200, "r"), False),
        ([TUN, DENY_ALL], ("c", 10, 200, "r"), False),
        ([{"allow": False, "type": "b", "access": "w"}], ("b", 8, 0, "rw"), False),
        ([{"allow": False, "type": "b", "access": "w"}], ("b", 8, 0, "r"), True),
        ([DENY_ALL, {"allow": True, "type": "c", "major": 136}], ("c", 136, 77, "rw"), True),
        ([DENY_ALL, *ALWAYS_ALLOWED], ("c", 1, 3, "rw"), True),
        ([DENY_ALL, *ALWAYS_ALLOWED], ("b", 8, 0, "m"), True),
        ([DENY_ALL, *ALWAYS_ALLOWED], ("b", 8, 0, "r"), False),
    ],
)
def test_the_last_device_rule_that_fits_decides(
    rules: list[dict[str, Any]], asked: tuple[str, int, int, str], expected: bool
) -> None:
    assert allowed(rules, *asked) is expected


@pytest.mark.skipif(not V2, reason="this host has no hierarchy of version 2")
def test_devices_are_filtered_in_version_2(bundle: Bundle, runtime: Runtime) -> None:
    inner = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    only_v2 = Runtime(("unshare", "-m", "sh", "-c", inner, "sh", *IN_PYTHON), runtime.root)
    bundle.linux["cgroupsPath"] = f"/{NAME}"
    bundle.linux["devices"] = [{"type": "c", "path": "/dev/tun", "major": 10, "minor": 200}]
    bundle.linux["resources"] = {"devices": [DENY_ALL]}
    bundle.sh("cat /dev/null && echo null; (: < /dev/tun)")
    done = only_v2.run(bundle)
    assert done.stdout == "null\n"
    assert "open /dev/tun: Operation not permitted" in done.stderr
    bundle.linux["resources"]["devices"].append(TUN)
    assert "not permitted" not in only_v2.run(bundle).stderr


@pytest.mark.skipif(not V2, reason="this host has no hierarchy of version 2")
def test_device_rules_of_version_2_are_not_changed_later() -> None:
    group = CgroupV2.at(V2, f"/{NAME}")
    group.create()
    try:
        group.apply({"devices": [DENY_ALL]})
        with pytest.raises(ContainerError, match="cannot be changed; make the container anew"):
            group.apply({"devices": [DENY_ALL]})
    finally:
        group.remove()


def test_a_host_without_control_groups_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that can be provoked here: the host's own are mounted."""
    monkeypatch.setattr("kvmpy.container.cgroup.find_hierarchies", lambda: iter(()))
    with pytest.raises(ContainerError, match="no control groups are mounted"):
        open_cgroup("/x")
