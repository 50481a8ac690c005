"""side-by-side: the same questions put to a process, a container and a virtual machine."""

from __future__ import annotations

import platform
from contextlib import closing

from kvmpy.compare import isolation
from kvmpy.compare.subjects import Contained, Process, Virtual
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.compare.isolation import Looks
    from kvmpy.compare.subjects import Subject
    from kvmpy.demos.scene import Scene

CHECK = (
    "kvmpy compare --quick                    the same with figures",
    "kvmpy run --as process uname -- -sr      who answers here",
    "kvmpy run --as vm guest.bin              and who there: type 'mem', 'ps', 'cpuid'",
)
ASKED = ("kernel", "processes", "CPUs", "memory", "network", "file", "process", "port")


def run(scene: Scene) -> None:
    """Ask each who it is, then let a kernel crash."""
    bundle = scene.folder / "bundle"
    bundle.mkdir()
    machine = scene.hold(closing(Virtual(scene.accelerator.name)))
    subjects: dict[str, Subject] = {
        "process": Process(scene.folder), "container": Contained(bundle), "machine": machine
    }  # fmt: skip
    scene.step("Three are asked who they are. The first two run one program; the third has a kernel of its own.")
    seen = {title: look(scene, title, subject) for title, subject in subjects.items()}
    for question in ASKED:
        title = (isolation.SEES | isolation.REACHES)[question]
        scene.saw(title)
        scene.saw(*[f"    {who:10} {answers[question]}" for who, answers in seen.items() if answers])
    host = f"{platform.system()} {platform.release()}"
    here = [who for who in ("process", "container") if seen[who]]
    if here:
        who = " and ".join(here).capitalize()
        verb = "have" if len(here) > 1 else "has"
        scene.claim(f"{who} {verb} the host's kernel.", {seen[who]["kernel"] for who in here} == {host})
    if seen["machine"]:
        scene.claim("The machine has another.", host not in seen["machine"]["kernel"])
    scene.why("A container is a process that sees less. A machine is a processor that pretends to be another computer.")
    if seen["container"]:
        reached = [seen["container"][question].partition(":")[0] for question in ("file", "process", "port")]
        scene.claim("The container reaches neither the file, nor the process, nor the server.", reached == ["no"] * 3)
        scene.why("It still talks to the one kernel that all share: what it cannot name, it can hope to break.")

    scene.step("The machine's kernel panics on purpose.")
    ended = isolation.panic(machine)
    scene.saw(ended)
    scene.claim("The other machine, and this host, go on.", ended.endswith("the other goes on"))


def look(scene: Scene, title: str, subject: Subject) -> Looks:
    """Return what one sees; nothing, with the reason told, where it cannot be made here."""
    try:
        return isolation.look(subject, scene.folder)
    except KvmpyError as error:
        scene.missing(f"the {title}: {error}")
        return {}
