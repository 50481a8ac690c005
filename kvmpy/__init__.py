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
if TYPE_CHECKING:
    from kvmpy.accel import exits
    from kvmpy.accel.base import Accelerator, Vcpu, Vm, Watchpoint
    from kvmpy.accel.choose import open_accelerator
    from kvmpy.accel.exits import Exit
    from kvmpy.accel.kvm import KvmAccelerator
    from kvmpy.accel.soft import SoftAccelerator
    from kvmpy.accel.testbed import Testbed
    from kvmpy.asm import Assembly, Instruction, assemble, disassemble
    from kvmpy.boot.flat import plan_code
    from kvmpy.boot.image import bundled_guests, plan_image
    from kvmpy.boot.plan import BootPlan
    from kvmpy.cpu.cpuid import CpuidEntry, CpuidTable
    from kvmpy.cpu.modes import long_mode, protected_mode, real_mode
    from kvmpy.cpu.page_tables import PageTables
    from kvmpy.cpu.paging import walk
    from kvmpy.cpu.segments import Gate, Gdt, Idt, Tss
    from kvmpy.cpu.state import CpuState, Registers, Segment, SystemRegisters
    from kvmpy.devices.base import Device, Field, IrqLine, Register, RegisterDevice
    from kvmpy.errors import (
        AssemblyError,
        BusError,
        ClosedError,
        ConfigError,
        ContainerError,
        DeadlineError,
        ExecutableError,
        HostError,
        ImageError,
        KvmError,
        KvmpyError,
        MemoryAccessError,
        NoAcceleratorError,
        UnsupportedError,
    )
    from kvmpy.lab.postmortem import post_mortem
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.stop import Stop, StopKind
    from kvmpy.memory import GuestMemory

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
