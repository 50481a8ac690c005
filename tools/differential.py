"""Run random programs on the software CPU and on this machine's own processor, for as long as is wanted.

    python tools/differential.py --minutes 10
    python tools/differential.py --bits 32 --seed 7      the programs that a report names
    python tools/differential.py --errata                which of docs/errata.toml still are
    python tools/differential.py --write                 docs/errata.md, from docs/errata.toml

The exit code is 1 where something differs that is no erratum, or an erratum does not differ any more.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "tests")  # in place of tools/, where this file has the same name

from differential.check import check  # noqa: E402
from differential.errata import ERRATA, PAGE, Erratum, page  # noqa: E402
from differential.generator import programs  # noqa: E402
from differential.guest import Guest  # noqa: E402
from differential.native import Native  # noqa: E402
from differential.program import Program, compare  # noqa: E402
from hypothesis import HealthCheck, Phase, find, settings  # noqa: E402 - the path comes first
from hypothesis.errors import NoSuchExample  # noqa: E402

from kvmpy import SoftAccelerator  # noqa: E402

MODES = (16, 32, 64)
BATCH, TRIES = 1000, 10_000  # programs of one seed, and until an erratum counts as mended


def main() -> int:
    """Do what the options say; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--bits", type=int, choices=MODES, help="one mode only")
    parser.add_argument("--seed", type=int, help="one batch only, of this seed")
    parser.add_argument("--errata", action="store_true", help="try the errata instead")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} and end")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(page())
        return 0
    with processors() as (native, soft):
        if options.errata:
            return 1 if [erratum for erratum in ERRATA if not is_one(erratum, native, soft)] else 0
        modes = [options.bits] if options.bits else list(MODES)
        return compare_all(modes, options.seed, options.minutes * 60, native, soft)


@contextmanager
def processors() -> Iterator[tuple[Native, Guest]]:
    """Give this machine's processor and the software CPU."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Native(Path(folder)) as native,
        SoftAccelerator() as accelerator,
        closing(Guest(accelerator)) as soft,
    ):
        yield native, soft


def compare_all(modes: list[int], seed: int | None, seconds: float, native: Native, soft: Guest) -> int:
    """Compare batch after batch, and print what differs as it is found; return the exit code."""
    end, batches, failures = time.monotonic() + seconds, 0, 0
    while True:
        number = random.SystemRandom().getrandbits(32) if seed is None else seed
        for bits in modes:
            batches += 1
            try:
                check(bits, native.run, soft.run, number=number, examples=BATCH)
            except AssertionError as error:
                failures += 1
                print(error, flush=True)
        if seed is not None or time.monotonic() >= end:
            print(f"{batches} batches of {BATCH} programs: {failures} with differences that are no errata")
            return 1 if failures else 0


def is_one(erratum: Erratum, native: Native, soft: Guest) -> bool:
    """Tell, and print, whether something still differs in instances of an erratum."""

    def differs(program: Program) -> bool:
        if not any(erratum.is_about(made, program.bits) for made in program.instructions):
            return False
        right = native.run(program)
        return erratum.vector in (-1, right.vector) and bool(compare(program, right, soft.run(program)))

    once = settings(
        max_examples=TRIES, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for bits in erratum.modes:
        try:
            found = find(programs(bits, erratum), differs, settings=once)
        except NoSuchExample:
            continue
        print(f"still: {erratum.instruction} ({found})", flush=True)
        return True
    print(f"not any more, or too rare: {erratum.instruction}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
