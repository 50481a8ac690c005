"""The software CPU as an accelerator: every guest on every machine, on Unicorn."""

from __future__ import annotations

from kvmpy.accel.base import Accelerator, Vm
from kvmpy.accel.soft_features import SoftFeatures
from kvmpy.accel.soft_vcpu import SoftVcpu
from kvmpy.errors import ClosedError, ConfigError, UnsupportedError
from kvmpy.kvm.lock import Lock
from kvmpy.softcpu.binding import ffi, lib, load_engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy.accel.probe import Features
    from kvmpy.memory import GuestMemory, Region
    from kvmpy.softcpu.binding import CData

MSR_LIMIT = 16


class SoftAccelerator(Accelerator):
    """Opening it raises NoAcceleratorError when Unicorn is missing or of another version."""

    name = "soft"

    def __init__(self) -> None:
        load_engine()
        self._closed = False

    def create_vm(self, *, patch_hypercalls: bool = False) -> SoftVm:
        """Create a VM. Nobody patches hypercalls here: both forms exit."""
        self._check_open("creating a VM")
        return SoftVm()

    @property
    def features(self) -> Features:
        """What the software CPU does: a fixed list, which the tests compare with what it does when tried."""
        self._check_open("asking for features")
        return SoftFeatures()

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what}: the software CPU is closed; open another")

    def close(self) -> None:
        """Nothing is held."""
        self._closed = True


class SoftVm(Vm):
    """A VM whose vCPUs take turns on one engine."""

    def __init__(self) -> None:
        self.has_chips = False
        self.offers_chips = False
        self.lock = Lock()
        self._vcpus: list[SoftVcpu] = []
        self._memories: list[GuestMemory] = []
        self._msrs: list[int] | None = None
        self._closed = False
        self._views: list[CData] = []
        self._engine = ffi.gc(lib.soft_open_vm(), lib.soft_free_vm)

    def add_memory(self, memory: GuestMemory) -> None:
        """Give the guest these regions. A vCPU that is in the guest sees them when it comes back to it."""
        self._check_open("adding memory")
        self.add_regions(memory.regions)
        self._memories.append(memory)
        memory.on_write(self._memory_changed)

    def add_regions(self, regions: Iterable[Region]) -> None:
        """Give the guest memory of which nobody says what the host writes."""
        for region in regions:
            view = ffi.from_buffer(region.map)
            self._views.append(view)
            if not lib.soft_add_region(self._engine, region.gpa, region.size, view, region.readonly):
                raise UnsupportedError(f"adding {region!r}: the software CPU has no room for more regions")

    def _memory_changed(self, gpa: int, size: int) -> None:
        """The host wrote: translated code and cached page tables may be out of date."""
        lib.soft_memory_changed(self._engine, gpa, size)

    def create_chips(self) -> None:
        """The software CPU has none of its own."""
        self._check_open("creating interrupt chips")
        raise UnsupportedError("interrupt chips: the software CPU has none of its own; use irqchip 'python' or 'none'")

    def create_vcpu(self, vcpu_id: int = 0, *, cpus: int = 1, local_apic: bool = False) -> SoftVcpu:
        """Create a vCPU; see Vm."""
        self._check_open("creating a vCPU")
        vcpu = SoftVcpu(vcpu_id, self._engine, cpus, local_apic=local_apic)
        if self._msrs is not None:
            vcpu.exit_on_msrs(self._msrs)
        self._vcpus.append(vcpu)
        return vcpu

    def set_irq(self, gsi: int, level: int) -> None:
        """There are no chips."""
        self._check_open("driving an interrupt line")
        raise UnsupportedError(f"interrupt line {gsi}: the software CPU has no chips of its own")

    def irq_on(self, fd: int, gsi: int, on: bool) -> bool:
        """Leave it to the machine."""
        return False

    def notify(self, fd: int, address: int, size: int, on: bool, *, port: bool, match: int | None = None) -> bool:
        """Leave it to the machine: the write exits."""
        return False

    def coalesce(self, port: int, on: bool) -> bool:
        """Exit for every write."""
        return False

    def take_writes(self) -> tuple[int, int, bool, bytes] | None:
        """Nothing is collected."""
        return None

    def exit_on_msrs(self, indices: Iterable[int]) -> None:
        """Stop at RDMSR and WRMSR of these MSRs; at most sixteen, as on KVM."""
        self._check_open("MSR exits")
        self._msrs = sorted(set(indices))
        if len(self._msrs) > MSR_LIMIT:
            raise ConfigError(f"MSR exits: {len(self._msrs)} MSRs, and there is room for {MSR_LIMIT}")
        for vcpu in self._vcpus:
            vcpu.exit_on_msrs(self._msrs)

    def dirty_pages(self) -> list[int]:
        """Nobody keeps a log."""
        self._check_open("asking for dirty pages")
        raise UnsupportedError("dirty pages: the software CPU keeps no log; see the feature 'dirty_log'")

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what}: the VM is closed; make a new one")

    def close(self) -> None:
        """Close the vCPUs and the engine, and let go of the memory."""
        if self._closed:
            return
        self._closed = True
        lib.soft_close_vm(self._engine)
        for vcpu in self._vcpus:
            vcpu.close()
        for memory in self._memories:
            memory.off_write(self._memory_changed)
        self._memories.clear()
        for view in self._views:
            ffi.release(view)
        self._views.clear()
