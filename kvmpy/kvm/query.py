"""Questions that several descriptors answer alike: capabilities, CPUID tables, MSRs."""

from __future__ import annotations

import errno

from kvmpy.errors import ConfigError, UnsupportedError
from kvmpy.kvm.binding import CData, Fd, constant, ffi, has
from kvmpy.kvm.capabilities import CAPABILITIES

ARGUMENTS = 4  # of KVM_ENABLE_CAP


def check_extension(fd: Fd, name: str) -> int:
    """Ask `fd` (/dev/kvm, or a VM for an answer that fits it) for a capability by name."""
    if name not in CAPABILITIES:
        raise UnsupportedError(f"{name} is no capability of KVM on x86 that kvmpy knows; see kvmpy.kvm.capabilities")
    return fd.ioctl_value("KVM_CHECK_EXTENSION", constant(name)) if has(name) else 0


def enable_cap(fd: Fd, name: str, args: tuple[int, ...]) -> None:
    """Switch a capability of a VM or vCPU on, with its arguments, four numbers of 64 bits at most."""
    if name not in CAPABILITIES:
        raise UnsupportedError(f"{name} is no capability of KVM on x86 that kvmpy knows; see kvmpy.kvm.capabilities")
    if len(args) > ARGUMENTS or not all(0 <= value < 1 << 64 for value in args):
        raise ConfigError(f"{name} on {fd.target}: it takes up to {ARGUMENTS} numbers of 64 bits, not {list(args)}")
    fd.ioctl("KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", {"cap": constant(name), "args": args}))


def get_cpuid(fd: Fd, ioctl: str) -> CData:
    """Issue an ioctl that fills `struct kvm_cpuid2`, with as many entries as it wants."""
    room = 64
    while True:
        table = ffi.new("struct kvm_cpuid2 *", {"nent": room, "entries": room})
        if fd.ioctl(ioctl, table, quiet=(errno.E2BIG,)) >= 0:
            return table
        room *= 2


def get_msrs(fd: Fd, indices: list[int]) -> dict[int, int]:
    """Read MSRs. KVM stops at the first it refuses: that one is left out and the rest asked again."""
    values: dict[int, int] = {}
    rest = list(indices)
    while rest:
        batch = ffi.new("struct kvm_msrs *", {"nmsrs": len(rest), "entries": [{"index": index} for index in rest]})
        done = fd.ioctl("KVM_GET_MSRS", batch)
        values.update({batch.entries[i].index: batch.entries[i].data for i in range(done)})
        rest = rest[done + 1 :]
    return values
