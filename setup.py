"""The build steps that pyproject.toml cannot say: compile the binding, assemble the guests."""

import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))


class BuildGuests(Command):
    """Assemble guest/*.asm into package data: into the checkout when editable, else into the build folder."""

    description = "assemble the bundled guests"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        from tools.build_guests import build_all

        root = ROOT if self.editable_mode else Path(self.build_lib)
        build_all(ROOT / "guest", root / "kvmpy" / "guests")

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in (ROOT / "guest").rglob("*.asm")]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


build.sub_commands.append(("build_guests", None))

setup(
    cffi_modules=["kvmpy/kvm/build.py:ffibuilder", "kvmpy/softcpu/build.py:ffibuilder"],
    cmdclass={"build_guests": BuildGuests},
)
