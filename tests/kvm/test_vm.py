"""What a VM's descriptor can do, each call for real."""

from __future__ import annotations

import mmap
import os
import select
import time

import pytest
from kvm.conftest import CODE, MEMORY, Bare

from kvmpy.errors import ConfigError, KvmError, UnsupportedError
from kvmpy.kvm.binding import constant, ffi
from kvmpy.kvm.system import Kvm
from kvmpy.kvm.vcpu import VcpuFd
from kvmpy.kvm.vm import MsrRange

IRR, SVR, APIC_ON = 0x200, 0xF0, 0x1FF  # local APIC registers (Intel SDM vol. 3, table 10-1)
MSI = 0xFEE00000  # 10.11.1: destination 0
EXIT_IO, EXIT_HLT, EXIT_MMIO = 2, 5, 6  # KVM_EXIT_* of <linux/kvm.h>
SECONDS = 5.0


def reason(code: int) -> int:
    """The exit's reason, as the run page has it."""
    return code & 0xFF


def requested(bare: Bare, vcpu: object) -> set[int]:
    """The vectors in a local APIC's IRR (Intel SDM vol. 3, 10.8.4)."""
    page = vcpu.get_lapic()  # type: ignore[attr-defined]
    words = [int.from_bytes(page[IRR + 16 * i : IRR + 16 * i + 4], "little") for i in range(8)]
    return {32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1}


def with_apic(bare: Bare) -> object:
    bare.add_memory()
    vcpu = bare.vcpu()
    page = bytearray(vcpu.get_lapic())
    page[SVR : SVR + 4] = APIC_ON.to_bytes(4, "little")
    vcpu.set_lapic(bytes(page))
    return vcpu


def wait_until(is_so) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + SECONDS
    while not is_so():
        if time.monotonic() > end:
            return False
        select.select([], [], [], 0.001)
    return True


def test_a_message_is_an_interrupt(bare: Bare) -> None:
    bare.vm.create_irqchip()
    vcpu = with_apic(bare)
    assert bare.vm.signal_msi(MSI, 0x41) == 1
    assert requested(bare, vcpu) == {0x41}


def test_a_message_goes_to_a_split_chips_local_apic_too(bare: Bare) -> None:
    bare.vm.create_split_irqchip()
    vcpu = with_apic(bare)
    assert bare.vm.signal_msi(MSI, 0x42) == 1
    assert requested(bare, vcpu) == {0x42}


def test_a_line_can_be_routed_to_a_message(bare: Bare) -> None:
    bare.vm.create_irqchip()
    vcpu = with_apic(bare)
    bare.vm.set_gsi_routing([(4, "PIC_MASTER", 4), (30, MSI, 0x55), (5, "IOAPIC", 5)])
    bare.vm.irq_line(30, 1)
    assert requested(bare, vcpu) == {0x55}
    bare.vm.irq_line(4, 1)
    assert bare.vm.get_irqchip("PIC_MASTER").chip.pic.irr == 1 << 4


def test_a_line_that_is_routed_nowhere_does_nothing(bare: Bare) -> None:
    bare.vm.create_irqchip()
    bare.vm.set_gsi_routing([(4, "PIC_MASTER", 4)])
    bare.vm.irq_line(3, 1)
    assert bare.vm.get_irqchip("PIC_MASTER").chip.pic.irr == 0


def test_an_eventfd_raises_a_line(bare: Bare) -> None:
    bare.vm.create_irqchip()
    vcpu = with_apic(bare)
    bare.vm.set_gsi_routing([(30, MSI, 0x66)])
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        bare.vm.irqfd(event, 30)
        with pytest.raises(KvmError, match="already raises an interrupt"):
            bare.vm.irqfd(event, 30)
        os.eventfd_write(event, 1)
        assert wait_until(lambda: requested(bare, vcpu) == {0x66})
        bare.vm.irqfd(event, 30, remove=True)
    finally:
        os.close(event)


def test_an_eventfd_needs_a_chip(bare: Bare) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        with pytest.raises(KvmError, match="it needs the in-kernel irqchip"):
            bare.vm.irqfd(event, 4)
    finally:
        os.close(event)


@pytest.mark.parametrize(("value", "signals"), [(5, True), (6, False)])
def test_a_write_signals_an_eventfd_if_its_value_matches(bare: Bare, value: int, signals: bool) -> None:
    """OUT 0x10, AL with AL 5 or 6; only 5 is asked for."""
    bare.add_memory()
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        bare.vm.ioeventfd(event, 0x10, 1, port=True, match=5)
        vcpu = bare.vcpu(f"b0{value:02x} e610 f4")
        assert reason(vcpu.enter()) == (EXIT_HLT if signals else EXIT_IO)
        if signals:
            assert os.eventfd_read(event) == 1
        else:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(event)
        bare.vm.ioeventfd(event, 0x10, 1, port=True, match=5, remove=True)
    finally:
        os.close(event)


def test_a_port_and_an_address_are_two_things(bare: Bare) -> None:
    """The same number as an MMIO address does not catch the OUT."""
    bare.add_memory()
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        bare.vm.ioeventfd(event, 0x200000, 1)
        bare.vm.ioeventfd(event, 0x10, 1)
        assert reason(bare.vcpu("b005 e610 f4").enter()) == EXIT_IO
    finally:
        os.close(event)


def test_writes_are_collected(bare: Bare) -> None:
    """OUT 0x20, AL three times with AL 1, 2, 3, and HLT: one exit."""
    bare.add_memory()
    if not bare.vm.capability("KVM_CAP_COALESCED_PIO"):
        pytest.skip("this host's KVM does not collect port writes")
    bare.vm.coalesce(0x20, 1, port=True)
    vcpu = bare.vcpu("b001 e620 b002 e620 b003 e620 f4")
    assert reason(vcpu.enter()) == EXIT_HLT
    write = vcpu.drain()
    assert write is not None
    assert bytes(ffi.buffer(write.data, write.size * write.count)) == b"\x01\x02\x03"
    assert vcpu.drain() is None
    bare.vm.uncoalesce(0x20, 1, port=True)


def test_the_dirty_log_and_its_clearing(bare: Bare) -> None:
    """MOV [0x3000], AL; MOV [0x5000], AL; HLT: pages 3 and 5."""
    if not bare.vm.capability("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"):
        pytest.skip("this host's KVM clears the log only by reading")
    bare.vm.enable_cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", 1)
    bare.add_memory(flags=constant("KVM_MEM_LOG_DIRTY_PAGES"))
    vcpu = bare.vcpu("a20030 a20050 f4")
    assert reason(vcpu.enter()) == EXIT_HLT
    pages = MEMORY >> 12
    log = int.from_bytes(bare.vm.get_dirty_log(0, pages), "little")
    assert log & 0xFF == 1 << 3 | 1 << 5
    bare.vm.clear_dirty_log(0, 0, (1 << 3).to_bytes(8, "little"))
    assert int.from_bytes(bare.vm.get_dirty_log(0, pages), "little") & 0xFF == 1 << 5


def test_a_slot_without_a_log_has_none(bare: Bare) -> None:
    bare.add_memory()
    with pytest.raises(KvmError, match="does not log dirty pages"):
        bare.vm.get_dirty_log(0, MEMORY >> 12)


def test_the_clock_can_be_set_and_runs(bare: Bare) -> None:
    bare.vm.set_clock(10**15)
    first = bare.vm.get_clock().clock
    assert 10**15 <= first < 10**15 + 60 * 10**9
    assert bare.vm.get_clock().clock >= first


def test_statistics_of_vm_and_vcpu(bare: Bare) -> None:
    if not bare.vm.capability("KVM_CAP_BINARY_STATS_FD"):
        pytest.skip("this host's KVM has no binary statistics")
    bare.add_memory()
    vcpu = bare.vcpu()
    with bare.vm.stats() as ours, vcpu.stats() as theirs:
        before = theirs.read()["exits"].values[0]
        assert "remote_tlb_flush" in ours.read()
        assert reason(vcpu.enter()) == EXIT_HLT
        assert theirs.read()["exits"].values[0] > before


def test_shadow_pages_have_a_limit(bare: Bare) -> None:
    bare.vm.set_mmu_pages(100)
    try:
        assert bare.vm.mmu_pages() == 100
    except KvmError as error:  # x86 has lost this call in Linux 6.11
        assert "does not know the call" in str(error)  # noqa: PT017


def test_the_bootstrap_processor_is_chosen_before_any_is_made(bare: Bare) -> None:
    bare.vm.create_irqchip()
    bare.vm.set_boot_cpu_id(1)
    bare.add_memory()
    assert bare.vcpu(number=1).get_mp_state() == 0  # KVM_MP_STATE_RUNNABLE
    assert bare.vcpu(number=0).get_mp_state() == 1  # KVM_MP_STATE_UNINITIALIZED
    with pytest.raises(KvmError, match="before the first vCPU"):
        bare.vm.set_boot_cpu_id(0)


def test_chips_and_timer_give_and_take_their_state(bare: Bare) -> None:
    bare.vm.create_irqchip()
    bare.vm.create_pit()
    chip = bare.vm.get_irqchip("PIC_SLAVE")
    chip.chip.pic.imr, chip.chip.pic.irq_base = 0xA5, 0x70
    bare.vm.set_irqchip(chip)
    again = bare.vm.get_irqchip("PIC_SLAVE").chip.pic
    assert (again.imr, again.irq_base) == (0xA5, 0x70)
    pit = bare.vm.get_pit()
    pit.channels[0].mode, pit.channels[0].count = 2, 1193
    bare.vm.set_pit(pit)
    assert (bare.vm.get_pit().channels[0].mode, bare.vm.get_pit().channels[0].count) == (2, 1193)
    bare.vm.set_pit_reinject(False)


def test_a_line_tells_what_became_of_it(bare: Bare) -> None:
    bare.vm.create_irqchip()
    with_apic(bare)
    bare.vm.set_gsi_routing([(30, MSI, 0x55)])
    assert bare.vm.irq_line_status(30, 1) >= 0


def test_without_chips_their_calls_say_what_is_missing(bare: Bare) -> None:
    with pytest.raises(KvmError, match="no in-kernel irqchip"):
        bare.vm.irq_line(4, 1)
    with pytest.raises(KvmError, match="no in-kernel irqchip"):
        bare.vm.get_irqchip("IOAPIC")
    with pytest.raises(KvmError, match="no in-kernel PIT"):
        bare.vm.get_pit()


def test_a_device_that_the_kernel_does_not_have(bare: Bare) -> None:
    with pytest.raises(KvmError, match="no such in-kernel device"):
        bare.vm.create_device(12345)
    kind = constant("KVM_DEV_TYPE_VFIO")
    try:
        bare.vm.create_device(kind, test=True)
    except KvmError as error:
        assert "no such in-kernel device" in str(error)  # noqa: PT017
        return
    with bare.vm.create_device(kind) as device:  # type: ignore[union-attr]
        assert not device.has_attribute(77, 0)


@pytest.mark.parametrize("args", [(1, 2, 3, 4, 5), (-1,), (1 << 64,)])
def test_arguments_of_a_capability_that_cannot_be(bare: Bare, args: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="KVM_CAP_X86_DISABLE_EXITS"):
        bare.vm.enable_cap("KVM_CAP_X86_DISABLE_EXITS", *args)


READ_TSC = "66b910000000 0f32 f4"  # mov ecx, 0x10 (IA32_TIME_STAMP_COUNTER); rdmsr; hlt
EXIT_RDMSR = 29


@pytest.mark.parametrize(
    ("ranges", "default_deny", "denied"),
    [
        ([], False, False),
        ([0x10], False, True),
        ([0x11], False, False),
        ([MsrRange(0x10, 16)], False, True),
        ([MsrRange(0, 32, allowed=frozenset({0x10}))], False, False),
        ([MsrRange(0x10, read=False)], False, False),
        ([MsrRange(0x1000, 16)], True, True),
        ([MsrRange(0, 32, allowed=frozenset({0x10}))], True, False),
        (list(range(0x1000)), False, True),
    ],
)
def test_msrs_are_filtered(bare: Bare, ranges: list[MsrRange | int], default_deny: bool, denied: bool) -> None:
    """api.rst, 4.97: a bit that is clear denies; what no range speaks of follows the default."""
    if not bare.vm.capability("KVM_CAP_X86_MSR_FILTER"):
        pytest.skip("this host's KVM does not filter MSRs")
    bare.add_memory()
    bare.vm.exit_on_msrs(unknown=False, invalid=False)
    bare.vm.filter_msrs(ranges, default_deny=default_deny)
    assert reason(bare.vcpu(READ_TSC).enter()) == (EXIT_RDMSR if denied else EXIT_HLT)


@pytest.mark.parametrize(
    ("ranges", "default_deny", "said"),
    [
        ([2 * n for n in range(17)], False, "17 ranges; there can be 16"),
        ([1 << 32], False, "of 32 bits"),
        ([-1], False, "of 32 bits"),
        ([MsrRange(0, 20000)], False, "there can be 1 to 12288"),
        ([MsrRange(0, 0)], False, "there can be 1 to 12288"),
        ([MsrRange(0, 4, allowed=frozenset({4}))], False, "0x4 is not in the range"),
        ([MsrRange(0, read=False, write=False)], False, "neither reading nor writing"),
        ([], True, "to deny all MSRs"),
    ],
)
def test_filters_that_cannot_be(bare: Bare, ranges: list[MsrRange | int], default_deny: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bare.vm.filter_msrs(ranges, default_deny=default_deny)


RING, BIG = 4096 * 16, 64 << 20  # entries of 16 bytes; 16384 pages


def test_a_ring_of_dirty_pages_until_it_is_full(kvm: Kvm, bare: Bare) -> None:
    """A guest writes one page after the other, and exits after each 30: KVM looks at the ring when it enters."""
    if not kvm.capability("KVM_CAP_DIRTY_LOG_RING"):
        pytest.skip("this host's KVM has no dirty ring")
    bare.vm.enable_cap("KVM_CAP_DIRTY_LOG_RING", RING)
    bare.add_memory(flags=constant("KVM_MEM_LOG_DIRTY_PAGES"))
    with mmap.mmap(-1, BIG) as big, ffi.from_buffer(big) as view:
        address = int(ffi.cast("uintptr_t", view))
        bare.vm.set_memory_region(1, MEMORY, BIG, address, flags=constant("KVM_MEM_LOG_DIRTY_PAGES"))
        vcpu = bare.vcpu()
        vcpu.map_dirty_ring(RING)
        # mov esi, 1M; again: mov ecx, 30; next: mov [esi], al; add esi, 4096; dec ecx; jnz next; out 16, al; jmp again
        flat(bare, vcpu, "be00001000 b91e000000 8806 81c600100000 49 75f5 e610 ebec")
        seen: set[tuple[int, int]] = set()
        for _ in range(2):
            exits = [reason(vcpu.enter())]
            while exits[-1] == EXIT_IO and len(exits) < BIG // 4096 // 30:
                exits.append(reason(vcpu.enter()))
            assert exits[-1] == constant("KVM_EXIT_DIRTY_RING_FULL")
            pages = vcpu.harvest_dirty_ring()
            assert 1000 < len(pages) <= RING // 16
            assert {slot for slot, _ in pages} <= {0, 1}
            assert not seen & {page for page in pages if page[0] == 1}  # none twice: each is written once
            seen |= set(pages)
            assert bare.vm.reset_dirty_rings() == len(pages)
            assert vcpu.harvest_dirty_ring() == []
        vcpu.close()
        bare.vm.set_memory_region(1, MEMORY, 0, 0)


def flat(bare: Bare, vcpu: VcpuFd, code: str) -> None:
    """Let a vCPU run flat 32-bit code at CODE."""
    bare.memory[CODE : CODE + len(bytes.fromhex(code))] = bytes.fromhex(code)
    sregs = vcpu.get_sregs()
    for name in ("cs", "ds", "es", "ss"):
        segment = getattr(sregs, name)
        segment.base, segment.limit, segment.g, segment.db, segment.selector = 0, 0xFFFFFFFF, 1, 1, 8
        segment.type, segment.s, segment.present = (11 if name == "cs" else 3), 1, 1
    sregs.cr0 |= 1
    vcpu.set_sregs(sregs)


def test_a_ring_that_is_not_mapped(bare: Bare) -> None:
    bare.add_memory()
    with pytest.raises(ConfigError, match="it is not mapped"):
        bare.vcpu().harvest_dirty_ring()


def test_a_capability_that_is_none(bare: Bare) -> None:
    with pytest.raises(UnsupportedError, match="KVM_CAP_NONSENSE is no capability"):
        bare.vm.enable_cap("KVM_CAP_NONSENSE")
    with pytest.raises(UnsupportedError, match="KVM_CAP_NONSENSE is no capability"):
        bare.vcpu().enable_cap("KVM_CAP_NONSENSE")


def test_the_tsc_of_vcpus_to_come(bare: Bare) -> None:
    if not bare.vm.capability("KVM_CAP_VM_TSC_CONTROL"):
        pytest.skip("this host's KVM has one TSC frequency per vCPU only")
    khz = bare.vm.tsc_khz()
    bare.vm.set_tsc_khz(khz)
    bare.add_memory()
    vcpu = bare.vcpu()
    assert vcpu.tsc_khz() == khz
    vcpu.set_tsc_khz(khz)
    with pytest.raises(KvmError, match="KVM_SET_TSC_KHZ"):
        vcpu.set_tsc_khz(1)


def test_what_describes_the_host(kvm: Kvm) -> None:
    assert kvm.api_version() == 12
    assert kvm.vcpu_mmap_size() % 4096 == 0
    assert {1, 0} <= {kvm.supported_cpuid().entries[i].function for i in range(kvm.supported_cpuid().nent)}
    assert kvm.emulated_cpuid().nent >= 0
    assert 0x174 in kvm.msr_indices()  # IA32_SYSENTER_CS
    features = kvm.msr_feature_indices()
    assert set(kvm.feature_msrs(features)) <= set(features)


def test_code_is_where_the_fixture_put_it(bare: Bare) -> None:
    bare.add_memory()
    vcpu = bare.vcpu("90 f4")
    assert reason(vcpu.enter()) == EXIT_HLT
    assert vcpu.get_regs().rip == CODE + 2
