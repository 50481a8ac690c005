"""The documents name what there is, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kvmpy
from kvmpy import errors
from kvmpy.accel import exits
from kvmpy.accel.probe import PROBES
from kvmpy.cli.exit_codes import ExitCode
from kvmpy.machine.stop import StopKind

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    targets += re.findall(r"`((?:docs|tests|tools|guest)/[\w./-]+)`", page.read_text())
    for target in targets:
        if "://" not in target:
            base = page.parent if f"]({target}" in page.read_text() else ROOT
            assert (base / target).exists(), target


def constants(of: type) -> dict[str, object]:
    return {name: value for name, value in vars(of).items() if name.isupper()}


def test_every_exit_is_explained() -> None:
    kinds = exits.Exit.__args__
    assert len(kinds) == 17
    assert all(f"\n| `{kind.__name__}` |" in REFERENCE for kind in kinds)


def test_every_stop_reason_is_explained() -> None:
    assert all(f"\n| `{kind}` |" in REFERENCE for kind in constants(StopKind).values())


def test_every_exit_code_is_explained() -> None:
    codes = set(constants(ExitCode).values())
    listed = REFERENCE.partition("## Exit codes")[2].partition("##")[0]
    assert all(re.search(rf"^\| (\d+, )?{code}\b", listed, re.MULTILINE) for code in codes)


def test_every_error_is_explained_and_public() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.KvmpyError]
    for kind in kinds:
        assert f"\n| `{kind.__name__}` |" in REFERENCE
        assert getattr(kvmpy, kind.__name__) is kind


def test_every_feature_is_explained() -> None:
    for name, (meaning, _) in PROBES.items():
        assert f"\n| `{name}` | {meaning} |" in REFERENCE
