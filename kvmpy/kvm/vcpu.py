"""VcpuFd: a vCPU's file descriptor and the pages it shares with KVM."""

from __future__ import annotations

import contextlib
import itertools
import mmap

from kvmpy.errors import ConfigError, KvmpyError
from kvmpy.kvm.binding import CData, Fd, constant, ffi, ioctl_error, lib, to_bytes
from kvmpy.kvm.device import access_attribute, has_attribute
from kvmpy.kvm.query import enable_cap, get_cpuid, get_msrs
from kvmpy.kvm.stats import StatsFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kvmpy.kvm.lock import Lock


_ALIGNMENT = ffi.alignof("struct kvmpy_vcpu")  # more than cffi's own memory has
_aligned = ffi.new_allocator(lambda size: lib.aligned_alloc(_ALIGNMENT, size), lib.free)


def kick_signals() -> int:
    """Return how many kick signals the threads of this process have taken."""
    count: int = lib.kvmpy_kick_signals()
    return count


class VcpuFd(Fd):
    """A virtual CPU. Only one thread at a time may call it, except for `kick()`.

    `run` is its `struct kvm_run *`; `handle` the `struct kvmpy_vcpu *` of the C part; `waits` tells whether it waits
    for INIT and SIPI, which end KVM_RUN with EAGAIN.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int, *, waits: bool) -> None:
        super().__init__(fd, f"vCPU {vcpu_id}")
        self.id = vcpu_id
        try:
            self._map = mmap.mmap(fd, mmap_size)
        except OSError as error:
            self.close()
            raise ioctl_error("mmap", self.target, error.errno or 0) from None
        self._pages = ffi.from_buffer(self._map)
        self._ring_map: mmap.mmap | None = None
        self._lock: Lock | None = None
        self._run = ffi.cast("struct kvm_run *", self._pages)
        self.handle = _aligned("struct kvmpy_vcpu *", {"fd": fd, "run": self._run, "may_wait": waits})
        lib.kvmpy_install_kick_handler()  # without it the first kick, SIGRTMIN, would end the process
        page = constant("KVM_COALESCED_MMIO_PAGE_OFFSET")
        if mmap_size > page * mmap.PAGESIZE:
            self.handle.ring = ffi.cast("struct kvm_coalesced_mmio_ring *", self._pages + page * mmap.PAGESIZE)

    def close(self) -> None:
        """Unmap the shared pages and close the descriptor."""
        if not self.closed and hasattr(self, "handle"):
            self.handle.run = ffi.NULL
            self.handle.ring = ffi.NULL
            self._run = None
            ffi.release(self._pages)
            with contextlib.suppress(BufferError):  # a view that is still in use keeps the mapping alive
                self._map.close()
            if self._ring_map is not None:
                self._ring_map.close()
        super().close()

    @property
    def run(self) -> CData:
        """The page shared with KVM, `struct kvm_run *`; ClosedError when the vCPU is closed."""
        if self._run is None:
            raise self.closed_error("reading its run page")
        return self._run

    # Entering the guest

    def enter(self) -> int:
        """Run the guest until it exits. Return the packed exit of src/enter.h; a refused entry is KVMPY_ERROR.

        The GIL is released meanwhile, and so is the lock of `share()`. An interrupted run is KVM_EXIT_INTR.
        """
        code: int = lib.kvmpy_enter(self.handle)
        return code

    def exits(self, limit: int) -> Iterator[int]:
        """Enter the guest up to `limit` times and yield each packed exit, as `enter()` returns it.

        Nothing of this loop is Python bytecode.
        """
        return map(lib.kvmpy_enter, itertools.repeat(self.handle, limit))

    def share(self, lock: Lock | None) -> None:
        """Name the lock that the thread which enters holds, so that it is free while the guest runs; None for none."""
        self._lock = lock
        self.handle.lock = lock.mutex if lock else ffi.NULL

    @property
    def attention(self) -> bool:
        """True while `enter()` does not enter but returns KVMPY_ATTENTION, because something is to be done first."""
        return bool(self.handle.attention)

    @attention.setter
    def attention(self, on: bool) -> None:
        self.handle.attention = on

    def answer(self, value: int) -> None:
        """Give the port or MMIO read that has just exited its value; without it the guest reads all ones."""
        lib.kvmpy_answer(self.handle, value)

    def complete(self) -> int:
        """Finish the instruction that exited without running on, so that registers are those behind it."""
        code: int = lib.kvmpy_complete(self.handle)
        return code

    def run_error(self, code: int) -> KvmpyError:
        """Return the error behind a packed exit whose reason is KVMPY_ERROR."""
        if self.closed:
            return self.closed_error("KVM_RUN")
        return ioctl_error("KVM_RUN", self.target, code >> 32)

    @property
    def pending(self) -> bool:
        """True while an access that exited is not finished in the guest; see `complete()`."""
        return bool(lib.kvmpy_pending(self.handle))

    def kick(self) -> None:
        """Make the vCPU leave the guest with KVM_EXIT_INTR, now or at its next entry. Any thread may call it."""
        lib.kvmpy_kick(self.handle)

    def forget_kick(self) -> None:
        """Take back a kick that has not been seen yet; only while no thread is in the guest."""
        lib.kvmpy_forget_kick(self.handle)

    def recent(self) -> list[tuple[int, int, int]]:
        """Return the last exits, oldest first: packed, GPA of an MMIO access, what was written to it or answered."""
        lib.kvmpy_keep_answer(self.handle)
        count, size = self.handle.exits, lib.KVMPY_RECENT
        exits = (self.handle.recent[i % size] for i in range(max(0, count - size), count))
        return [(exit.code, exit.gpa, exit.value) for exit in exits]

    def io_data(self) -> memoryview:
        """Return the data area of the current KVM_EXIT_IO: `count` items of `size` bytes, writable."""
        io = self.run.io
        return memoryview(self._map)[io.data_offset : io.data_offset + io.size * io.count]

    def drain(self) -> CData | None:
        """Take the oldest coalesced writes to one address from the VM's ring: `struct kvmpy_write *`, None if empty."""
        ring = self.handle.ring
        if ring == ffi.NULL:
            return None
        room = mmap.PAGESIZE - ffi.sizeof("struct kvm_coalesced_mmio_ring")
        capacity = room // ffi.sizeof("struct kvm_coalesced_mmio")
        write = ffi.new("struct kvmpy_write *")
        return write if lib.kvmpy_drain(ring, capacity, write) else None

    # Registers

    def get_regs(self) -> CData:
        """Return `struct kvm_regs *`: general registers, RIP, RFLAGS."""
        return self.get("KVM_GET_REGS", "kvm_regs")

    def set_regs(self, regs: CData) -> None:
        """Set the general registers."""
        self.ioctl("KVM_SET_REGS", regs)

    def get_sregs(self) -> CData:
        """Return `struct kvm_sregs *`: segments, tables, control registers."""
        return self.get("KVM_GET_SREGS", "kvm_sregs")

    def set_sregs(self, sregs: CData) -> None:
        """Set the special registers."""
        self.ioctl("KVM_SET_SREGS", sregs)

    def get_sregs2(self) -> CData:
        """Return `struct kvm_sregs2 *`, which has the PAE pointers instead of the interrupt bitmap."""
        return self.get("KVM_GET_SREGS2", "kvm_sregs2")

    def set_sregs2(self, sregs: CData) -> None:
        """Set the special registers with the PAE pointers."""
        self.ioctl("KVM_SET_SREGS2", sregs)

    def get_fpu(self) -> CData:
        """Return `struct kvm_fpu *`: x87 and SSE registers."""
        return self.get("KVM_GET_FPU", "kvm_fpu")

    def set_fpu(self, fpu: CData) -> None:
        """Set the x87 and SSE registers. Some hosts lose it before the first run: prefer `set_xsave()`."""
        self.ioctl("KVM_SET_FPU", fpu)

    def get_xsave(self) -> bytes:
        """Return the first 4 KiB of the XSAVE area."""
        return to_bytes(self.get("KVM_GET_XSAVE", "kvm_xsave"), ffi.sizeof("struct kvm_xsave"))

    def get_xsave2(self, size: int) -> bytes:
        """Return the whole XSAVE area; `size` is the VM's KVM_CAP_XSAVE2."""
        area = ffi.new("char[]", max(size, ffi.sizeof("struct kvm_xsave")))
        self.ioctl("KVM_GET_XSAVE2", area)
        return to_bytes(area, size)

    def set_xsave(self, area: bytes) -> None:
        """Set the XSAVE area; it is padded to 4 KiB."""
        room = ffi.new("char[]", max(len(area), ffi.sizeof("struct kvm_xsave")))
        ffi.memmove(room, area, len(area))
        self.ioctl("KVM_SET_XSAVE", room)

    def get_xcrs(self) -> dict[int, int]:
        """Return the extended control registers by number."""
        xcrs = self.get("KVM_GET_XCRS", "kvm_xcrs")
        return {xcrs.xcrs[i].xcr: xcrs.xcrs[i].value for i in range(xcrs.nr_xcrs)}

    def set_xcrs(self, values: Mapping[int, int]) -> None:
        """Set extended control registers."""
        entries = [{"xcr": number, "value": value} for number, value in values.items()]
        self.ioctl("KVM_SET_XCRS", ffi.new("struct kvm_xcrs *", {"nr_xcrs": len(entries), "xcrs": entries}))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Return the values of those MSRs that KVM lets user space read."""
        return get_msrs(self, list(indices))

    def set_msrs(self, values: Mapping[int, int]) -> list[int]:
        """Set MSRs in order; return the indices KVM refused."""
        refused = []
        rest = list(values.items())
        while rest:
            entries = [{"index": index, "data": value} for index, value in rest]
            batch = ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})
            done = self.ioctl("KVM_SET_MSRS", batch)
            refused += [index for index, _ in rest[done : done + 1]]
            rest = rest[done + 1 :]
        return refused

    def get_cpuid(self) -> CData:
        """Return `struct kvm_cpuid2 *` as the vCPU has it."""
        return get_cpuid(self, "KVM_GET_CPUID2")

    def set_cpuid(self, table: CData) -> None:
        """Set the CPUID table from `struct kvm_cpuid2 *`, before the first run."""
        self.ioctl("KVM_SET_CPUID2", table)

    def get_lapic(self) -> bytes:
        """Return the in-kernel local APIC's 1 KiB register page."""
        return to_bytes(self.get("KVM_GET_LAPIC", "kvm_lapic_state"), ffi.sizeof("struct kvm_lapic_state"))

    def set_lapic(self, page: bytes) -> None:
        """Set the in-kernel local APIC's registers."""
        self.ioctl("KVM_SET_LAPIC", ffi.new("struct kvm_lapic_state *", {"regs": page}))

    def get_mp_state(self) -> int:
        """Return KVM_MP_STATE_*: running, waiting for INIT or SIPI, halted."""
        state: int = self.get("KVM_GET_MP_STATE", "kvm_mp_state").mp_state
        return state

    def set_mp_state(self, state: int) -> None:
        """Set KVM_MP_STATE_*."""
        self.ioctl("KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", {"mp_state": state}))
        self.handle.may_wait = 1

    def get_events(self) -> CData:
        """Return `struct kvm_vcpu_events *`: pending exceptions, interrupts, NMIs."""
        return self.get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")

    def set_events(self, events: CData) -> None:
        """Set the pending events."""
        self.ioctl("KVM_SET_VCPU_EVENTS", events)

    def get_debugregs(self) -> CData:
        """Return `struct kvm_debugregs *`: DR0-DR3, DR6, DR7."""
        return self.get("KVM_GET_DEBUGREGS", "kvm_debugregs")

    def set_debugregs(self, registers: CData) -> None:
        """Set the debug registers."""
        self.ioctl("KVM_SET_DEBUGREGS", registers)

    def get_nested_state(self, size: int) -> bytes:
        """Return the state of a guest hypervisor; `size` is the VM's KVM_CAP_NESTED_STATE (api.rst, 4.114)."""
        area = ffi.new("char[]", max(size, ffi.sizeof("struct kvm_nested_state")))
        state = ffi.cast("struct kvm_nested_state *", area)
        state.size = len(area)
        self.ioctl("KVM_GET_NESTED_STATE", state)
        return to_bytes(area, state.size)

    def set_nested_state(self, data: bytes) -> None:
        """Set what `get_nested_state()` gave."""
        self.ioctl("KVM_SET_NESTED_STATE", ffi.from_buffer(data))

    def get_one_reg(self, register: int) -> int:
        """Return a register of 64 bits by KVM's id (KVM_REG_X86_*, since Linux 6.18; api.rst, 4.69)."""
        out = ffi.new("uint64_t *")
        self.ioctl("KVM_GET_ONE_REG", _one_reg(register, out))
        return int(out[0])

    def set_one_reg(self, register: int, value: int) -> None:
        """Set a register of 64 bits by KVM's id."""
        data = ffi.new("uint64_t *", value)
        self.ioctl("KVM_SET_ONE_REG", _one_reg(register, data))

    # Events, debugging, the rest

    def setup_mce(self, capabilities: int) -> None:
        """Give the vCPU machine-check banks: IA32_MCG_CAP, within `Kvm.supported_mce()` (SDM vol. 3, 15.3.1.1)."""
        self.ioctl("KVM_X86_SETUP_MCE", ffi.new("uint64_t *", capabilities))

    def set_mce(self, bank: int, status: int, *, address: int = 0, misc: int = 0, mcg_status: int = 0) -> None:
        """Put a machine-check event into a bank: IA32_MCi_STATUS, ADDR, MISC, and IA32_MCG_STATUS (15.3.2)."""
        event = {"bank": bank, "status": status, "addr": address, "misc": misc, "mcg_status": mcg_status}
        self.ioctl("KVM_X86_SET_MCE", ffi.new("struct kvm_x86_mce *", event))

    def report_tpr_accesses(self, on: bool) -> None:
        """Let accesses to the task-priority register exit (KVM_CAP_VAPIC)."""
        self.ioctl("KVM_TPR_ACCESS_REPORTING", ffi.new("struct kvm_tpr_access_ctl *", {"enabled": on}))

    def set_vapic_address(self, gpa: int) -> None:
        """Place the page where KVM and the guest share the task-priority register (api.rst, 4.73)."""
        self.ioctl("KVM_SET_VAPIC_ADDR", ffi.new("struct kvm_vapic_addr *", {"vapic_addr": gpa}))

    def prefault(self, gpa: int, size: int) -> None:
        """Map guest memory before the guest reaches for it (KVM_CAP_PRE_FAULT_MEMORY)."""
        request = ffi.new("struct kvm_pre_fault_memory *", {"gpa": gpa, "size": size})
        while request.size:
            self.ioctl("KVM_PRE_FAULT_MEMORY", request)

    def translate(self, gva: int) -> CData:
        """Walk the guest's page tables: `struct kvm_translation *` for a linear address."""
        request = ffi.new("struct kvm_translation *", {"linear_address": gva})
        self.ioctl("KVM_TRANSLATE", request)
        return request

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt; only without an in-kernel irqchip."""
        self.ioctl("KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", {"irq": vector}))

    def nmi(self) -> None:
        """Queue a non-maskable interrupt."""
        self.ioctl_value("KVM_NMI")

    def smi(self) -> None:
        """Queue a system-management interrupt (KVM_CAP_X86_SMM)."""
        self.ioctl_value("KVM_SMI")

    def set_guest_debug(self, control: int, debug_registers: Iterable[int] = ()) -> None:
        """Single step or break the guest: KVM_GUESTDBG_* and the eight debug registers to use meanwhile."""
        request = {"control": control, "arch": {"debugreg": list(debug_registers)}}
        self.ioctl("KVM_SET_GUEST_DEBUG", ffi.new("struct kvm_guest_debug *", request))

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block just these signals while the guest runs; None leaves the thread's own mask in force."""
        if blocked is None:
            self.ioctl("KVM_SET_SIGNAL_MASK")
            return
        bits = sum(1 << (signal - 1) for signal in set(blocked))
        request = ffi.new("struct kvm_signal_mask *", {"len": 8, "sigset": list(bits.to_bytes(8, "little"))})
        self.ioctl("KVM_SET_SIGNAL_MASK", request)

    def tsc_khz(self) -> int:
        """Return the vCPU's TSC frequency in kHz."""
        return self.ioctl_value("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Set the vCPU's TSC frequency (KVM_CAP_TSC_CONTROL)."""
        self.ioctl_value("KVM_SET_TSC_KHZ", khz)

    def kvmclock_ctrl(self) -> None:
        """Tell a kvmclock guest that it was paused; KvmError EINVAL when the guest has no kvmclock."""
        self.ioctl_value("KVM_KVMCLOCK_CTRL")

    def enable_cap(self, name: str, *args: int) -> None:
        """Switch a capability on for this vCPU."""
        enable_cap(self, name, args)

    def has_attribute(self, group: int, attribute: int) -> bool:
        """Tell whether the vCPU knows the attribute, such as the TSC offset (group 0, attribute 0)."""
        return has_attribute(self, group, attribute)

    def get_attribute(self, group: int, attribute: int, out: CData) -> None:
        """Read an attribute into the cffi pointer `out`."""
        access_attribute(self, "KVM_GET_DEVICE_ATTR", group, attribute, out)

    def set_attribute(self, group: int, attribute: int, value: CData) -> None:
        """Write an attribute from the cffi pointer `value`."""
        access_attribute(self, "KVM_SET_DEVICE_ATTR", group, attribute, value)

    def stats(self) -> StatsFd:
        """Open the vCPU's statistics."""
        return StatsFd(self.ioctl_value("KVM_GET_STATS_FD"), f"the statistics of {self.target}")

    # The dirty ring

    def map_dirty_ring(self, size: int) -> None:
        """Map the vCPU's dirty ring of `size` bytes, as enabled with KVM_CAP_DIRTY_LOG_RING on the VM."""
        offset = constant("KVM_DIRTY_LOG_PAGE_OFFSET") * mmap.PAGESIZE
        self._ring_map = mmap.mmap(self.open_fd("mapping the dirty ring"), size, offset=offset)
        self._ring_next = 0

    def harvest_dirty_ring(self) -> list[tuple[int, int]]:
        """Return (slot, page) of pages written since the last harvest; `VmFd.reset_dirty_rings()` frees the room."""
        if self._ring_map is None:
            raise ConfigError(
                f"harvesting the dirty ring of {self.target}: it is not mapped; call map_dirty_ring() first"
            )
        dirty, reset = constant("KVM_DIRTY_GFN_F_DIRTY"), constant("KVM_DIRTY_GFN_F_RESET")
        pages = []
        with ffi.from_buffer("struct kvm_dirty_gfn[]", self._ring_map, require_writable=True) as ring:
            while (entry := ring[self._ring_next % len(ring)]).flags & dirty:
                pages.append((entry.slot, entry.offset))
                entry.flags = reset
                self._ring_next += 1
                if len(pages) == len(ring):
                    break
        return pages


def _one_reg(register: int, data: CData) -> CData:
    return ffi.new("struct kvm_one_reg *", {"id": register, "addr": int(ffi.cast("uintptr_t", data))})
