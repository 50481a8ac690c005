"""MSRs and the FPU of the software CPU, through the engine's registers."""

from __future__ import annotations

from kvmpy.cpu.fpu import FpuState, decode_fpu, encode_fpu
from kvmpy.cpu.msrs import Msr
from kvmpy.softcpu.binding import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmpy.softcpu.binding import CData

STATE_MSRS = (
    Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP, Msr.PAT, Msr.STAR, Msr.LSTAR, Msr.CSTAR, Msr.SFMASK,
    Msr.KERNEL_GS_BASE, Msr.TSC_AUX,
)  # fmt: skip
# Register numbers of Unicorn's x86.h.
MSR, FP0, XMM0 = 248, 82, 122
STATUS, CONTROL, TAG, MXCSR = 31, 246, 247, 249
EMPTY = 3  # of the two tag bits per register (Intel SDM vol. 1, 8.1.7)
TOP_SHIFT = 11


def load_msrs(soft: CData) -> dict[int, int]:
    """Return the MSRs that make up the state."""
    return {int(index): _read_msr(soft, index) for index in STATE_MSRS}


def store_msrs(soft: CData, values: Mapping[int, int]) -> None:
    """Set those MSRs of `values` that the engine has; the rest belong to other accelerators."""
    for index in STATE_MSRS:
        if index in values:
            pair = ffi.new("struct uc_x86_msr *", (index, values[index]))
            check(f"writing MSR {index:#x}", lib.soft_reg_write(soft, MSR, pair))


def _read_msr(soft: CData, index: int) -> int:
    pair = ffi.new("struct uc_x86_msr *", (index, 0))
    check(f"reading MSR {index:#x}", lib.soft_reg_read(soft, MSR, pair))
    value: int = pair.value
    return value


def load_xsave(soft: CData) -> bytes:
    """Return the x87 and SSE registers as an XSAVE area."""
    status = _read(soft, STATUS, 2)
    top = status >> TOP_SHIFT & 7
    tag = _read(soft, TAG, 2)
    # The engine's FP0-FP7 and tags are physical registers, the area's in stack order.
    physical = [_read(soft, FP0 + i, 10) for i in range(8)]
    fpu = FpuState(
        control=_read(soft, CONTROL, 2),
        status=status,
        tag=sum(1 << i for i in range(8) if tag >> 2 * i & 3 != EMPTY),
        mxcsr=_read(soft, MXCSR, 4),
        st=[physical[(top + i) & 7] for i in range(8)],
        xmm=[_read(soft, XMM0 + i, 16) for i in range(16)],
    )
    return encode_fpu(fpu)


def store_xsave(soft: CData, area: bytes) -> None:
    """Set the x87 and SSE registers from an XSAVE area."""
    fpu = decode_fpu(area)
    top = fpu.status >> TOP_SHIFT & 7
    _write(soft, STATUS, 2, fpu.status)
    _write(soft, CONTROL, 2, fpu.control)
    for i, value in enumerate(fpu.st):
        _write(soft, FP0 + ((top + i) & 7), 10, value)
    _write(soft, TAG, 2, sum(0 if fpu.tag >> i & 1 else EMPTY << 2 * i for i in range(8)))
    _write(soft, MXCSR, 4, fpu.mxcsr)
    for i, value in enumerate(fpu.xmm):
        _write(soft, XMM0 + i, 16, value)


def _read(soft: CData, regid: int, size: int) -> int:
    value = ffi.new("uint8_t[16]")
    check(f"reading register {regid}", lib.soft_reg_read(soft, regid, value))
    return int.from_bytes(bytes(value)[:size], "little")


def _write(soft: CData, regid: int, size: int, value: int) -> None:
    data = ffi.new("uint8_t[16]", list(value.to_bytes(size, "little")))
    check(f"writing register {regid}", lib.soft_reg_write(soft, regid, data))
