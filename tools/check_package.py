"""Build the source distribution and from it the wheel, install that, and boot a guest with it, far from the checkout.

    python tools/check_package.py

Needs the package `build` (pip install -e '.[dev]'). CI runs it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "kvmpy/py.typed", "kvmpy/kvm/_kvm", "kvmpy/softcpu/_softcpu", "kvmpy/guests/hello.bin", "kvmpy/guests/guest.bin",
    "kvmpy/container/native/kvmpy-oci", "kvmpy/container/native/stage", "kvmpy/container/native/main",
    "kvmpy/container/native/modules",
)  # fmt: skip


def main() -> int:
    """Do it; anything that fails ends the program."""
    with tempfile.TemporaryDirectory(prefix="package-") as folder:
        work = Path(folder)
        clone = work / "clone"  # so that nothing comes along by chance
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        run("build", "--outdir", str(work), str(clone))
        (source,), (wheel,) = work.glob("*.tar.gz"), work.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        missing = [needed for needed in NEEDED if not any(name.startswith(needed) for name in names)]
        if missing:
            sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
        run("pip", "install", "-q", "--no-deps", "--target", str(work / "installed"), str(wheel))
        greet(work)
        print(f"{source.name} and {wheel.name} are good: {len(names)} files, {wheel.stat().st_size >> 10} KiB")
    return 0


def run(*module: str) -> None:
    """Run a module of this interpreter; what it says is shown when it fails."""
    done = subprocess.run([sys.executable, "-m", *module], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(module)}: failed")


def greet(work: Path) -> None:
    """Boot a guest and ask where the package is: in the installed one, not in the checkout."""
    program = (
        f"import sys; sys.path.insert(0, {str(work / 'installed')!r}); "
        "import kvmpy; print(kvmpy.__file__, flush=True); "
        "from kvmpy.cli import main; sys.exit(main(['boot', 'hello.bin', '--accel', 'soft']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=work, check=True, capture_output=True, text=True)
    where, greeting = done.stdout.splitlines()
    if not where.startswith(str(work / "installed")) or greeting != "Hello from real mode":
        sys.exit(f"the installed package answers {done.stdout!r}")


if __name__ == "__main__":
    sys.exit(main())
