"""kvmpy: a laboratory for virtualization in Python.

The public API, flat; everything else may move. Names are imported when they are first used, so `import kvmpy` is quick.

    import kvmpy

    with kvmpy.open_accelerator() as accelerator, kvmpy.Machine(accelerator, output=print) as machine:
        machine.load(kvmpy.plan_image("hello.bin", memory=machine.memory.size))
        print(machine.run(timeout=5))
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:  # a type checker takes `as` for what is meant to be imported from here
    from kvmpy.accel import exits as exits
    from kvmpy.accel.base import Accelerator as Accelerator
    from kvmpy.accel.base import Vcpu as Vcpu
    from kvmpy.accel.base import Vm as Vm
    from kvmpy.accel.base import Watchpoint as Watchpoint
    from kvmpy.accel.choose import open_accelerator as open_accelerator
    from kvmpy.accel.exits import Exit as Exit
    from kvmpy.accel.kvm import KvmAccelerator as KvmAccelerator
    from kvmpy.accel.soft import SoftAccelerator as SoftAccelerator
    from kvmpy.accel.testbed import Testbed as Testbed
    from kvmpy.asm import Assembly as Assembly
    from kvmpy.asm import Instruction as Instruction
    from kvmpy.asm import assemble as assemble
    from kvmpy.asm import disassemble as disassemble
    from kvmpy.boot.flat import plan_code as plan_code
    from kvmpy.boot.image import bundled_guests as bundled_guests
    from kvmpy.boot.image import plan_image as plan_image
    from kvmpy.boot.plan import BootPlan as BootPlan
    from kvmpy.cpu.cpuid import CpuidEntry as CpuidEntry
    from kvmpy.cpu.cpuid import CpuidTable as CpuidTable
    from kvmpy.cpu.modes import long_mode as long_mode
    from kvmpy.cpu.modes import protected_mode as protected_mode
    from kvmpy.cpu.modes import real_mode as real_mode
    from kvmpy.cpu.page_tables import PageTables as PageTables
    from kvmpy.cpu.paging import walk as walk
    from kvmpy.cpu.segments import Gate as Gate
    from kvmpy.cpu.segments import Gdt as Gdt
    from kvmpy.cpu.segments import Idt as Idt
    from kvmpy.cpu.segments import Tss as Tss
    from kvmpy.cpu.state import CpuState as CpuState
    from kvmpy.cpu.state import Registers as Registers
    from kvmpy.cpu.state import Segment as Segment
    from kvmpy.cpu.state import SystemRegisters as SystemRegisters
    from kvmpy.devices.base import Device as Device
    from kvmpy.devices.base import Field as Field
    from kvmpy.devices.base import IrqLine as IrqLine
    from kvmpy.devices.base import Register as Register
    from kvmpy.devices.base import RegisterDevice as RegisterDevice
    from kvmpy.errors import AssemblyError as AssemblyError
    from kvmpy.errors import BusError as BusError
    from kvmpy.errors import ClosedError as ClosedError
    from kvmpy.errors import ConfigError as ConfigError
    from kvmpy.errors import ContainerError as ContainerError
    from kvmpy.errors import DeadlineError as DeadlineError
    from kvmpy.errors import ExecutableError as ExecutableError
    from kvmpy.errors import HostError as HostError
    from kvmpy.errors import ImageError as ImageError
    from kvmpy.errors import KvmError as KvmError
    from kvmpy.errors import KvmpyError as KvmpyError
    from kvmpy.errors import MemoryAccessError as MemoryAccessError
    from kvmpy.errors import NoAcceleratorError as NoAcceleratorError
    from kvmpy.errors import UnsupportedError as UnsupportedError
    from kvmpy.lab.postmortem import post_mortem as post_mortem
    from kvmpy.machine.machine import Machine as Machine
    from kvmpy.machine.stop import Stop as Stop
    from kvmpy.machine.stop import StopKind as StopKind
    from kvmpy.memory import GuestMemory as GuestMemory

_HOMES = {
    "kvmpy.accel": ("exits",),
    "kvmpy.accel.base": ("Accelerator", "Vcpu", "Vm", "Watchpoint"),
    "kvmpy.accel.exits": ("Exit",),
    "kvmpy.accel.choose": ("open_accelerator",),
    "kvmpy.accel.kvm": ("KvmAccelerator",),
    "kvmpy.accel.soft": ("SoftAccelerator",),
    "kvmpy.accel.testbed": ("Testbed",),
    "kvmpy.asm": ("Assembly", "Instruction", "assemble", "disassemble"),
    "kvmpy.boot.flat": ("plan_code",),
    "kvmpy.boot.image": ("bundled_guests", "plan_image"),
    "kvmpy.boot.plan": ("BootPlan",),
    "kvmpy.cpu.cpuid": ("CpuidEntry", "CpuidTable"),
    "kvmpy.cpu.modes": ("long_mode", "protected_mode", "real_mode"),
    "kvmpy.cpu.page_tables": ("PageTables",),
    "kvmpy.cpu.paging": ("walk",),
    "kvmpy.cpu.segments": ("Gate", "Gdt", "Idt", "Tss"),
    "kvmpy.cpu.state": ("CpuState", "Registers", "Segment", "SystemRegisters"),
    "kvmpy.devices.base": ("Device", "Field", "IrqLine", "Register", "RegisterDevice"),
    "kvmpy.errors": (
        "AssemblyError",
        "BusError",
        "ClosedError",
        "ConfigError",
        "ContainerError",
        "DeadlineError",
        "ExecutableError",
        "HostError",
        "ImageError",
        "KvmError",
        "KvmpyError",
        "MemoryAccessError",
        "NoAcceleratorError",
        "UnsupportedError",
    ),
    "kvmpy.lab.postmortem": ("post_mortem",),
    "kvmpy.machine.machine": ("Machine",),
    "kvmpy.machine.stop": ("Stop", "StopKind"),
    "kvmpy.memory": ("GuestMemory",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


if not TYPE_CHECKING:  # which would take every name for one that is there

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        import importlib

        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'kvmpy' has no attribute {name!r}")
        module = importlib.import_module(home)
        value = importlib.import_module(f"{home}.{name}") if name == "exits" else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
