"""The compiled module, and what every class of the binding shares: ioctls that fail with a named reason."""

from __future__ import annotations

import errno
import os
import warnings

from kvmpy.errors import ClosedError, KvmError, UnsupportedError

try:
    from kvmpy.kvm._kvm import ffi as ffi
    from kvmpy.kvm._kvm import lib as lib
except ImportError as error:
    raise UnsupportedError(
        f"kvmpy's compiled binding cannot be loaded ({error}); build it with 'pip install -e .' in the checkout"
    ) from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    CData = Any  # a pointer or struct of the type the docstring names; cffi has no types to offer
else:
    CData = ffi.CData


# The likely cause behind an errno, for one ioctl or, with an empty name, for any.
CAUSES = {
    ("KVM_CREATE_VM", errno.ENOMEM): "the host is out of memory or of VMs; close others",
    ("KVM_CREATE_VM", errno.EINVAL): "this VM type does not exist on the host",
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor holds the virtualization hardware; stop it",
    ("KVM_CREATE_VCPU", errno.EEXIST): "a vCPU with this id exists already, or the irqchip was made after a vCPU",
    ("KVM_CREATE_VCPU", errno.EINVAL): "the vCPU id is beyond KVM_CAP_MAX_VCPU_ID, or there are too many vCPUs",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "the VM has an irqchip already",
    ("KVM_CREATE_IRQCHIP", errno.EINVAL): "the irqchip must be created before the first vCPU",
    ("KVM_CREATE_PIT2", errno.EEXIST): "the VM has a PIT already",
    ("KVM_CREATE_PIT2", errno.ENOENT): "the PIT needs the in-kernel irqchip; call create_irqchip() first",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the range overlaps another memory slot",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): "address, size and user memory must be page-aligned, and the slot "
    "number below KVM_CAP_NR_MEMSLOTS; an existing slot can only be moved or deleted",
    ("KVM_GET_DIRTY_LOG", errno.ENOENT): "the slot does not exist or does not log dirty pages",
    ("KVM_IRQ_LINE", errno.ENXIO): "the VM has no in-kernel irqchip; call create_irqchip() first",
    ("KVM_IRQ_LINE_STATUS", errno.ENXIO): "the VM has no in-kernel irqchip; call create_irqchip() first",
    ("KVM_GET_IRQCHIP", errno.ENXIO): "the VM has no in-kernel irqchip",
    ("KVM_GET_PIT2", errno.ENXIO): "the VM has no in-kernel PIT",
    ("KVM_IOEVENTFD", errno.EEXIST): "this address already signals an eventfd",
    ("KVM_IRQFD", errno.EINVAL): "it needs the in-kernel irqchip, an eventfd, and a line that there is",
    ("KVM_SET_BOOT_CPU_ID", errno.EBUSY): "the bootstrap processor must be chosen before the first vCPU",
    ("KVM_CREATE_DEVICE", errno.ENODEV): "there is no such in-kernel device on this host",
    ("KVM_IRQFD", errno.EBUSY): "this eventfd already raises an interrupt",
    ("KVM_SET_SREGS", errno.EINVAL): "a register holds a combination of bits that the processor refuses",
    ("KVM_SET_SREGS2", errno.EINVAL): "a register holds a combination of bits that the processor refuses",
    ("KVM_SET_XCRS", errno.EINVAL): "XCR0 enables a feature that CPUID does not offer",
    ("KVM_SET_XSAVE", errno.EINVAL): "the area enables a feature that CPUID does not offer, or MXCSR has reserved bits",
    ("KVM_SET_CPUID2", errno.E2BIG): "too many CPUID entries",
    ("KVM_SET_CPUID2", errno.EINVAL): "CPUID cannot change once the vCPU has run",
    ("KVM_INTERRUPT", errno.ENXIO): "with an in-kernel irqchip interrupts go through its lines; use irq_line()",
    ("KVM_INTERRUPT", errno.EEXIST): "an interrupt is waiting already",
    ("KVM_GET_LAPIC", errno.EINVAL): "the vCPU has no in-kernel local APIC",
    ("KVM_SET_LAPIC", errno.EINVAL): "the vCPU has no in-kernel local APIC",
    ("KVM_SET_TSC_KHZ", errno.EINVAL): "the host cannot give a guest this TSC frequency",
    ("KVM_ENABLE_CAP", errno.EINVAL): "the host does not know this capability or not with these arguments",
    ("KVM_RUN", errno.EINVAL): "a register that was assigned holds a combination of bits that the processor refuses",
    ("KVM_RUN", errno.EAGAIN): "KVM could not make its worker thread; raise the limit of processes (ulimit -u)",
    ("KVM_RUN", errno.EFAULT): "the guest reached memory whose mapping in this process is gone",
    ("", errno.EMFILE): "this process has too many open files; raise its limit (ulimit -n)",
    ("", errno.EPERM): "the caller may not do this; check the permissions of /dev/kvm",
    ("", errno.ENOTTY): "this kernel does not know the call; see 'kvmpy info'",
    ("", errno.EINVAL): "an argument is out of its range",
    ("", errno.ENOMEM): "the host is out of memory",
    ("", errno.EFAULT): "a buffer lies outside this process's memory",
}


def has(name: str) -> bool:
    """Tell whether the headers that kvmpy was compiled against define `name`."""
    value: int = getattr(lib, name)
    return value != -1


def constant(name: str) -> int:
    """Return a constant of <linux/kvm.h>; UnsupportedError where the headers at build time lacked it."""
    if not has(name):
        raise UnsupportedError(
            f"{name} is unknown to the kernel headers kvmpy was built with; install newer ones and rebuild"
        )
    value: int = getattr(lib, name)
    return value


def ioctl_error(ioctl: str, target: str, code: int) -> KvmError:
    """Return the error for `ioctl` on `target` that failed with the errno `code`."""
    name = errno.errorcode.get(code, str(code))
    cause = CAUSES.get((ioctl, code)) or CAUSES.get(("", code)) or "see Documentation/virt/kvm/api.rst"
    return KvmError(f"{ioctl} on {target}: {name} ({os.strerror(code)}); {cause}", ioctl, target, code)


class Fd:
    """An open KVM file descriptor. Closing it twice is harmless; it closes itself at the end of a `with` block."""

    def __init__(self, fd: int, target: str) -> None:
        self._fd = fd
        self.target = target

    def fileno(self) -> int:
        """Return the descriptor's number, -1 once closed."""
        return self._fd

    @property
    def closed(self) -> bool:
        """True once `close()` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}{' (closed)' if self.closed else ''}>"

    def ioctl(self, name: str, argument: CData = ffi.NULL, *, quiet: tuple[int, ...] = ()) -> int:
        """Issue the ioctl with a pointer; return its value, or minus errno for the errnos in `quiet`; else KvmError."""
        return self._checked(name, lib.kvmpy_ioctl(self._fd, constant(name), argument), quiet)

    def ioctl_value(self, name: str, argument: int = 0, *, quiet: tuple[int, ...] = ()) -> int:
        """Issue an ioctl whose argument is a number; otherwise as `ioctl()`."""
        return self._checked(name, lib.kvmpy_ioctl_value(self._fd, constant(name), argument), quiet)

    def open_fd(self, attempt: str) -> int:
        """Return the descriptor's number; ClosedError, which names the attempt, once closed."""
        if self.closed:
            raise self.closed_error(attempt)
        return self._fd

    def closed_error(self, attempt: str) -> ClosedError:
        """Return the error of an attempt on a closed descriptor."""
        return ClosedError(f"{attempt} on {self.target}: it is closed; make a new one")

    def _checked(self, name: str, result: int, quiet: tuple[int, ...]) -> int:
        if result < 0 and self.closed:
            raise self.closed_error(name)
        if result < 0 and -result not in quiet:
            raise ioctl_error(name, self.target, -result)
        return result

    def get(self, name: str, struct: str) -> CData:
        """Issue a KVM_GET_* ioctl and return the new `struct` it filled."""
        out = ffi.new(f"struct {struct} *")
        self.ioctl(name, out)
        return out


def to_bytes(pointer: CData, size: int) -> bytes:
    """Copy `size` bytes from a cffi pointer."""
    return bytes(ffi.buffer(pointer, size))
