"""The failures a user of kvmpy can cause or meet.

Every message is one line that names what was attempted, on what, and what to do next.
"""


class KvmpyError(Exception):
    """Base of every error that kvmpy raises on purpose."""


class NoAcceleratorError(KvmpyError):
    """Nothing on this machine can run a guest: /dev/kvm is missing, closed to us, or too old."""


class KvmError(KvmpyError):
    """An ioctl on a KVM file descriptor failed.

    `ioctl` is its name in <linux/kvm.h>, `target` the object it was called on (`vCPU 0`), `errno` the kernel's answer.
    """

    def __init__(self, message: str, ioctl: str, target: str, errno: int) -> None:
        super().__init__(message)
        self.ioctl = ioctl
        self.target = target
        self.errno = errno


class ClosedError(KvmpyError):
    """Something that was closed cannot be used any longer: an accelerator, a VM, a vCPU, a machine, its memory."""


class HostError(KvmpyError):
    """The host does not give what is needed: a thread, a descriptor, memory; or a thread does not come back."""


NO_PROCESS = "the host gives no more processes; raise the limit of this user's (ulimit -u)"


class UnsupportedError(KvmpyError):
    """The host, the accelerator, or the headers kvmpy was built with lack what was asked for."""


class ConfigError(KvmpyError):
    """A machine was asked for that cannot be built: overlapping ranges, odd sizes, too many vCPUs."""


class MemoryAccessError(KvmpyError):
    """A guest-physical or guest-virtual address that is not there, or not with this right."""


class ImageError(KvmpyError):
    """A guest image that cannot be loaded: missing, empty, damaged, or larger than memory."""


class DeadlineError(KvmpyError):
    """What had to be done within a time took longer."""


class AssemblyError(KvmpyError):
    """Assembly source that was refused; the message names line and text."""


class BusError(KvmpyError):
    """An access that no device claims, on a strict bus."""


class ContainerError(KvmpyError):
    """A container that cannot be made, is not there, or is in no state for what was asked; or a bad configuration."""


class ExecutableError(ContainerError):
    """The container's program is not there (`errno` ENOENT) or cannot be executed."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno
