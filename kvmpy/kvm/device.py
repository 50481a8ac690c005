"""DeviceFd: an in-kernel device and the attributes of it, of a VM or of a vCPU."""

from __future__ import annotations

import errno

from kvmpy.kvm.binding import CData, Fd, ffi


class DeviceFd(Fd):
    """An in-kernel device made by `VmFd.create_device()`."""

    def has_attribute(self, group: int, attribute: int) -> bool:
        """Tell whether the device knows the attribute."""
        return has_attribute(self, group, attribute)

    def get_attribute(self, group: int, attribute: int, out: CData) -> None:
        """Read an attribute into the cffi pointer `out`, whose type the device's documentation names."""
        access_attribute(self, "KVM_GET_DEVICE_ATTR", group, attribute, out)

    def set_attribute(self, group: int, attribute: int, value: CData) -> None:
        """Write an attribute from the cffi pointer `value`."""
        access_attribute(self, "KVM_SET_DEVICE_ATTR", group, attribute, value)


def has_attribute(fd: Fd, group: int, attribute: int) -> bool:
    """Ask any descriptor with attributes whether it has this one."""
    request = ffi.new("struct kvm_device_attr *", {"group": group, "attr": attribute})
    return fd.ioctl("KVM_HAS_DEVICE_ATTR", request, quiet=(errno.ENXIO, errno.ENOTTY)) == 0


def access_attribute(fd: Fd, ioctl: str, group: int, attribute: int, data: CData) -> None:
    """Read or write an attribute through the pointer `data`."""
    address = int(ffi.cast("uintptr_t", data))
    fd.ioctl(ioctl, ffi.new("struct kvm_device_attr *", {"group": group, "attr": attribute, "addr": address}))
