"""from-nothing: a container is what the kernel gives to who asks; here is one that asks for all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.demos.scene import Scene

SCRIPT = Path(__file__).with_name("sixty_lines.py")
CHECK = (
    "kvmpy/demos/sixty_lines.py                  copy it, change it, break it",
    "kvmpy container run --dry-run -v ROOTFS     what a whole runtime does in its place",
    "docs/containers.md                          and why in that order",
)
DEADLINE = 30.0
INSIDE = """
read name < /proc/sys/kernel/hostname; echo "host name: $name"
echo "process: $$"
echo "network interfaces: $(grep -c : /proc/net/dev)"
echo made inside > /file && echo "a new file: $(cat /file)"
echo "writing to /usr: $( (: > /usr/touched) 2>&1 )"
echo "capabilities that may come back: $(sed -n 's/CapBnd:.//p' /proc/self/status)"
exit 5
"""


def run(scene: Scene) -> None:
    """Show the script, and run a shell in what it makes."""
    scene.step("This is all of it: a Python script that needs nothing but the kernel.")
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    scene.saw(*lines)
    scene.claim(f"It has {len(lines)} lines.", len(lines) <= 60)

    scene.step("It is run with an empty directory, and a shell that looks around.")
    root = scene.folder / "root"
    root.mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), "sh", "-c", INSIDE], capture_output=True, text=True, timeout=DEADLINE
    )
    said = done.stdout.splitlines()
    scene.saw(*said, *done.stderr.splitlines()[-1:])
    if not said:
        scene.missing("the kernel refuses new namespaces; run it as root, or allow user namespaces")
        return
    answers = [line.partition(": ")[2] for line in said]
    name, number, interfaces, file, refused, capabilities = [*answers, *[""] * 6][:6]
    scene.claim(f"The host is called {name} inside, {os.uname().nodename} outside.", name == "sixty-lines")
    scene.claim("The shell is process number 1, with one network interface: lo.", (number, interfaces) == ("1", "1"))
    scene.claim(
        "What it wrote lies in the directory that was empty.",
        file == "made inside" and (root / "file").read_text() == "made inside\n",
    )
    scene.claim("The host's programs are there, and cannot be written.", "ead-only" in refused)
    scene.claim("No capability can ever come back.", capabilities == "0" * 16)
    scene.claim("Its exit code came through: 5.", done.returncode == 5)
    again = subprocess.run([sys.executable, str(SCRIPT), str(root), "true"], capture_output=True, timeout=DEADLINE)
    scene.claim("It can be run again in the same directory.", again.returncode == 0)
    scene.why(
        "What it lacks is most of a runtime: limits, devices, a filter of system calls, a terminal, paths that hostile "
        "images cannot turn against the host, a way to enter and to end it, and an undo for each step that fails."
    )
