"""The probes: no feature disappears unseen, and a probe that could not run says so instead of answering."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peers import needs_kvm
from recorded_features import MISSING, kind_of_host

from kvmpy.accel import probe
from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import Exit, Interrupted
from kvmpy.accel.kvm import KvmAccelerator
from kvmpy.accel.probe import PROBES, Features
from kvmpy.accel.soft import SoftAccelerator
from kvmpy.accel.testbed import Testbed
from kvmpy.errors import HostError, KvmError, UnsupportedError

pytestmark = needs_kvm


@pytest.fixture
def kvm() -> Iterator[Accelerator]:
    with KvmAccelerator() as accelerator:
        yield accelerator


def test_what_is_recorded_are_features() -> None:
    assert set().union(*MISSING.values()) <= set(PROBES)


@pytest.mark.skipif(kind_of_host() is None, reason="no record of this kind of host: add one to recorded_features.py")
@pytest.mark.parametrize("name", [name for name in PROBES if name not in MISSING.get(kind_of_host() or "", ())])
def test_a_feature_that_was_there_is_there(kvm: Accelerator, name: str) -> None:
    assert getattr(kvm.features, name), Features.explain(name)


@pytest.mark.parametrize("name", [name for name in PROBES if name not in ("hypercall", "int_n_16_high", "chips")])
def test_a_guest_that_does_not_come_back_is_no_answer(
    kvm: Accelerator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A machine too busy to run the probe in time must not look like a processor that lacks the feature."""

    def kicked(_bed: Testbed, _seconds: float = 0) -> Exit:
        return Interrupted()

    monkeypatch.setattr(Testbed, "go", kicked)
    monkeypatch.setattr(KvmAccelerator, "features", Features(kvm))
    if name == "single_step":
        assert kvm.features.single_step  # one KVM_RUN, and no deadline to miss
        return
    with pytest.raises(HostError, match="less busy"):
        getattr(kvm.features, name)
    monkeypatch.undo()
    assert isinstance(getattr(kvm.features, name), bool)  # nothing was remembered


@pytest.mark.parametrize("name", ["hypercall", "int_n_16_high"])
def test_a_hang_is_time_burnt_not_time_waited(kvm: Accelerator, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def kicked(_bed: Testbed, _seconds: float = 0) -> Exit:
        return Interrupted()

    monkeypatch.setattr(Testbed, "go", kicked)
    burnt = iter(range(100))
    monkeypatch.setattr(probe.time, "thread_time", lambda: float(next(burnt)))
    assert getattr(Features(kvm), name) is False
    monkeypatch.setattr(probe.time, "thread_time", lambda: 0.0)
    with pytest.raises(HostError, match="no time to run"):
        getattr(Features(kvm), name)


@pytest.mark.parametrize("name", ["int3", "breakpoint", "syscall", "dirty_log"])
def test_an_ioctl_that_fails_is_an_error(kvm: Accelerator, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise KvmError("KVM_CREATE_VM on /dev/kvm: not enough memory", "KVM_CREATE_VM", "/dev/kvm", 12)

    monkeypatch.setattr(KvmAccelerator, "create_vm", refuse)
    with pytest.raises(KvmError):
        getattr(Features(kvm), name)


@pytest.mark.parametrize("name", ["chips", "dirty_log"])
def test_what_an_accelerator_does_not_offer_is_a_no(name: str) -> None:
    with SoftAccelerator() as soft:
        assert PROBES[name][1](soft) is False


def test_a_name_that_is_no_feature(kvm: Accelerator) -> None:
    with pytest.raises(UnsupportedError, match="no such probe; there are int3, "):
        kvm.features.teleport  # noqa: B018
