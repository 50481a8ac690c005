"""Programs that the comparison runs: they end, and are gone when the comparison is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from console import DEADLINE

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


@pytest.fixture
def interrupt_when() -> Iterator[Callable[[Callable[[], bool]], None]]:
    """A function that has this process interrupted once something is so."""
    threads: list[threading.Thread] = []

    def start(is_so: Callable[[], bool]) -> None:
        def watch() -> None:
            end = time.monotonic() + DEADLINE
            while not is_so() and time.monotonic() < end:
                os.sched_yield()
            os.kill(os.getpid(), signal.SIGINT)

        threads.append(threading.Thread(target=watch))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_an_interrupted_conversation_leaves_nobody(interrupt_when: Callable[[Callable[[], bool]], None]) -> None:
    before = children()
    main = threading.get_ident()
    interrupt_when(lambda: children() != before and sys._current_frames()[main].f_code is converse.__code__)
    with pytest.raises(KeyboardInterrupt):
        converse(["sleep", "1000"], b"> ", b"", DEADLINE)
    assert children() == before


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("busybox"), reason="needs root and busybox")
def test_an_interrupted_runtime_leaves_no_container(
    tmp_path: Path, interrupt_when: Callable[[Callable[[], bool]], None]
) -> None:
    subject = Contained(tmp_path)
    assert not subject.missing
    config = older(configuration(Wish(str(subject.root), ["/wait"])))
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = children()
    interrupt_when(lambda: (tmp_path / f"kvmpy-oci/compare-{os.getpid()}/pid").exists())
    with pytest.raises(KeyboardInterrupt):
        runtime_run(f"{NATIVE}/kvmpy-oci", tmp_path)
    assert not (tmp_path / f"kvmpy-oci/compare-{os.getpid()}").exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/compare-{os.getpid()}"))
    assert children() == before
