"""Programs that the comparison runs: they end, and are gone when the comparison is interrupted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from console import DEADLINE
from interrupting import POLL, SELECT, interrupted_in

from kvmpy.compare.subjects import Contained, converse, older, runtime_run
from kvmpy.container.launch import NATIVE
from kvmpy.container.process import children
from kvmpy.container.simple import Wish, configuration
from kvmpy.errors import DeadlineError, HostError

ASKS = ["sh", "-c", "printf 'name> '; read name; echo hello $name; exit ${CODE:-0}"]


def test_a_conversation() -> None:
    assert converse(ASKS, b"> ", b"kvmpy\n", DEADLINE) == b"name> hello kvmpy\n"


def test_who_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE", "3")
    with pytest.raises(HostError, match=r"^sh: code 3$"):
        converse(ASKS, b"> ", b"kvmpy\n", DEADLINE)


def test_who_says_nothing_has_its_time() -> None:
    before = children()
    with pytest.raises(DeadlineError, match=r"^sleep did not end within 0 s$"):
        converse(["sleep", "1000"], b"> ", b"", 0.1)
    assert children() == before


def test_an_interrupted_conversation_leaves_nobody() -> None:
    before = children()
    with interrupted_in(SELECT, lambda: children() != before), pytest.raises(KeyboardInterrupt):
        converse(["sleep", "1000"], b"> ", b"", DEADLINE)
    assert children() == before


@pytest.mark.root("kvmpy-oci's bundle")
def test_an_interrupted_runtime_leaves_no_container(tmp_path: Path) -> None:
    subject = Contained(tmp_path)
    assert not subject.missing
    config = older(configuration(Wish(str(subject.root), ["/wait"])))
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = children()
    state = tmp_path / f"kvmpy-oci/compare-{os.getpid()}"
    with interrupted_in(POLL, (state / "pid").exists), pytest.raises(KeyboardInterrupt):
        runtime_run(f"{NATIVE}/kvmpy-oci", tmp_path)
    assert not state.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/compare-{os.getpid()}"))
    assert children() == before
