"""The software CPU against this machine's own processor: random programs of ring 3, in three modes."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from differential.check import check
from differential.errata import ERRATA, PAGE, Erratum, page
from differential.forms import forms_of
from differential.guest import Guest
from differential.native import Native
from differential.program import Outcome, Program, World, differences

from kvmpy import SoftAccelerator

pytestmark = pytest.mark.calls("gcc")
MODES = (16, 32, 64)
EXAMPLES = 400


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    with Native(tmp_path_factory.mktemp("native")) as processor:
        yield processor


@pytest.fixture(scope="module")
def soft() -> Iterator[Guest]:
    with SoftAccelerator() as accelerator:
        guest = Guest(accelerator)
        yield guest
        guest.close()


@pytest.mark.parametrize("bits", MODES)
def test_random_programs_do_what_the_processor_does(bits: int, native: Native, soft: Guest) -> None:
    number = random.SystemRandom().getrandbits(32)
    print(f"seed {number}")  # pytest shows it when this fails
    check(bits, native.run, soft.run, number=number, examples=EXAMPLES)


@pytest.mark.parametrize("erratum", ERRATA, ids=lambda erratum: erratum.instruction)
def test_an_erratum_is_about_something(erratum: Erratum) -> None:
    """A misspelled name would be about nothing. Whether it still is one `tools/differential.py --errata` tries."""
    for bits in erratum.modes:
        forms = [form.name for world in World for form in forms_of(bits, world)]
        assert any(re.fullmatch(erratum.forms, name) for name in forms)
    for pattern in erratum.differs:
        re.compile(pattern)


def test_the_page_of_errata_is_that_of_the_list() -> None:
    assert PAGE.read_text() == page(), "python tools/differential.py --write"


@pytest.mark.parametrize("bits", MODES)
def test_the_processor_agrees_with_itself(bits: int, native: Native) -> None:
    """What a program leaves behind would be told as a difference of the next."""
    check(bits, native.run, native.run, number=1, examples=EXAMPLES)


FAULTS = {
    "a flag": lambda outcome: replace(outcome, flags=outcome.flags ^ 0x400),
    "a register": lambda outcome: replace(outcome, registers=(outcome.registers[0] ^ 1, *outcome.registers[1:])),
    "memory": lambda outcome: replace(outcome, data=outcome.data[:-1] + bytes([outcome.data[-1] ^ 1])),
    "the stack": lambda outcome: replace(outcome, stack=bytes([outcome.stack[0] ^ 1]) + outcome.stack[1:]),
    "XMM0": lambda outcome: replace(outcome, fpu=outcome.fpu[:160] + b"xmm0" + outcome.fpu[164:]),
    "where": lambda outcome: replace(outcome, rip=outcome.rip + 1),
    "the exception": lambda outcome: replace(outcome, vector=outcome.vector ^ 1),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_differs_is_told(what: str, native: Native) -> None:
    def wrong(program: Program) -> Outcome:
        outcome: Outcome = FAULTS[what](native.run(program))
        return outcome

    with pytest.raises(AssertionError, match="64-bit code, USER, seed 7"):
        check(64, native.run, wrong, number=7, examples=20)
    program = Program(64, b"\x90", (0,) * 16, 0x202, bytes(512), bytes(4096), bytes(4096), bytes(4096))
    assert len(differences(program, native.run(program), wrong(program))) == 1
