"""The software CPU in ring 0: against QEMU's in long mode, and beside devices against KVM."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing

import pytest
from differential.check import check
from differential.devices import DeviceGuest
from differential.guest import Guest
from differential.kvm import Kvm
from differential.program import World
from differential.qemu import Qemu
from peers import needs_kvm

from kvmpy import KvmAccelerator, SoftAccelerator

MODES = (16, 32, 64)
EXAMPLES = 150


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    with Qemu(tmp_path_factory.mktemp("qemu")) as machine:
        yield machine


@pytest.fixture(scope="module")
def kernel() -> Iterator[Guest]:
    with SoftAccelerator() as accelerator:
        guest = Guest(accelerator, World.KERNEL)
        yield guest
        guest.close()


@pytest.mark.calls("qemu-system-x86_64")
@pytest.mark.parametrize("bits", MODES)
def test_random_programs_do_what_qemu_does(bits: int, qemu: Qemu, kernel: Guest) -> None:
    number = random.SystemRandom().getrandbits(32)
    print(f"seed {number}")
    check(bits, qemu.run, kernel.run, number=number, examples=EXAMPLES, world=World.KERNEL)


@pytest.mark.calls("qemu-system-x86_64")
@pytest.mark.parametrize("bits", MODES)
def test_qemu_agrees_with_itself(bits: int, qemu: Qemu) -> None:
    """What a program leaves behind would be told as a difference of the next."""
    check(bits, qemu.run, qemu.run, number=1, examples=EXAMPLES // 3, world=World.KERNEL)


@needs_kvm
@pytest.mark.parametrize("bits", MODES)
def test_random_programs_beside_devices_do_what_kvm_does(bits: int) -> None:
    number = random.SystemRandom().getrandbits(32)
    print(f"seed {number}")
    with (
        KvmAccelerator() as kvm,
        SoftAccelerator() as soft,
        closing(Kvm(kvm, bits)) as right,
        closing(DeviceGuest(soft, bits)) as other,
    ):
        check(bits, right.run, other.run, number=number, examples=EXAMPLES, world=World.DEVICES)
