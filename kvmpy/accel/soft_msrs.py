"""MSRs and the FPU of the software CPU, where the engine has them (src/cpu.h)."""

from __future__ import annotations

from kvmpy.cpu.fpu import FpuState, decode_fpu, encode_fpu
from kvmpy.cpu.msrs import Msr
from kvmpy.softcpu.binding import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmpy.softcpu.binding import CData

FIELDS = {
    Msr.SYSENTER_CS: "sysenter_cs",
    Msr.SYSENTER_ESP: "sysenter_esp",
    Msr.SYSENTER_EIP: "sysenter_eip",
    Msr.PAT: "pat",
    Msr.STAR: "star",
    Msr.LSTAR: "lstar",
    Msr.CSTAR: "cstar",
    Msr.SFMASK: "sfmask",
    Msr.KERNEL_GS_BASE: "kernel_gs_base",
    Msr.TSC_AUX: "tsc_aux",
}
TOP_SHIFT = 11
STATUS_WITHOUT_TOP = ~(7 << TOP_SHIFT)
REGISTERS, ST_SIZE, XMM_SIZE = 8, 10, 16


def load_msrs(cpu: CData) -> dict[int, int]:
    """Return the MSRs that make up the state."""
    return {int(index): getattr(cpu, name) for index, name in FIELDS.items()}


def store_msrs(cpu: CData, values: Mapping[int, int]) -> None:
    """Set those MSRs of `values` that the engine has; the rest belong to other accelerators."""
    for index, name in FIELDS.items():
        if index in values:
            setattr(cpu, name, values[index])


def load_xsave(cpu: CData) -> bytes:
    """Return the x87 and SSE registers as an XSAVE area."""
    top = cpu.fpu_top
    # The engine's registers and tags are physical ones, the area's in stack order.
    fpu = FpuState(
        control=cpu.fpu_control,
        status=cpu.fpu_status & STATUS_WITHOUT_TOP | top << TOP_SHIFT,
        tag=sum(1 << i for i in range(REGISTERS) if not cpu.fpu_empty[i]),
        mxcsr=cpu.mxcsr,
        st=[_number(cpu.fpu[(top + i) % REGISTERS], ST_SIZE) for i in range(REGISTERS)],
        xmm=[_number(cpu.xmm[i], XMM_SIZE) for i in range(16)],
    )
    return encode_fpu(fpu)


def store_xsave(soft: CData, area: bytes) -> None:
    """Set the x87 and SSE registers from an XSAVE area."""
    fpu, cpu = decode_fpu(area), soft.saved
    cpu.fpu_top = top = fpu.status >> TOP_SHIFT & 7
    cpu.fpu_status = fpu.status & STATUS_WITHOUT_TOP
    for i, value in enumerate(fpu.st):
        ffi.memmove(cpu.fpu[(top + i) % REGISTERS], value.to_bytes(ST_SIZE, "little"), ST_SIZE)
        cpu.fpu_empty[i] = not fpu.tag >> i & 1
    for i, value in enumerate(fpu.xmm):
        ffi.memmove(cpu.xmm[i], value.to_bytes(XMM_SIZE, "little"), XMM_SIZE)
    lib.soft_set_fpu_control(soft, fpu.control, fpu.mxcsr)


def _number(data: CData, size: int) -> int:
    return int.from_bytes(ffi.buffer(data, size), "little")
