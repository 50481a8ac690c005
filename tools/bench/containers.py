"""Measure the container runtime against crun and runc, side by side in one run.

    python tools/bench/containers.py            print them
    python tools/bench/containers.py --write    write it to docs/benchmarks.md too

Needs root, busybox, crun, runc and podman. All of it runs in a mount and a network namespace of its own, without the
version 2 hierarchy of a hybrid host, which crun refuses. Every runtime makes the same container in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from figures import Figure, listing, write_section

from kvmpy.container import Container
from kvmpy.container.launch import NATIVE
from kvmpy.container.verbs.spec import specification

LAUNCHER = f"{NATIVE}/kvmpy-oci"
IN_NAMESPACES = "KVMPY_BENCH_IN_NAMESPACES"
ISOLATE = 'umount /sys/fs/cgroup/unified 2>/dev/null; mount -t tmpfs none /mnt; exec "$@"'
ROOTS = "/mnt"  # what runtimes keep lies in memory, as /run does
PAUSE = 0.02  # seconds between rounds: without, one runtime pays for the kernel's burying of another's container
MANY = 1000
PODMAN_CONFIGURATION = '[containers]\ndefault_ulimits = ["nofile=1024:4096", "nproc=4096:8192"]\n'


def main() -> int:
    """Run all benchmarks; the exit code tells whether every limit holds."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="write docs/figures.json, and from it docs/benchmarks.md")
    options.add_argument("--rounds", type=int, default=40, help="rounds in which each has its turn (default 40)")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    if not os.environ.get(IN_NAMESPACES):
        command = ["unshare", "-m", "-n", "sh", "-c", ISOLATE, "sh", sys.executable, *sys.argv]
        return subprocess.run(command, env={**os.environ, IN_NAMESPACES: "1"}).returncode
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bundle = make_bundle(Path(folder))
        figures = [*verbs(bundle, chosen.rounds), *podman(bundle, chosen.rounds // 2 + 1), *many(bundle)]
    print(listing(figures))
    if chosen.write:
        write_section("Containers", figures, load)
    return 0 if all(figure.holds for figure in figures) else 1


def make_bundle(folder: Path) -> Path:
    """Return a bundle of what `spec` writes, with busybox for a root directory."""
    busybox = shutil.which("busybox")
    assert busybox
    (folder / "rootfs/bin").mkdir(parents=True)
    shutil.copy(busybox, folder / "rootfs/bin/busybox")
    for name in ("true", "sleep"):
        (folder / "rootfs/bin" / name).symlink_to("busybox")
    config = specification(rootless=False)
    config["ociVersion"] = "1.0.2"  # all that older peers know
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def milliseconds(*command: str) -> float:
    """Run a command to its end; return how long it took."""
    start = time.perf_counter()
    null = subprocess.DEVNULL
    code = subprocess.Popen(command, stdin=null, stdout=null, stderr=null).wait()
    assert code == 0, command
    return (time.perf_counter() - start) * 1e3


def life(bundle: Path, name: str, command: list[str]) -> list[float]:
    """Create, start and delete a container; return how long each took."""
    call = [*command, "--root", f"{ROOTS}/{name}"]
    return [
        milliseconds(*call, "create", "-b", str(bundle), name),
        milliseconds(*call, "start", name),
        milliseconds(*call, "delete", "--force", name),
    ]


def warm_life(bundle: Path) -> float:
    """Do the same from this process; return how long it took."""
    start = time.perf_counter()
    with Container.create(bundle, root=f"{ROOTS}/warm") as container:
        container.start()
        container.wait(10)
    return (time.perf_counter() - start) * 1e3


def verbs(bundle: Path, rounds: int) -> list[Figure]:
    """Measure create + start + delete."""
    in_python = [launcher_python(), "-I", "-S", f"{NATIVE}/main"]
    runtimes = {"crun": ["crun"], "runc": ["runc"], "launcher": [LAUNCHER], "python": in_python}
    times: dict[str, list[list[float]]] = {name: [] for name in runtimes}
    warm: list[float] = []
    for _ in range(rounds):
        for name, command in runtimes.items():
            times[name].append(life(bundle, name, command))
            time.sleep(PAUSE)
        warm.append(warm_life(bundle))
        time.sleep(PAUSE)
    total = {name: statistics.median(map(sum, each)) for name, each in times.items()}
    total["warm"] = statistics.median(warm)
    parts = " + ".join(f"{statistics.median(column):.1f}" for column in zip(*times["launcher"], strict=True))

    def ratio(mine: str, peer: str, limit: float, what: str, detail: str = "") -> Figure:
        detail = detail or f"{total[mine]:.1f} ms against {total[peer]:.1f} ms"
        return Figure(f"{what} / {peer}", total[mine] / total[peer], limit, "x", detail=detail)

    what = "create + start + delete of `true`"
    return [
        ratio("launcher", "crun", 0.7, what, f"{parts} ms against {total['crun']:.1f} ms"),
        ratio("launcher", "runc", 0.5, what),
        ratio("python", "crun", 1.1, f"{what}, every verb in Python"),
        ratio("warm", "crun", 0.4, f"{what}, from a warm process"),
    ]


def launcher_python() -> str:
    """Return the interpreter that the launcher starts."""
    names = re.findall(rb"/[^\0]+/python[^\0]*", Path(LAUNCHER).read_bytes())
    return next(name.decode() for name in names if Path(name.decode()).is_file())


def podman(bundle: Path, rounds: int) -> list[Figure]:
    """Measure `podman run --rm`."""
    (bundle / "containers.conf").write_text(PODMAN_CONFIGURATION)
    common = ["env", f"CONTAINERS_CONF={bundle}/containers.conf", "podman", "--root", f"{bundle}/p/root"]
    common += ["--runroot", f"{bundle}/p/run", "--tmpdir", f"{bundle}/p/tmp", "--cgroup-manager", "cgroupfs"]
    common += ["--events-backend", "file", "--storage-driver", "vfs"]
    tail = ["run", "--rm", "--network", "none", "--rootfs", f"{bundle}/rootfs", "true"]
    paths = {"crun": str(shutil.which("crun")), "launcher": LAUNCHER}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            times[name].append(milliseconds(*common, "--runtime", path, *tail))
            time.sleep(PAUSE)
    mine, peer = (statistics.median(times[name]) for name in ("launcher", "crun"))
    detail = f"{mine:.0f} ms against {peer:.0f} ms"
    remove_groups()
    return [Figure("`podman run --rm` / with crun", mine / peer, 0.95, "x", detail=detail)]


def remove_groups() -> None:
    """Remove the control groups that podman leaves empty, when the last of its processes has gone."""
    end = time.monotonic() + 10
    left = [group for parent in Path("/sys/fs/cgroup").glob("*/libpod_parent") for group in parent.glob("**/")]
    while left and time.monotonic() < end:
        for group in sorted(left, reverse=True):
            try:
                group.rmdir()
            except OSError:
                continue
        left = [group for group in left if group.exists()]


def many(bundle: Path) -> list[Figure]:
    """Measure a thousand containers that are alive together over one root directory, made by this process."""
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/bin/sleep", "100000"]
    (bundle / "config.json").write_text(json.dumps(config))
    before = available()
    with ExitStack() as stack:
        containers = []
        start = time.perf_counter()
        for number in range(MANY):
            containers.append(stack.enter_context(Container.create(bundle, f"c{number}", f"{ROOTS}/many")))
            containers[-1].start()
        made = time.perf_counter() - start
        time.sleep(3)  # until the kernel has counted
        each = (before - available()) / MANY
        start = time.perf_counter()
        for container in containers:
            container.delete()
        gone = time.perf_counter() - start
    return [
        Figure(f"{MANY} containers made by a warm process", made, 5, "s"),
        Figure("memory of each, kernel included, with a network namespace", each, 650, "KiB"),
        Figure(f"{MANY} containers removed", gone, 2, "s"),
    ]


def available() -> float:
    """Return the KiB of memory that are available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
