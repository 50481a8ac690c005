"""What a vCPU's descriptor can do, each call for real."""

from __future__ import annotations

import signal
import threading

import pytest
from kvm.conftest import CODE, Bare
from kvm.test_vm import EXIT_HLT, reason

from kvmpy.errors import ClosedError, KvmError
from kvmpy.kvm.binding import ffi
from kvmpy.kvm.vcpu import VcpuFd

EXIT_INTR, EXIT_DEBUG = 10, 4  # KVM_EXIT_*
GUESTDBG_ENABLE, GUESTDBG_SINGLESTEP = 1, 2


@pytest.fixture
def vcpu(bare: Bare) -> VcpuFd:
    """A vCPU in real mode before NOP, HLT."""
    bare.add_memory()
    return bare.vcpu("90 f4")


def test_general_registers(vcpu: VcpuFd) -> None:
    regs = vcpu.get_regs()
    regs.rbx, regs.r15 = 0x1122334455667788, 7
    vcpu.set_regs(regs)
    assert (vcpu.get_regs().rbx, vcpu.get_regs().r15) == (0x1122334455667788, 7)


def test_special_registers_and_those_with_pae_pointers(vcpu: VcpuFd) -> None:
    sregs = vcpu.get_sregs()
    sregs.cr2, sregs.gdt.base = 0x1234, 0x5678
    vcpu.set_sregs(sregs)
    again = vcpu.get_sregs2()
    assert (again.cr2, again.gdt.base) == (0x1234, 0x5678)
    again.cr2 = 0x4321
    vcpu.set_sregs2(again)
    assert vcpu.get_sregs().cr2 == 0x4321


def test_special_registers_that_the_processor_refuses(vcpu: VcpuFd) -> None:
    """CR0.PG without CR0.PE (Intel SDM vol. 3, 2.5)."""
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1 << 31
    with pytest.raises(KvmError, match="the processor refuses"):
        vcpu.set_sregs(sregs)


def test_special_registers_that_come_by_the_run_page(vcpu: VcpuFd) -> None:
    """KVM_CAP_SYNC_REGS: kvm_dirty_regs names what KVM_RUN shall take over first."""
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1 << 31
    vcpu.run.s.regs.sregs = sregs[0]
    vcpu.run.kvm_dirty_regs = 2  # KVM_SYNC_X86_SREGS
    code = vcpu.enter()
    assert "EINVAL" in str(vcpu.run_error(code))
    assert "the processor refuses" in str(vcpu.run_error(code))


def test_xsave_and_fpu_are_one_state(vcpu: VcpuFd) -> None:
    """XMM0 lies at 160 of the area, MXCSR at 24 (Intel SDM vol. 1, 10.5.1); XSTATE_BV at 512 says what is there."""
    area = bytearray(vcpu.get_xsave())
    area[160:176] = bytes(range(16))
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[512] |= 3
    vcpu.set_xsave(bytes(area))
    assert list(vcpu.get_fpu().xmm[0]) == list(range(16))
    assert vcpu.get_xsave()[160:176] == bytes(range(16))


def test_the_fpu_can_be_set(vcpu: VcpuFd) -> None:
    """Some hosts lose the control word that way (see `VcpuFd.set_fpu`), but not the registers."""
    fpu = vcpu.get_fpu()
    fpu.xmm[3] = list(range(16))
    vcpu.set_fpu(fpu)
    assert list(vcpu.get_fpu().xmm[3]) == list(range(16))


def test_the_whole_xsave_area(bare: Bare, vcpu: VcpuFd) -> None:
    size = bare.vm.capability("KVM_CAP_XSAVE2")
    if not size:
        pytest.skip("this host's KVM has no KVM_GET_XSAVE2")
    assert len(vcpu.get_xsave2(size)) == size
    assert vcpu.get_xsave2(size)[:512] == vcpu.get_xsave()[:512]


def test_extended_control_registers(vcpu: VcpuFd) -> None:
    xcrs = vcpu.get_xcrs()
    assert xcrs[0] & 1  # XCR0.X87 is always set (Intel SDM vol. 3, 2.6)
    vcpu.set_xcrs(xcrs)
    with pytest.raises(KvmError, match="XCR0"):
        vcpu.set_xcrs({0: 1 << 62})


def test_msrs_and_those_that_are_refused(vcpu: VcpuFd) -> None:
    assert vcpu.set_msrs({0x174: 0x10, 0x175: 0x2000}) == []  # IA32_SYSENTER_CS and ESP
    assert vcpu.get_msrs([0x174, 0x175]) == {0x174: 0x10, 0x175: 0x2000}
    assert vcpu.set_msrs({0x12345678: 1, 0x174: 0x18}) == [0x12345678]
    assert vcpu.get_msrs([0x174])[0x174] == 0x18


def test_cpuid_cannot_change_once_it_has_run(bare: Bare, vcpu: VcpuFd) -> None:
    table = vcpu.get_cpuid()
    vcpu.set_cpuid(table)
    assert reason(vcpu.enter()) == EXIT_HLT
    if table.nent:
        table.entries[0].eax ^= 1
        with pytest.raises(KvmError, match="once the vCPU has run"):
            vcpu.set_cpuid(table)


def test_debug_registers(vcpu: VcpuFd) -> None:
    registers = vcpu.get_debugregs()
    registers.db[0], registers.dr7 = 0x1001, 0x402  # G0
    vcpu.set_debugregs(registers)
    assert (vcpu.get_debugregs().db[0], vcpu.get_debugregs().dr7) == (0x1001, 0x402)


def test_stepping(vcpu: VcpuFd) -> None:
    vcpu.set_guest_debug(GUESTDBG_ENABLE | GUESTDBG_SINGLESTEP)
    assert reason(vcpu.enter()) == EXIT_DEBUG
    assert vcpu.get_regs().rip == CODE + 1
    vcpu.set_guest_debug(0)
    assert reason(vcpu.enter()) == EXIT_HLT


def test_events_wait_and_can_be_taken_back(vcpu: VcpuFd) -> None:
    vcpu.nmi()
    events = vcpu.get_events()
    assert events.nmi.pending or events.nmi.injected
    events.nmi.pending = events.nmi.injected = 0
    events.flags = 1  # KVM_VCPUEVENT_VALID_NMI_PENDING
    vcpu.set_events(events)
    assert not vcpu.get_events().nmi.pending


def test_an_interrupt_that_waits_already(bare: Bare) -> None:
    """With local APICs in the kernel and PICs outside, user space hands over one vector at a time (api.rst, 4.16)."""
    bare.vm.create_split_irqchip()
    bare.add_memory()
    vcpu = bare.vcpu()
    vcpu.interrupt(0x20)
    with pytest.raises(KvmError, match="waiting already"):
        vcpu.interrupt(0x21)


def test_an_interrupt_beside_chips(bare: Bare) -> None:
    bare.vm.create_irqchip()
    bare.add_memory()
    with pytest.raises(KvmError, match="use irq_line"):
        bare.vcpu().interrupt(0x20)


def test_without_chips_there_is_no_local_apic(vcpu: VcpuFd) -> None:
    with pytest.raises(KvmError, match="no in-kernel local APIC"):
        vcpu.get_lapic()


def test_translation_without_paging_changes_nothing(vcpu: VcpuFd) -> None:
    found = vcpu.translate(0x1234)
    assert (found.physical_address, found.valid) == (0x1234, 1)


def test_the_processors_state(bare: Bare) -> None:
    bare.vm.create_irqchip()
    bare.add_memory()
    vcpu = bare.vcpu()
    vcpu.set_mp_state(3)  # KVM_MP_STATE_HALTED
    assert vcpu.get_mp_state() == 3


def test_a_signal_ends_a_run_unless_it_is_blocked_in_the_guest(vcpu: VcpuFd) -> None:
    """The thread blocks SIGUSR1, so it waits; KVM_RUN has a mask of its own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        vcpu.set_signal_mask([])
        assert reason(vcpu.enter()) == EXIT_INTR
        vcpu.set_signal_mask([signal.SIGUSR1])
        assert reason(vcpu.enter()) == EXIT_HLT
        vcpu.set_signal_mask(None)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        signal.signal(signal.SIGUSR1, before)


def test_the_tsc_has_a_frequency_and_an_offset(vcpu: VcpuFd) -> None:
    assert vcpu.tsc_khz() > 100_000
    if not vcpu.has_attribute(0, 0):  # KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
        pytest.skip("this host's KVM has no attribute for the TSC's offset")
    offset = ffi.new("uint64_t *", 12345)
    vcpu.set_attribute(0, 0, offset)
    out = ffi.new("uint64_t *")
    vcpu.get_attribute(0, 0, out)
    if not out[0]:
        pytest.skip("this host's KVM takes an offset, and forgets it")
    assert out[0] == 12345
    assert not vcpu.has_attribute(0, 77)


def test_a_guest_without_kvmclock_cannot_be_told_of_a_pause(vcpu: VcpuFd) -> None:
    with pytest.raises(KvmError, match="KVM_KVMCLOCK_CTRL on vCPU 0: EINVAL"):
        vcpu.kvmclock_ctrl()


def test_a_descriptor_that_is_closed_says_so(bare: Bare) -> None:
    bare.add_memory()
    vcpu = bare.vcpu()
    vcpu.close()
    vcpu.close()
    for attempt in (vcpu.get_regs, vcpu.nmi, lambda: vcpu.run, lambda: vcpu.map_dirty_ring(4096)):
        with pytest.raises(ClosedError, match="vCPU 0: it is closed"):
            attempt()
    assert vcpu.fileno() == -1
