"""Between the structs of <linux/kvm.h> and CpuState."""

from __future__ import annotations

import struct

from kvmpy.cpu.state import (
    SEGMENT_NAMES,
    DebugRegisters,
    DescriptorTable,
    PendingEvents,
    Registers,
    Segment,
    SystemRegisters,
)
from kvmpy.kvm.binding import CData, constant, ffi

GENERAL = struct.Struct("<18Q")
SEGMENT_FIELDS = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")
SEGMENT = struct.Struct("<QIH9Bx")
TABLE = struct.Struct("<QH6x")
CONTROL = struct.Struct("<7Q")
BITMAP = struct.Struct("<4Q")
SHADOW_BITS = 3


def load_regs(regs: CData) -> Registers:
    """Return `struct kvm_regs` as Registers."""
    return Registers(*GENERAL.unpack(ffi.buffer(ffi.addressof(regs), GENERAL.size)))


def store_regs(regs: CData, values: Registers) -> None:
    """Fill `struct kvm_regs`."""
    packed = GENERAL.pack(
        values.rax, values.rbx, values.rcx, values.rdx, values.rsi, values.rdi, values.rsp, values.rbp,
        values.r8, values.r9, values.r10, values.r11, values.r12, values.r13, values.r14, values.r15,
        values.rip, values.rflags,
    )  # fmt: skip
    ffi.memmove(ffi.addressof(regs), packed, GENERAL.size)


def load_sregs(sregs: CData) -> SystemRegisters:
    """Return `struct kvm_sregs` as SystemRegisters."""
    data = bytes(ffi.buffer(ffi.addressof(sregs)))
    segments = [
        Segment(**dict(zip(SEGMENT_FIELDS, SEGMENT.unpack_from(data, i * SEGMENT.size), strict=True)))
        for i in range(len(SEGMENT_NAMES))
    ]
    at = len(SEGMENT_NAMES) * SEGMENT.size
    tables = [DescriptorTable(*TABLE.unpack_from(data, at + i * TABLE.size)) for i in range(2)]
    control = CONTROL.unpack_from(data, at + 2 * TABLE.size)
    return SystemRegisters(*segments, *tables, *control)  # type: ignore[arg-type]  # in the order of the fields


def store_sregs(sregs: CData, values: SystemRegisters) -> None:
    """Fill `struct kvm_sregs`; its bitmap of pending interrupts, which the events hold too, becomes empty."""
    apic_base = sregs.apic_base if values.apic_base is None else values.apic_base
    parts = [_pack_segment(getattr(values, name)) for name in SEGMENT_NAMES]
    parts += [TABLE.pack(values.gdt.base, values.gdt.limit), TABLE.pack(values.idt.base, values.idt.limit)]
    parts.append(CONTROL.pack(values.cr0, values.cr2, values.cr3, values.cr4, values.cr8, values.efer, apic_base))
    parts.append(BITMAP.pack(0, 0, 0, 0))
    packed = b"".join(parts)
    ffi.memmove(ffi.addressof(sregs), packed, len(packed))


def _pack_segment(s: Segment) -> bytes:
    return SEGMENT.pack(
        s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable
    )  # fmt: skip


def load_debug(registers: CData) -> DebugRegisters:
    """Return `struct kvm_debugregs` as DebugRegisters."""
    return DebugRegisters(list(registers.db), registers.dr6, registers.dr7)


def store_debug(values: DebugRegisters) -> CData:
    """Return a new `struct kvm_debugregs *`."""
    return ffi.new("struct kvm_debugregs *", {"db": values.db, "dr6": values.dr6, "dr7": values.dr7})


def load_events(events: CData) -> PendingEvents:
    """Return `struct kvm_vcpu_events` as PendingEvents."""
    exception, interrupt = events.exception, events.interrupt
    has_exception = exception.injected or exception.pending
    return PendingEvents(
        exception=exception.nr if has_exception else None,
        exception_error_code=exception.error_code if has_exception and exception.has_error_code else None,
        exception_injected=bool(exception.injected),
        exception_payload=events.exception_payload if events.exception_has_payload else None,
        interrupt=interrupt.nr if interrupt.injected else None,
        interrupt_soft=bool(interrupt.soft),
        shadow=interrupt.shadow & SHADOW_BITS,
        nmi_injected=bool(events.nmi.injected),
        nmi_pending=bool(events.nmi.pending),
        nmi_masked=bool(events.nmi.masked),
        sipi_vector=events.sipi_vector,
        smm=bool(events.smi.smm),
        smi_pending=bool(events.smi.pending),
        triple_fault=bool(events.triple_fault.pending),
    )


def store_events(values: PendingEvents, *, sipi: bool) -> CData:
    """Return a new `struct kvm_vcpu_events *`. `sipi` includes the SIPI vector, for a vCPU that waits for it."""
    flags = constant("KVM_VCPUEVENT_VALID_NMI_PENDING") | constant("KVM_VCPUEVENT_VALID_SHADOW")
    flags |= constant("KVM_VCPUEVENT_VALID_SIPI_VECTOR") if sipi else 0
    flags |= constant("KVM_VCPUEVENT_VALID_SMM") if values.smm or values.smi_pending else 0
    exception = {
        "injected": int(values.exception is not None),
        "nr": values.exception or 0,
        "has_error_code": int(values.exception_error_code is not None),
        "error_code": values.exception_error_code or 0,
    }
    interrupt = {
        "injected": int(values.interrupt is not None),
        "nr": values.interrupt or 0,
        "soft": int(values.interrupt_soft),
        "shadow": values.shadow,
    }
    nmi = {"injected": int(values.nmi_injected), "pending": int(values.nmi_pending), "masked": int(values.nmi_masked)}
    smi = {"smm": int(values.smm), "pending": int(values.smi_pending)}
    return ffi.new(
        "struct kvm_vcpu_events *",
        {"exception": exception, "interrupt": interrupt, "nmi": nmi, "smi": smi}
        | {"sipi_vector": values.sipi_vector, "flags": flags},
    )
