"""What demos look at in a child of their own."""

from __future__ import annotations

import os
import select
import signal

import pytest
from interrupting import READ, interrupted_in

from kvmpy.container.process import children
from kvmpy.demos.host import in_child


def test_a_child_tells_what_it_saw() -> None:
    good, pid = in_child(os.getpid)
    assert good
    assert pid != os.getpid()


def test_a_child_that_fails_tells_why() -> None:
    def look() -> None:
        raise OSError("no such thing")

    assert in_child(look) == (False, "no such thing")


def test_a_child_that_is_killed_is_told_of() -> None:
    assert in_child(lambda: os.kill(os.getpid(), signal.SIGKILL)) == (False, "the process was killed")


def test_when_interrupted_nobody_does_anything_any_more() -> None:
    """A child and its own: the signal comes when both are there."""
    before = children()
    reader, writer = os.pipe()

    def look() -> None:
        os.write(writer, b"here")
        signal.pause()

    def both_there() -> bool:
        return bool(select.select([reader], [], [], 0)[0])

    with interrupted_in(READ, both_there), pytest.raises(KeyboardInterrupt):
        in_child(lambda: in_child(look))
    assert children() == before
    os.close(reader)
    os.close(writer)
