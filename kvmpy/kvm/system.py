"""Kvm: the file descriptor of /dev/kvm."""

from __future__ import annotations

import errno
import os

from kvmpy.errors import NoAcceleratorError
from kvmpy.kvm.binding import CData, Fd, constant, ffi, ioctl_error, lib
from kvmpy.kvm.capabilities import CAPABILITIES
from kvmpy.kvm.query import check_extension, get_cpuid, get_msrs
from kvmpy.kvm.vm import VmFd

DEVICE = "/dev/kvm"
API_VERSION = 12

ADVICE = {
    errno.ENOENT: "the kernel has no KVM, or its module is not loaded; try 'modprobe kvm_intel' or 'modprobe kvm_amd'",
    errno.EPERM: "this sandbox or container forbids it; pass the device in",
    errno.ENODEV: "the device node is there but no KVM module is loaded",
    errno.ENXIO: "the device node is there but no KVM module is loaded",
    errno.EISDIR: "it must be the KVM device",
}


ASK = "run 'kvmpy info' for what this host has"
GROUP_MAY = 0o060


def _how_to_be_let_in(path: str) -> str:
    """Return what helps who may not open the device: a group that may, or root has to give one the right."""
    if os.stat(path).st_mode & GROUP_MAY == GROUP_MAY:
        return "add yourself to the group that owns it, usually 'kvm', and log in again"
    return f"its mode lets nobody in but its owner; as root: 'chgrp kvm {path} && chmod g+rw {path}'"


class Kvm(Fd):
    """/dev/kvm: asks what the host can do, and creates VMs.

    >>> with Kvm() as kvm:
    ...     kvm.api_version()
    12
    """

    def __init__(self, path: str = DEVICE) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or 0
            name = errno.errorcode.get(code, str(code))
            advice = _how_to_be_let_in(path) if code == errno.EACCES else ADVICE.get(code, ASK)
            raise NoAcceleratorError(f"open {path}: {name} ({os.strerror(code)}); {advice}") from None
        super().__init__(fd, path)
        try:
            self._check_version()
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        answer = lib.kvmpy_ioctl_value(self._fd, constant("KVM_GET_API_VERSION"), 0)
        if answer < 0:
            raise NoAcceleratorError(
                f"{ioctl_error('KVM_GET_API_VERSION', self.target, -answer)}; it is not a KVM device"
            )
        if answer != API_VERSION:
            raise NoAcceleratorError(
                f"KVM_GET_API_VERSION on {self.target}: version {answer}, kvmpy speaks {API_VERSION}; update the kernel"
            )

    def api_version(self) -> int:
        """Return KVM's API version, 12 since Linux 2.6.22."""
        return self.ioctl_value("KVM_GET_API_VERSION")

    def capability(self, name: str) -> int:
        """Return the value of a capability (`KVM_CAP_IRQCHIP`), 0 when host or headers lack it.

        Raises UnsupportedError for a name that is no x86 capability.
        """
        return check_extension(self, name)

    def capabilities(self) -> dict[str, int]:
        """Return every known capability with its value on this host; 0 means it is missing."""
        return {name: check_extension(self, name) for name in CAPABILITIES}

    def create_vm(self, kind: int = 0) -> VmFd:
        """Create a VM of the machine type `kind` (0 is the normal one)."""
        fd = self.ioctl_value("KVM_CREATE_VM", kind)
        return VmFd(fd, self.vcpu_mmap_size())

    def vcpu_mmap_size(self) -> int:
        """Return the bytes to map of a vCPU: its run page, the port-data page and the coalesced ring."""
        return self.ioctl_value("KVM_GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self) -> CData:
        """Return `struct kvm_cpuid2 *` with the leaves KVM and this host support."""
        return get_cpuid(self, "KVM_GET_SUPPORTED_CPUID")

    def emulated_cpuid(self) -> CData:
        """Return `struct kvm_cpuid2 *` with the features KVM emulates though the host may lack them."""
        return get_cpuid(self, "KVM_GET_EMULATED_CPUID")

    def supported_hyperv_cpuid(self) -> CData:
        """Return `struct kvm_cpuid2 *` with the Hyper-V leaves KVM can give a guest (KVM_CAP_SYS_HYPERV_CPUID)."""
        return get_cpuid(self, "KVM_GET_SUPPORTED_HV_CPUID")

    def supported_mce(self) -> int:
        """Return IA32_MCG_CAP as a vCPU may have it: banks in bits 7:0 (Intel SDM vol. 3, 15.3.1.1)."""
        out = ffi.new("uint64_t *")
        self.ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED", out)
        return int(out[0])

    def msr_indices(self) -> list[int]:
        """Return the indices of the MSRs that make up a guest's state."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def msr_feature_indices(self) -> list[int]:
        """Return the indices of the MSRs that describe features of host and KVM."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def _msr_list(self, name: str) -> list[int]:
        count = ffi.new("struct kvm_msr_list *", {"nmsrs": 0})
        self.ioctl(name, count, quiet=(errno.E2BIG,))
        full = ffi.new("struct kvm_msr_list *", {"nmsrs": count.nmsrs, "indices": count.nmsrs})
        self.ioctl(name, full)
        return list(full.indices[0 : full.nmsrs])

    def feature_msrs(self, indices: list[int]) -> dict[int, int]:
        """Return the values of feature MSRs (KVM_CAP_GET_MSR_FEATURES)."""
        return get_msrs(self, indices)
