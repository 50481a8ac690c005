"""VmFd: a VM's file descriptor."""

from __future__ import annotations

from kvmpy.errors import ConfigError
from kvmpy.kvm.binding import CData, Fd, constant, ffi
from kvmpy.kvm.device import DeviceFd
from kvmpy.kvm.query import check_extension, enable_cap
from kvmpy.kvm.stats import StatsFd
from kvmpy.kvm.vcpu import VcpuFd
from kvmpy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MSR_INDEX_LIMIT = 1 << 32


@record
class MsrRange:
    """`count` MSRs from `base` on, denied to reading, writing or both; those of `allowed` are allowed."""

    base: int
    count: int = 1
    read: bool = True
    write: bool = True
    allowed: frozenset[int] = frozenset()

    def flags(self) -> int:
        """Return which accesses it speaks of, as KVM has it."""
        return self.read * constant("KVM_MSR_FILTER_READ") | self.write * constant("KVM_MSR_FILTER_WRITE")

    def bitmap(self) -> bytes:
        """Return a bit for each MSR, set where it is allowed, in whole 64-bit words."""
        bits = sum(1 << index - self.base for index in self.allowed)
        return bits.to_bytes(-(-self.count // 64) * 8, "little")

    def check(self) -> None:
        """Raise ConfigError unless KVM could take it."""
        most = 8 * constant("KVM_MSR_FILTER_MAX_BITMAP_SIZE")
        if not 0 < self.count <= most or not 0 <= self.base <= MSR_INDEX_LIMIT - self.count:
            raise ConfigError(
                f"MSR filter: {self.count} MSRs from {self.base:#x}; there can be 1 to {most}, of 32 bits"
            )
        if not self.read and not self.write:
            raise ConfigError(f"MSR filter: the range at {self.base:#x} speaks of neither reading nor writing")
        outside = [index for index in self.allowed if not 0 <= index - self.base < self.count]
        if outside:
            raise ConfigError(f"MSR filter: {outside[0]:#x} is not in the range of {self.count} from {self.base:#x}")


def _joined(ranges: Iterable[MsrRange | int]) -> list[MsrRange]:
    """Return checked ranges, with single MSRs that follow one another made one."""
    wanted: list[MsrRange] = []
    single: list[int] = []
    for item in ranges:
        if isinstance(item, MsrRange):
            wanted.append(item)
        else:
            single.append(item)
    runs: list[MsrRange] = []
    for index in sorted(set(single)):
        if runs and runs[-1].base + runs[-1].count == index:
            runs[-1].count += 1
        else:
            runs.append(MsrRange(index))
    for item in (*wanted, *runs):
        item.check()
    return wanted + runs


class VmFd(Fd):
    """A virtual machine: its memory slots, vCPUs, interrupt chips, routes and clock.

    Close its vCPUs first: KVM keeps the VM alive as long as one of them is open.
    """

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd, "the VM")
        self._vcpu_mmap_size = vcpu_mmap_size
        self._boot_cpu_id = 0
        self.has_irqchip = False

    def capability(self, name: str) -> int:
        """Return a capability's value for this VM, 0 when it is missing."""
        return check_extension(self, name)

    def enable_cap(self, name: str, *args: int) -> None:
        """Switch a capability on for this VM, with up to four arguments (KVM_ENABLE_CAP)."""
        enable_cap(self, name, args)

    def create_vcpu(self, vcpu_id: int = 0) -> VcpuFd:
        """Create the vCPU with this id (its initial APIC id)."""
        fd = self.ioctl_value("KVM_CREATE_VCPU", vcpu_id)
        # With chips in the kernel all but the bootstrap processor wait for INIT and SIPI (Intel SDM vol. 3, 9.4.4).
        waits = self.has_irqchip and vcpu_id != self._boot_cpu_id
        return VcpuFd(fd, vcpu_id, self._vcpu_mmap_size, waits=waits)

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Choose the bootstrap processor, before any vCPU is created."""
        self.ioctl_value("KVM_SET_BOOT_CPU_ID", vcpu_id)
        self._boot_cpu_id = vcpu_id

    # Memory

    def set_memory_region(self, slot: int, gpa: int, size: int, address: int, *, flags: int = 0) -> None:
        """Back `size` bytes at guest-physical `gpa` with this process's memory at `address`; size 0 deletes the slot.

        `flags` are KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY. `slot` holds the address space in its upper 16 bits.
        """
        region = ffi.new("struct kvm_userspace_memory_region *", (slot, flags, gpa, size, address))
        self.ioctl("KVM_SET_USER_MEMORY_REGION", region)

    def set_memory_region2(
        self, slot: int, gpa: int, size: int, address: int, *, flags: int = 0, guest_memfd: int = 0, offset: int = 0
    ) -> None:
        """As `set_memory_region()`; with KVM_MEM_GUEST_MEMFD private pages come from a guest_memfd (api.rst, 4.140)."""
        region = {
            "slot": slot, "flags": flags, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": address,
            "guest_memfd": guest_memfd, "guest_memfd_offset": offset,
        }  # fmt: skip
        self.ioctl("KVM_SET_USER_MEMORY_REGION2", ffi.new("struct kvm_userspace_memory_region2 *", region))

    def create_guest_memfd(self, size: int) -> int:
        """Return the descriptor of `size` bytes that only the guest can reach; the caller closes it."""
        return self.ioctl("KVM_CREATE_GUEST_MEMFD", ffi.new("struct kvm_create_guest_memfd *", {"size": size}))

    def set_memory_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        """Make pages private to the guest, or shared (api.rst, 4.141)."""
        attributes = constant("KVM_MEMORY_ATTRIBUTE_PRIVATE") if private else 0
        request = {"address": gpa, "size": size, "attributes": attributes}
        self.ioctl("KVM_SET_MEMORY_ATTRIBUTES", ffi.new("struct kvm_memory_attributes *", request))

    def get_dirty_log(self, slot: int, pages: int) -> bytes:
        """Return the bitmap of the slot's pages written since the last call, bit 0 first; the log starts anew.

        `pages` is the slot's size; KVM writes whole 64-bit words.
        """
        bitmap = ffi.new("uint64_t[]", -(-pages // 64))
        self.ioctl("KVM_GET_DIRTY_LOG", ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap}))
        return bytes(ffi.buffer(bitmap))

    def clear_dirty_log(self, slot: int, first_page: int, bitmap: bytes) -> None:
        """Mark pages clean (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2). `first_page` and the page count are multiples of 64."""
        data = ffi.from_buffer(bitmap)
        clear = {"slot": slot, "num_pages": len(bitmap) * 8, "first_page": first_page, "dirty_bitmap": data}
        self.ioctl("KVM_CLEAR_DIRTY_LOG", ffi.new("struct kvm_clear_dirty_log *", clear))

    def reset_dirty_rings(self) -> int:
        """Give the harvested entries of all dirty rings back to KVM; return how many."""
        return self.ioctl_value("KVM_RESET_DIRTY_RINGS")

    def set_tss_address(self, gpa: int) -> None:
        """Place the three pages of TSS that Intel hosts need for real mode."""
        self.ioctl_value("KVM_SET_TSS_ADDR", gpa)

    def set_identity_map_address(self, gpa: int) -> None:
        """Place the page table that Intel hosts need for real mode, before any vCPU is created."""
        self.ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", gpa))

    def set_mmu_pages(self, count: int) -> None:
        """Limit the shadow pages of this VM."""
        self.ioctl_value("KVM_SET_NR_MMU_PAGES", count)

    def mmu_pages(self) -> int:
        """Return the limit of shadow pages."""
        return self.ioctl_value("KVM_GET_NR_MMU_PAGES")

    # Coalesced writes and eventfds

    def coalesce(self, address: int, size: int, *, port: bool = False) -> None:
        """Collect writes to this MMIO range or port range in the ring instead of exiting for each."""
        self.ioctl("KVM_REGISTER_COALESCED_MMIO", _zone(address, size, port))

    def uncoalesce(self, address: int, size: int, *, port: bool = False) -> None:
        """Let writes to the range exit again."""
        self.ioctl("KVM_UNREGISTER_COALESCED_MMIO", _zone(address, size, port))

    def ioeventfd(
        self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None, remove: bool = False
    ) -> None:
        """Signal the eventfd `fd` when the guest writes (`match`, if given) to the address, instead of exiting."""
        flags = constant("KVM_IOEVENTFD_FLAG_PIO") if port else 0
        flags |= constant("KVM_IOEVENTFD_FLAG_DATAMATCH") if match is not None else 0
        flags |= constant("KVM_IOEVENTFD_FLAG_DEASSIGN") if remove else 0
        request = {"datamatch": match or 0, "addr": address, "len": size, "fd": fd, "flags": flags}
        self.ioctl("KVM_IOEVENTFD", ffi.new("struct kvm_ioeventfd *", request))

    def irqfd(self, fd: int, gsi: int, *, resample_fd: int | None = None, remove: bool = False) -> None:
        """Raise line `gsi` when the eventfd `fd` is signalled; with `resample_fd` the line is level-triggered."""
        flags = constant("KVM_IRQFD_FLAG_DEASSIGN") if remove else 0
        flags |= constant("KVM_IRQFD_FLAG_RESAMPLE") if resample_fd is not None else 0
        request = {"fd": fd, "gsi": gsi, "flags": flags, "resamplefd": resample_fd or 0}
        self.ioctl("KVM_IRQFD", ffi.new("struct kvm_irqfd *", request))

    # Interrupt chips

    def create_irqchip(self) -> None:
        """Create PIC, IOAPIC and local APICs in the kernel, before any vCPU."""
        self.ioctl_value("KVM_CREATE_IRQCHIP")
        self.has_irqchip = True

    def create_split_irqchip(self, pins: int = 24) -> None:
        """Create only the local APICs in the kernel; `pins` routes are kept for an IOAPIC in user space."""
        self.enable_cap("KVM_CAP_SPLIT_IRQCHIP", pins)
        self.has_irqchip = True

    def create_pit(self, *, speaker: bool = True) -> None:
        """Create the 8254 in the kernel; `speaker` also takes port 0x61 there."""
        flags = constant("KVM_PIT_SPEAKER_DUMMY") if speaker else 0
        self.ioctl("KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))

    def get_irqchip(self, chip: str) -> CData:
        """Return `struct kvm_irqchip *` of "PIC_MASTER", "PIC_SLAVE" or "IOAPIC"."""
        out = ffi.new("struct kvm_irqchip *", {"chip_id": constant(f"KVM_IRQCHIP_{chip}")})
        self.ioctl("KVM_GET_IRQCHIP", out)
        return out

    def set_irqchip(self, chip: CData) -> None:
        """Set one of the chips from `struct kvm_irqchip *`."""
        self.ioctl("KVM_SET_IRQCHIP", chip)

    def get_pit(self) -> CData:
        """Return `struct kvm_pit_state2 *`."""
        return self.get("KVM_GET_PIT2", "kvm_pit_state2")

    def set_pit(self, state: CData) -> None:
        """Set the 8254 from `struct kvm_pit_state2 *`."""
        self.ioctl("KVM_SET_PIT2", state)

    def set_pit_reinject(self, on: bool) -> None:
        """Choose whether ticks the guest missed are delivered later."""
        self.ioctl("KVM_REINJECT_CONTROL", ffi.new("struct kvm_reinject_control *", {"pit_reinject": on}))

    def irq_line(self, gsi: int, level: int) -> None:
        """Set the level of an interrupt line."""
        self.ioctl("KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level}))

    def irq_line_status(self, gsi: int, level: int) -> int:
        """Set a line's level; return how many CPUs got it, 0 when it was merged, -1 when it was masked."""
        request = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        self.ioctl("KVM_IRQ_LINE_STATUS", request)
        status: int = request.status
        return status

    def set_gsi_routing(self, routes: Iterable[tuple[int, str, int] | tuple[int, int, int]]) -> None:
        """Replace all interrupt routes.

        A route is (gsi, "PIC_MASTER" | "PIC_SLAVE" | "IOAPIC", pin) or, for a message, (gsi, address, data).
        """
        entries = [_route(*route) for route in routes]
        table = ffi.new("struct kvm_irq_routing *", {"nr": len(entries), "entries": entries})
        self.ioctl("KVM_SET_GSI_ROUTING", table)

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message-signalled interrupt; return 0 when the guest blocked it."""
        request = {"address_lo": address & 0xFFFFFFFF, "address_hi": address >> 32, "data": data}
        return self.ioctl("KVM_SIGNAL_MSI", ffi.new("struct kvm_msi *", request))

    # Time, MSRs, devices, statistics

    def get_clock(self) -> CData:
        """Return `struct kvm_clock_data *`: the VM's clock in nanoseconds."""
        return self.get("KVM_GET_CLOCK", "kvm_clock_data")

    def set_clock(self, nanoseconds: int) -> None:
        """Set the VM's clock."""
        self.ioctl("KVM_SET_CLOCK", ffi.new("struct kvm_clock_data *", {"clock": nanoseconds}))

    def tsc_khz(self) -> int:
        """Return the TSC frequency of vCPUs to come, in kHz."""
        return self.ioctl_value("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Set the TSC frequency of vCPUs to come (KVM_CAP_VM_TSC_CONTROL)."""
        self.ioctl_value("KVM_SET_TSC_KHZ", khz)

    def exit_on_msrs(self, *, unknown: bool = True, invalid: bool = True, filtered: bool = True) -> None:
        """Choose which MSR accesses exit to user space instead of raising #GP (KVM_CAP_X86_USER_SPACE_MSR)."""
        reasons = {"UNKNOWN": unknown, "INVAL": invalid, "FILTER": filtered}
        mask = sum(constant(f"KVM_MSR_EXIT_REASON_{name}") for name, on in reasons.items() if on)
        self.enable_cap("KVM_CAP_X86_USER_SPACE_MSR", mask)

    def filter_msrs(self, ranges: Iterable[MsrRange | int], *, default_deny: bool = False) -> None:
        """Deny the guest MSRs, in up to 16 ranges; an int is a range of one. No range at all lifts the filter.

        MSRs outside of every range are allowed, or with `default_deny` denied. With `exit_on_msrs()` a denied access
        exits. x2APIC MSRs are never filtered (api.rst, 4.97).
        """
        wanted = _joined(ranges)
        if len(wanted) > constant("KVM_MSR_FILTER_MAX_RANGES"):
            raise ConfigError(f"MSR filter: {len(wanted)} ranges; there can be {constant('KVM_MSR_FILTER_MAX_RANGES')}")
        if default_deny and not wanted:
            raise ConfigError(
                "MSR filter: to deny all MSRs a range is needed that allows some; KVM refuses none at all"
            )
        default = "KVM_MSR_FILTER_DEFAULT_DENY" if default_deny else "KVM_MSR_FILTER_DEFAULT_ALLOW"
        request = ffi.new("struct kvm_msr_filter *", {"flags": constant(default)})
        keep = []
        for number, span in enumerate(wanted):
            keep.append(ffi.new("__u8[]", span.bitmap()))
            request.ranges[number] = {"flags": span.flags(), "nmsrs": span.count, "base": span.base, "bitmap": keep[-1]}
        self.ioctl("KVM_X86_SET_MSR_FILTER", request)

    def filter_pmu_events(self, events: Iterable[int], *, allow: bool, fixed: int = 0) -> None:
        """Allow the guest these performance events only, or all but these; `fixed` is the mask of fixed counters.

        An event is its select in bits 7:0 (AMD: and 35:32) and its unit mask in bits 15:8 (api.rst, 4.120).
        """
        listed = list(events)
        action = constant("KVM_PMU_EVENT_ALLOW" if allow else "KVM_PMU_EVENT_DENY")
        request = {"action": action, "nevents": len(listed), "fixed_counter_bitmap": fixed, "events": listed}
        self.ioctl("KVM_SET_PMU_EVENT_FILTER", ffi.new("struct kvm_pmu_event_filter *", request))

    def hyperv_eventfd(self, connection: int, fd: int, *, remove: bool = False) -> None:
        """Signal the eventfd when a Hyper-V guest signals this connection (api.rst, 4.113)."""
        flags = constant("KVM_HYPERV_EVENTFD_DEASSIGN") if remove else 0
        request = {"conn_id": connection, "fd": fd, "flags": flags}
        self.ioctl("KVM_HYPERV_EVENTFD", ffi.new("struct kvm_hyperv_eventfd *", request))

    def set_xen_hvm(self, msr: int, *, flags: int = 0) -> None:
        """Let a write to this MSR be Xen's request for hypercall pages; `flags` as KVM_CAP_XEN_HVM gives them."""
        self.ioctl("KVM_XEN_HVM_CONFIG", ffi.new("struct kvm_xen_hvm_config *", {"flags": flags, "msr": msr}))

    def create_device(self, kind: int, *, test: bool = False) -> DeviceFd | None:
        """Create an in-kernel device (KVM_DEV_TYPE_*); with `test` only ask whether it could be created."""
        request = ffi.new("struct kvm_create_device *", {"type": kind, "flags": int(test)})
        self.ioctl("KVM_CREATE_DEVICE", request)
        return None if test else DeviceFd(request.fd, f"device {kind}")

    def stats(self) -> StatsFd:
        """Open the VM's statistics (KVM_CAP_BINARY_STATS_FD)."""
        return StatsFd(self.ioctl_value("KVM_GET_STATS_FD"), f"the statistics of {self.target}")


def _zone(address: int, size: int, port: bool) -> CData:
    return ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": address, "size": size, "pio": int(port)})


def _route(gsi: int, target: str | int, value: int) -> dict[str, object]:
    if isinstance(target, str):
        chip = {"irqchip": constant(f"KVM_IRQCHIP_{target}"), "pin": value}
        return {"gsi": gsi, "type": constant("KVM_IRQ_ROUTING_IRQCHIP"), "u": {"irqchip": chip}}
    message = {"address_lo": target & 0xFFFFFFFF, "address_hi": target >> 32, "data": value}
    return {"gsi": gsi, "type": constant("KVM_IRQ_ROUTING_MSI"), "u": {"msi": message}}
