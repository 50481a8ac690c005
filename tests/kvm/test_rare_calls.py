"""Calls that few hosts answer: each is made, and what the host or the headers lack is told by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

import pytest
from kvm.conftest import MEMORY, Bare
from kvm.test_vm import EXIT_HLT, reason

from kvmpy.errors import KvmError, UnsupportedError
from kvmpy.kvm.binding import has
from kvmpy.kvm.system import Kvm


def or_told(capability: int, ioctl: str, call: Callable[[], object]) -> object:
    """Make a call; where the host says that it lacks it, the error must name it."""
    if capability:
        return call()
    with pytest.raises((KvmError, UnsupportedError), match=ioctl):
        call()
    pytest.skip(f"this host's KVM does not have {ioctl}")


def test_nested_state_goes_round(bare: Bare) -> None:
    bare.add_memory()
    vcpu = bare.vcpu()
    size = bare.vm.capability("KVM_CAP_NESTED_STATE")
    state = or_told(size, "KVM_GET_NESTED_STATE", lambda: vcpu.get_nested_state(size))
    assert isinstance(state, bytes)
    assert 128 <= len(state) <= size  # the header alone, as no guest hypervisor runs (api.rst, 4.114)
    vcpu.set_nested_state(state)
    assert vcpu.get_nested_state(size) == state


def test_a_machine_check_arrives_in_its_bank(kvm: Kvm, bare: Bare) -> None:
    """Intel SDM vol. 3, 15.3.2: STATUS is at 0x401 + 4 i, and bit 63 says that it is valid."""
    bare.vm.create_irqchip()
    bare.add_memory()
    vcpu = bare.vcpu()
    supported = or_told(kvm.capability("KVM_CAP_MCE"), "KVM_X86_GET_MCE_CAP_SUPPORTED", kvm.supported_mce)
    assert isinstance(supported, int)
    banks = min(supported & 0xFF or kvm.capability("KVM_CAP_MCE"), 10)
    vcpu.setup_mce(supported & ~0xFF | banks)
    assert vcpu.get_msrs([0x179])[0x179] & 0xFF == banks  # IA32_MCG_CAP
    status = 1 << 63 | 0x0151
    vcpu.set_mce(2, status, address=0x1234)
    assert vcpu.get_msrs([0x409])[0x409] == status
    with pytest.raises(KvmError, match="KVM_X86_SETUP_MCE"):
        vcpu.setup_mce(0xFF)


def test_performance_events_are_filtered(bare: Bare) -> None:
    there = bare.vm.capability("KVM_CAP_PMU_EVENT_FILTER")
    or_told(there, "KVM_SET_PMU_EVENT_FILTER", lambda: bare.vm.filter_pmu_events([0x00C0], allow=True))
    bare.vm.filter_pmu_events([], allow=False)
    with pytest.raises(KvmError, match="KVM_SET_PMU_EVENT_FILTER"):
        bare.vm.filter_pmu_events(range(1000), allow=True)


def test_hyperv_leaves_name_the_interface(kvm: Kvm) -> None:
    """TLFS, 2.4: leaf 0x40000001 has "Hv#1" in EAX."""
    table = or_told(
        kvm.capability("KVM_CAP_SYS_HYPERV_CPUID"), "KVM_GET_SUPPORTED_HV_CPUID", kvm.supported_hyperv_cpuid
    )
    leaves = {table.entries[i].function: table.entries[i] for i in range(table.nent)}  # type: ignore[attr-defined]
    assert leaves[0x40000001].eax.to_bytes(4, "little") == b"Hv#1"


def test_a_hyperv_connection_takes_an_eventfd(bare: Bare) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    with closing(os.fdopen(event, "rb", buffering=0)):
        there = bare.vm.capability("KVM_CAP_HYPERV_EVENTFD")
        or_told(there, "KVM_HYPERV_EVENTFD", lambda: bare.vm.hyperv_eventfd(1, event))
        with pytest.raises(KvmError, match="KVM_HYPERV_EVENTFD"):
            bare.vm.hyperv_eventfd(1, event)  # it has one
        bare.vm.hyperv_eventfd(1, event, remove=True)


def test_xen_gets_its_msr(bare: Bare) -> None:
    there = bare.vm.capability("KVM_CAP_XEN_HVM")
    or_told(there, "KVM_XEN_HVM_CONFIG", lambda: bare.vm.set_xen_hvm(0x40000000))


def test_accesses_to_the_task_priority_can_be_reported(bare: Bare) -> None:
    bare.vm.create_irqchip()
    bare.add_memory()
    vcpu = bare.vcpu()
    there = bare.vm.capability("KVM_CAP_VAPIC")
    or_told(there, "KVM_TPR_ACCESS_REPORTING", lambda: vcpu.report_tpr_accesses(True))
    vcpu.report_tpr_accesses(False)
    vcpu.set_vapic_address(0x3000)


def test_the_pages_that_intel_hosts_need_for_real_mode(bare: Bare) -> None:
    """As QEMU places them, at the end of the first 4 GiB less 256 KiB of firmware."""
    or_told(bare.vm.capability("KVM_CAP_SET_TSS_ADDR"), "KVM_SET_TSS_ADDR", lambda: bare.vm.set_tss_address(0xFFFBD000))
    there = bare.vm.capability("KVM_CAP_SET_IDENTITY_MAP_ADDR")
    or_told(there, "KVM_SET_IDENTITY_MAP_ADDR", lambda: bare.vm.set_identity_map_address(0xFFFBC000))
    bare.add_memory()
    assert reason(bare.vcpu().enter()) == EXIT_HLT


def test_a_system_management_interrupt_waits(bare: Bare) -> None:
    bare.add_memory()
    vcpu = bare.vcpu()
    or_told(bare.vm.capability("KVM_CAP_X86_SMM"), "KVM_SMI", vcpu.smi)
    assert vcpu.get_events().smi.pending


def test_a_register_by_its_id(bare: Bare) -> None:
    """KVM_REG_X86 | KVM_REG_SIZE_U64 | MSR 0x174 (api.rst, 4.68)."""
    bare.add_memory()
    vcpu = bare.vcpu()
    vcpu.set_msrs({0x174: 0x10})
    register = 0x2000_0000_0000_0000 | 0x30_0000_0000_0000 | 2 << 32 | 0x174
    try:
        value = vcpu.get_one_reg(register)
    except KvmError as error:
        assert "KVM_GET_ONE_REG on vCPU 0" in str(error)  # noqa: PT017
        pytest.skip("this host's KVM has no registers by id on x86")
    assert value == 0x10
    vcpu.set_one_reg(register, 0x18)
    assert vcpu.get_msrs([0x174])[0x174] == 0x18


def test_memory_of_newer_kernels(bare: Bare) -> None:
    """Absent where the headers lack it, and told by its name where the host does."""
    bare.add_memory()
    vcpu = bare.vcpu()
    calls: dict[str, Callable[[], object]] = {
        "KVM_SET_USER_MEMORY_REGION2": lambda: bare.vm.set_memory_region2(1, MEMORY, 4096, bare.address),
        "KVM_CREATE_GUEST_MEMFD": lambda: os.close(bare.vm.create_guest_memfd(4096)),
        "KVM_SET_MEMORY_ATTRIBUTES": lambda: bare.vm.set_memory_attributes(0, 4096, private=False),
        "KVM_PRE_FAULT_MEMORY": lambda: vcpu.prefault(0, 4096),
    }
    for name, call in calls.items():
        try:
            call()
        except UnsupportedError as error:
            assert not has(name)
            assert name in str(error)  # noqa: PT017
        except KvmError as error:
            assert has(name)
            assert name in str(error)  # noqa: PT017


def test_every_call_of_the_binding_is_made_by_some_test() -> None:
    """Each ioctl that a class of the binding issues stands behind a method that a test in this folder calls."""
    import re
    from pathlib import Path

    binding = Path(has.__code__.co_filename).parent
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    uncalled = []
    for name in ("system", "vm", "vcpu"):
        methods = re.split(r"\n    def ", (binding / f"{name}.py").read_text())[1:]
        for method in methods:
            title = method.partition("(")[0]
            issues = re.search(r'(ioctl|ioctl_value|get|get_cpuid|_msr_list)\((self, )?"KVM_', method)
            if issues and not title.startswith("_") and f".{title}" not in tests:
                uncalled.append(f"{name}.{title}")
    assert uncalled == []
