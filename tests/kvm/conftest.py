"""A VM made of nothing but ioctls, with memory and a vCPU in real mode."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kvmpy.errors import NoAcceleratorError
from kvmpy.kvm.binding import ffi
from kvmpy.kvm.system import Kvm
from kvmpy.kvm.vcpu import VcpuFd
from kvmpy.kvm.vm import VmFd

MEMORY = 1 << 20
CODE = 0x1000
DEADLINE = 20.0  # seconds that a guest may run


class Bare:
    """A VM with one slot of memory at 0; `vcpu()` makes its vCPU, after whatever must come before."""

    def __init__(self, vm: VmFd, stack: ExitStack) -> None:
        self.vm = vm
        self.memory = mmap.mmap(-1, MEMORY)
        self._stack = stack
        self._view = ffi.from_buffer(self.memory)
        stack.callback(self._release)

    def _release(self) -> None:
        ffi.release(self._view)
        self.memory.close()

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self._view))

    def add_memory(self, *, flags: int = 0) -> None:
        self.vm.set_memory_region(0, 0, MEMORY, self.address, flags=flags)

    def vcpu(self, code: str = "f4", number: int = 0) -> VcpuFd:
        """Return a vCPU about to run these bytes in real mode at CODE."""
        self.memory[CODE : CODE + len(bytes.fromhex(code))] = bytes.fromhex(code)
        vcpu = self._stack.enter_context(self.vm.create_vcpu(number))
        watchdog = threading.Timer(DEADLINE, vcpu.kick)
        watchdog.daemon = True
        watchdog.start()
        self._stack.callback(watchdog.join)
        self._stack.callback(watchdog.cancel)
        sregs = vcpu.get_sregs()
        for name in ("cs", "ds", "es", "ss"):
            segment = getattr(sregs, name)
            segment.base = segment.selector = 0
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = CODE, 0x8000, 2
        vcpu.set_regs(regs)
        return vcpu


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    """The host's KVM."""
    try:
        opened = Kvm()
    except NoAcceleratorError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture
def bare(kvm: Kvm) -> Iterator[Bare]:
    """A VM without memory or vCPU yet."""
    with ExitStack() as stack:
        yield Bare(stack.enter_context(kvm.create_vm()), stack)
