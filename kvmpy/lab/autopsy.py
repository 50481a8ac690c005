"""Find out what a guest died of, which KVM does not tell: after a triple fault the state is that before the first.

The instruction is executed once more, by the software CPU, over the guest's memory, which it cannot write; and with an
empty interrupt table, so that what it raises goes nowhere.
"""

from __future__ import annotations

import copy

from kvmpy.accel.soft import SoftAccelerator
from kvmpy.cpu.flags import EXCEPTIONS
from kvmpy.cpu.state import DescriptorTable
from kvmpy.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.cpu.state import Registers, SystemRegisters
    from kvmpy.memory import GuestMemory, Region

PAGE_FAULT = 14


@record
class Raised:
    """An exception: its vector, the error code that it pushes, if it does, and for a page fault the address.

    `why` is what the manual's rules say of it; not `certain` is what only they say, and execution did not show.
    """

    vector: int
    error_code: int | None = None
    address: int | None = None
    why: str = ""
    certain: bool = True

    def __str__(self) -> str:
        known = EXCEPTIONS.get(self.vector)
        text = f"{known.mnemonic}, {known.name}" if known else f"exception {self.vector}"
        text += "" if self.error_code is None else f", error code {self.error_code:#x}"
        text += "" if self.address is None else f", address {self.address:#x}"
        text += f": {self.why}" if self.why else ""
        return text if self.certain else f"probably {text}"


def exception_of(memory: GuestMemory, regs: Registers, sregs: SystemRegisters) -> Raised | None:
    """Return what the instruction at CS:RIP raises in this state, None when it raises nothing.

    Raises:
        NoAcceleratorError: the software CPU is not installed.
        KvmpyError: it cannot take this memory or state.
    """
    with SoftAccelerator() as soft, soft.create_vm() as vm:
        vm.add_regions([_unwritable(region) for region in memory.regions])
        vcpu = vm.create_vcpu()
        vcpu.sregs = replace(sregs, idt=DescriptorTable(0, 0))
        vcpu.regs = regs
        vcpu.step()
        if vcpu.raised is None:
            return None
        vector, error_code = vcpu.raised
        return Raised(vector, error_code, vcpu.sregs.cr2 if vector == PAGE_FAULT else None)


def _unwritable(region: Region) -> Region:
    region = copy.copy(region)
    region.readonly = True
    return region
