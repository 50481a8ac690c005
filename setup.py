"""The build steps that pyproject.toml cannot say: compile the binding, assemble the guests."""

import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))


class PackageDataCommand(Command):
    """A step that makes package data: in the checkout when editable, else in the build folder."""

    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    @property
    def package(self) -> Path:
        return (ROOT if self.editable_mode else Path(self.build_lib)) / "kvmpy"

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in self.sources()]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildGuests(PackageDataCommand):
    """Assemble guest/*.asm."""

    description = "assemble the bundled guests"

    def run(self) -> None:
        from tools.build_guests import build_all

        build_all(ROOT / "guest", self.package / "guests")

    def sources(self) -> list[Path]:
        return list((ROOT / "guest").rglob("*.asm"))


class BuildStage(PackageDataCommand):
    """Compile what a container is started by: a few static programs without a C library."""

    description = "compile the container runtime's stage and launcher"

    def run(self) -> None:
        from tools.build_stage import build_all

        build_all(ROOT, self.package / "container" / "native", self.editable_mode)

    def sources(self) -> list[Path]:
        return list((ROOT / "kvmpy" / "container" / "native").glob("*.[ch]"))


build.sub_commands += [("build_guests", None), ("build_stage", None)]

setup(
    cffi_modules=["kvmpy/kvm/build.py:ffibuilder", "kvmpy/softcpu/build.py:ffibuilder"],
    cmdclass={"build_guests": BuildGuests, "build_stage": BuildStage},
)
