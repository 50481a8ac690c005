"""layers: a read-only base, and what each container changes."""

from __future__ import annotations

import os
import time

from kvmpy.container import Container, Wish
from kvmpy.container.small_root import small_root
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from kvmpy.demos.scene import Scene

CHECK = (
    "kvmpy container run --layer LAYER ROOTFS    then look into LAYER/upper",
    "kvmpy container run --overlay ROOTFS        what it writes is thrown away",
    "ls -l LAYER/upper                           a whiteout is a character device 0, 0",
)
MANY = 100
BIG = 16 << 20
GREETING, CHANGED = "from the base\n", "from the first container\n"


def run(scene: Scene) -> None:
    """Show one container's layer, then a hundred."""
    base = scene.folder / "base"
    base.mkdir()
    volumes = small_root(base)
    (base / "etc/greeting").write_text(GREETING)
    (base / "etc/doomed").write_text("I will be removed\n")
    (base / "big").write_bytes(bytes(range(256)) * (BIG // 256))
    scene.step("A base directory with three files, one of 16 MiB, and a container over it that changes two.")
    try:
        one_layer(scene, base, volumes)
    except ContainerError as error:
        scene.missing(f"no container over an overlay can be made here: {error}; try as root")
        return
    many_layers(scene, base, volumes)


def container(base: Path, layer: Path, volumes: list[str], *command: str) -> Container:
    """Return a container over the base, with a layer of its own."""
    layer.mkdir()
    return Container.from_wish(Wish(str(base), list(command), volumes=volumes, layer=str(layer)))


def one_layer(scene: Scene, base: Path, volumes: list[str]) -> None:
    """Change a file, remove one, make one."""
    layer = scene.folder / "layer"
    with container(base, layer, volumes, "sleep", "1000") as box:
        box.start()
        script = (
            f"cat /etc/greeting; printf '{CHANGED.strip()}\\n' > /etc/greeting; rm /etc/doomed; echo new > /etc/new"
        )
        said = box.exec(["sh", "-c", script]).stdout.decode()
        inside = box.exec(["sh", "-c", "cd /etc; for f in *; do echo $f; done"]).stdout.decode().split()
    upper = sorted(str(path.relative_to(layer / "upper")) for path in (layer / "upper/etc").iterdir())
    scene.saw(f"inside, first: {said.strip()!r}; then /etc holds {inside}")
    scene.saw(f"its layer holds {upper}")
    scene.claim("Inside one file is gone and one is new.", inside == ["greeting", "new"])
    scene.claim(
        "The layer holds just what differs: a copy of what was changed, and what is new.",
        (layer / "upper/etc/greeting").read_text() == CHANGED and (layer / "upper/etc/new").read_text() == "new\n",
    )
    doomed = (layer / "upper/etc/doomed").lstat()
    scene.claim(
        "What was removed is a whiteout: a character device 0, 0, which hides the name below it.",
        (doomed.st_mode & 0o170000, doomed.st_rdev) == (0o020000, 0),
    )
    scene.claim(
        "The base is as it was.",
        (base / "etc/greeting").read_text() == GREETING and (base / "etc/doomed").exists(),
    )
    scene.why("overlayfs looks a name up in the upper directory first, then in the lower (filesystems/overlayfs.rst).")


def many_layers(scene: Scene, base: Path, volumes: list[str]) -> None:
    """A hundred at once over the same base, each with its own file."""
    scene.step(f"{MANY} containers over the same base, alive together; each writes its number over the greeting.")
    start = time.monotonic()
    boxes = []
    for number in range(MANY):
        command = ("sh", "-c", f"echo {number} > /etc/greeting; exec sleep 1000")
        boxes.append(scene.hold(container(base, scene.folder / f"layer{number}", volumes, *command)))
        boxes[-1].start()
    made = time.monotonic() - start
    kept = [written(scene.folder / f"layer{number}/upper/etc/greeting") for number in range(MANY)]
    alive = sum(box.status == "running" for box in boxes)
    layers = sum(disk_use(scene.folder / f"layer{number}") for number in range(MANY))
    scene.saw(f"made in {made:.1f} s; {alive} are alive")
    scene.saw(f"disk: the base {disk_use(base) >> 10} KiB, all {MANY} layers {layers >> 10} KiB")
    scene.claim("All are alive, and each has its own greeting.", alive == MANY and kept == list(range(MANY)))
    scene.claim("Together their layers are smaller than one copy of the base.", layers < disk_use(base))
    scene.claim("The base is as it was.", (base / "etc/greeting").read_text() == GREETING)
    scene.why("An image of a gigabyte and a thousand containers need a gigabyte and a thousand differences.")


def written(file: Path, patience: float = 10.0) -> int:
    """Return the number in a file that a container is about to write."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            return int(file.read_text())
        except (FileNotFoundError, ValueError):
            time.sleep(0.01)
    return -1


def disk_use(folder: Path) -> int:
    """Return how many bytes on disk a directory takes (stat(2), st_blocks), without what is mounted in it."""
    total = 0
    for path, _, files in os.walk(folder):
        total += sum(os.lstat(os.path.join(path, name)).st_blocks * 512 for name in (*files, "."))
    return total
