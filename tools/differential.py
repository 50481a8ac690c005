"""Run random programs on the software CPU and on others, for as long as is wanted: the processor, QEMU, KVM.

    python tools/differential.py --minutes 10
    python tools/differential.py --world kernel --bits 32 --seed 7      the programs that a report names
    python tools/differential.py --rubbish 1000000     random bytes in each mode: any end that has a name is right
    python tools/differential.py --errata                which of docs/errata.toml still are
    python tools/differential.py --write                 docs/errata.md, from docs/errata.toml

The worlds: `user` is ring 3, beside this machine's own processor; `kernel` ring 0 of long mode, beside QEMU; `devices`
ring 0 where devices are, beside KVM. Those whose other side is not here are left out, and it is said.

The exit code is 1 where something differs that is no erratum, or an erratum does not differ any more.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "tests")  # in place of tools/, where this file has the same name

from differential.check import Processor, check  # noqa: E402
from differential.devices import DeviceGuest  # noqa: E402
from differential.errata import ERRATA, PAGE, Erratum, page  # noqa: E402
from differential.generator import programs  # noqa: E402
from differential.guest import Guest  # noqa: E402
from differential.kvm import Kvm  # noqa: E402
from differential.native import Native  # noqa: E402
from differential.program import Program, World, compare  # noqa: E402
from differential.qemu import Qemu  # noqa: E402
from differential.rubbish import PIECE, Rubbish  # noqa: E402
from hypothesis import HealthCheck, Phase, find, settings  # noqa: E402 - the path comes first
from hypothesis.errors import NoSuchExample  # noqa: E402

from kvmpy import KvmAccelerator, SoftAccelerator  # noqa: E402
from kvmpy.errors import KvmpyError  # noqa: E402

MODES = (16, 32, 64)
BATCH, TRIES = 1000, 10_000  # programs of one seed, and until an erratum counts as mended


def main() -> int:
    """Do what the options say; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--world", choices=[world.name.lower() for world in World], help="one world only")
    parser.add_argument("--bits", type=int, choices=MODES, help="one mode only")
    parser.add_argument("--seed", type=int, help="one batch only, of this seed")
    parser.add_argument("--errata", action="store_true", help="try the errata instead")
    parser.add_argument("--rubbish", type=int, metavar="BYTES", help="random bytes as code, on the software CPU alone")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} and end")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(page())
        return 0
    worlds = [World[options.world.upper()]] if options.world else list(World)
    modes = [options.bits] if options.bits else list(MODES)
    if options.rubbish:
        return run_rubbish(options.rubbish, modes, options.seed)
    with ExitStack() as stack:
        if options.errata:
            ((_, _, native, soft),) = pairs([World.USER], [64], stack)
            return 1 if [erratum for erratum in ERRATA if not is_one(erratum, native, soft)] else 0
        return compare_all(list(pairs(worlds, modes, stack)), options.seed, options.minutes * 60)


Pair = tuple[World, int, Processor, Processor]


def pairs(worlds: list[World], modes: list[int], stack: ExitStack) -> Iterator[Pair]:
    """Give for each world and mode what is right, and the software CPU; `stack` closes them."""
    accelerator = stack.enter_context(SoftAccelerator())
    for world in worlds:
        try:
            yield from PAIRS[world](accelerator, modes, stack)
        except (KvmpyError, FileNotFoundError) as error:
            print(f"{world.name.lower()}: left out ({error})", flush=True)


def _user(accelerator: SoftAccelerator, modes: list[int], stack: ExitStack) -> Iterator[Pair]:
    native = stack.enter_context(Native(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
    soft = stack.enter_context(closing(Guest(accelerator)))
    yield from ((World.USER, bits, native.run, soft.run) for bits in modes)


def _kernel(accelerator: SoftAccelerator, modes: list[int], stack: ExitStack) -> Iterator[Pair]:
    if not shutil.which("qemu-system-x86_64"):
        raise FileNotFoundError("there is no qemu-system-x86_64")
    qemu = stack.enter_context(Qemu(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
    soft = stack.enter_context(closing(Guest(accelerator, World.KERNEL)))
    yield from ((World.KERNEL, bits, qemu.run, soft.run) for bits in modes)


def _devices(accelerator: SoftAccelerator, modes: list[int], stack: ExitStack) -> Iterator[Pair]:
    kvm = stack.enter_context(KvmAccelerator())
    for bits in modes:
        right = stack.enter_context(closing(Kvm(kvm, bits)))
        soft = stack.enter_context(closing(DeviceGuest(accelerator, bits)))
        yield World.DEVICES, bits, right.run, soft.run


PAIRS = {World.USER: _user, World.KERNEL: _kernel, World.DEVICES: _devices}


def compare_all(compared: list[Pair], seed: int | None, seconds: float) -> int:
    """Compare batch after batch, and print what differs as it is found; return the exit code."""
    end, batches, failures = time.monotonic() + seconds, 0, 0
    while True:
        number = random.SystemRandom().getrandbits(32) if seed is None else seed
        for world, bits, right, soft in compared:
            batches += 1
            try:
                check(bits, right, soft, number=number, examples=BATCH, world=world)
            except AssertionError as error:
                failures += 1
                print(error, flush=True)
        if seed is not None or time.monotonic() >= end:
            print(f"{batches} batches of {BATCH} programs: {failures} with differences that are no errata")
            return 1 if failures else 0


def run_rubbish(size: int, modes: list[int], seed: int | None) -> int:
    """Run `size` random bytes in each mode, a piece after the other; return the exit code."""
    failures = 0
    for bits in modes:
        first = random.SystemRandom().getrandbits(32) if seed is None else seed
        with SoftAccelerator() as soft, closing(Rubbish(soft, bits)) as rubbish:
            for number in range(first, first + -(-size // PIECE)):
                try:
                    rubbish.run(number)
                except AssertionError as error:
                    failures += 1
                    print(f"{bits} bit: {error}", flush=True)
        print(f"{bits} bit: {size} bytes from seed {first} on", flush=True)
    return 1 if failures else 0


def is_one(erratum: Erratum, native: Processor, soft: Processor) -> bool:
    """Tell, and print, whether something still differs in instances of an erratum."""

    def differs(program: Program) -> bool:
        if not any(erratum.is_about(made, program.bits) for made in program.instructions):
            return False
        right = native(program)
        return erratum.vector in (-1, right.vector) and bool(compare(program, right, soft(program)))

    once = settings(
        max_examples=TRIES, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for bits in erratum.modes:
        try:
            found = find(programs(bits, erratum=erratum), differs, settings=once)
        except NoSuchExample:
            continue
        print(f"still: {erratum.instruction} ({found})", flush=True)
        return True
    print(f"not any more, or too rare: {erratum.instruction}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
