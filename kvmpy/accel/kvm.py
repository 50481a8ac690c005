"""KVM as an accelerator."""

from __future__ import annotations

import functools

from kvmpy.accel.base import Accelerator, Vm
from kvmpy.accel.kvm_vcpu import KvmVcpu
from kvmpy.errors import UnsupportedError
from kvmpy.kvm.binding import CData, constant, ffi
from kvmpy.kvm.lock import Lock
from kvmpy.kvm.system import DEVICE, Kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy.accel.probe import Features
    from kvmpy.kvm.vm import VmFd
    from kvmpy.memory import GuestMemory, Region

# Intel hosts keep a TSS and an identity map for real mode in guest-physical space, where firmware would be.
IDENTITY_MAP_ADDRESS = 0xFFFB_C000
TSS_ADDRESS = 0xFFFB_D000


class KvmAccelerator(Accelerator):
    """/dev/kvm. Opening it raises NoAcceleratorError with the reason when it cannot be used."""

    name = "kvm"

    def __init__(self, path: str = DEVICE) -> None:
        self.kvm = Kvm(path)
        self._quirks = self.kvm.capability("KVM_CAP_DISABLE_QUIRKS2") & constant("KVM_X86_QUIRK_FIX_HYPERCALL_INSN")

    def create_vm(self, *, patch_hypercalls: bool = False) -> KvmVm:
        """Create a VM; see Accelerator."""
        fd = self.kvm.create_vm()
        try:
            fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            fd.set_tss_address(TSS_ADDRESS)
            if self._quirks and not patch_hypercalls:
                fd.enable_cap("KVM_CAP_DISABLE_QUIRKS2", self._quirks)
            return KvmVm(self, fd)
        except BaseException:
            fd.close()
            raise

    @functools.cached_property
    def cpuid_table(self) -> CData:
        """The `struct kvm_cpuid2 *` that KVM offers guests on this host."""
        return self.kvm.supported_cpuid()

    @functools.cached_property
    def state_msrs(self) -> list[int]:
        """The indices of the MSRs that make up a vCPU's state."""
        return self.kvm.msr_indices()

    @functools.cached_property
    def xsave_size(self) -> int:
        """Bytes of a vCPU's XSAVE area."""
        return self.kvm.capability("KVM_CAP_XSAVE2") or 4096

    @functools.cached_property
    def features(self) -> Features:
        """The probed features of KVM on this host."""
        from kvmpy.accel.probe import Features

        return Features(self)

    def close(self) -> None:
        """Close /dev/kvm; VMs live on."""
        self.kvm.close()


class KvmVm(Vm):
    """A VM on KVM: owns the vCPUs it made."""

    def __init__(self, accelerator: KvmAccelerator, fd: VmFd) -> None:
        self.accelerator = accelerator
        self.fd = fd
        self.has_chips = False
        self.offers_chips = bool(fd.capability("KVM_CAP_IRQCHIP"))
        self._vcpus: list[KvmVcpu] = []
        self._slots: list[Region] = []
        self._views: list[CData] = []
        self._logging = False
        self.lock = Lock()
        self._can_coalesce = bool(fd.capability("KVM_CAP_COALESCED_PIO"))

    def add_memory(self, memory: GuestMemory) -> None:
        """Give each region a memory slot."""
        self.fd.open_fd("adding memory")
        for region in memory.regions:
            view = ffi.from_buffer(region.map)
            self._views.append(view)
            self._slots.append(region)
            self._set_slot(len(self._slots) - 1)

    def _set_slot(self, slot: int) -> None:
        region = self._slots[slot]
        flags = constant("KVM_MEM_READONLY") if region.readonly else 0
        flags |= constant("KVM_MEM_LOG_DIRTY_PAGES") if self._logging and not region.readonly else 0
        address = int(ffi.cast("uintptr_t", self._views[slot]))
        self.fd.set_memory_region(slot, region.gpa, region.size, address, flags=flags)

    def create_chips(self) -> None:
        """Create the chips in the kernel. A memory slot made after them costs 7 ms, before them 0.03 ms."""
        self.fd.create_irqchip()
        self.fd.create_pit()
        self.has_chips = True

    def create_vcpu(self, vcpu_id: int = 0, *, cpus: int = 1, local_apic: bool = False) -> KvmVcpu:
        """Create a vCPU; see Vm."""
        fd = self.fd.create_vcpu(vcpu_id)
        try:
            vcpu = KvmVcpu(self, fd)
            vcpu.set_host_cpuid(self.accelerator.cpuid_table, cpus, local_apic=self.has_chips or local_apic)
        except BaseException:
            fd.close()
            raise
        self._vcpus.append(vcpu)
        return vcpu

    def set_irq(self, gsi: int, level: int) -> None:
        """Drive a line of the in-kernel chips."""
        self.fd.irq_line(gsi, level)

    def irq_on(self, fd: int, gsi: int, on: bool) -> bool:
        """Connect the eventfd to the line in the kernel (KVM_IRQFD)."""
        if self.has_chips and self.fd.capability("KVM_CAP_IRQFD"):
            self.fd.irqfd(fd, gsi, remove=not on)
            return True
        return False

    def notify(self, fd: int, address: int, size: int, on: bool, *, port: bool, match: int | None = None) -> bool:
        """Let KVM signal the eventfd (KVM_IOEVENTFD); see Vm."""
        if not self.fd.capability("KVM_CAP_IOEVENTFD"):
            return False
        self.fd.ioeventfd(fd, address, size, port=port, match=match, remove=not on)
        return True

    def coalesce(self, port: int, on: bool) -> bool:
        """Collect one-byte writes to the port in KVM's ring, where KVM can (KVM_CAP_COALESCED_PIO)."""
        if self._can_coalesce:
            change = self.fd.coalesce if on else self.fd.uncoalesce
            change(port, 1, port=True)
        return self._can_coalesce

    def take_writes(self) -> tuple[int, int, bool, bytes] | None:
        """Take the oldest run of writes from the ring, which all vCPUs share."""
        write = self._vcpus[0].fd.drain() if self._vcpus else None
        if write is None:
            return None
        return write.address, write.size, bool(write.is_port), bytes(ffi.buffer(write.data, write.size * write.count))

    def exit_on_msrs(self, indices: Iterable[int]) -> None:
        """Deny the guest these MSRs by filter, and take the accesses in user space."""
        if not self.fd.capability("KVM_CAP_X86_MSR_FILTER"):
            raise UnsupportedError("MSR exits: this host's KVM has no KVM_CAP_X86_MSR_FILTER; use Linux 5.10 or newer")
        self.fd.exit_on_msrs()
        self.fd.filter_msrs(indices)

    def dirty_pages(self) -> list[int]:
        """Return what KVM's dirty log holds; see Vm."""
        if not self._logging:
            self._logging = True
            for slot in range(len(self._slots)):
                self._set_slot(slot)
            return []
        return [
            gpa for slot, region in enumerate(self._slots) if not region.readonly for gpa in self._log(slot, region)
        ]

    def _log(self, slot: int, region: Region) -> list[int]:
        bitmap = int.from_bytes(self.fd.get_dirty_log(slot, region.size >> 12), "little")
        pages = []
        while bitmap:
            lowest = bitmap & -bitmap
            pages.append(region.gpa + (lowest.bit_length() - 1 << 12))
            bitmap ^= lowest
        return pages

    def close(self) -> None:
        """Close the vCPUs and the VM, and let go of the memory."""
        for vcpu in self._vcpus:
            vcpu.close()
        self.fd.close()
        for view in self._views:
            ffi.release(view)
        self._views.clear()
        self._slots.clear()
