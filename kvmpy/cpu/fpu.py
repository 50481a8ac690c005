"""The x87 and SSE state inside an XSAVE area in standard format (Intel SDM vol. 1, 10.5.1 and 13.4).

bytes 0-511    the legacy region, as FXSAVE writes it: x87 control, ST0-ST7, MXCSR, XMM0-XMM15
bytes 512-575  the header: XSTATE_BV tells which components are not in their initial state
from 576 on    AVX and later components, where CPUID leaf 0xD says
"""

from __future__ import annotations

import struct

from kvmpy.errors import ConfigError
from kvmpy.record import field, record

LEGACY_SIZE, HEADER_SIZE = 512, 64
XSTATE_X87, XSTATE_SSE = 1 << 0, 1 << 1
ST_AT, XMM_AT, REGISTER_SIZE = 32, 160, 16
MXCSR_AT = 24
INITIAL_CONTROL, INITIAL_MXCSR = 0x37F, 0x1F80  # after FNINIT and RESET (Intel SDM vol. 3, table 10-1)


@record
class FpuState:
    """x87 and SSE registers. `st` holds the 80-bit registers in stack order, `xmm` 128 bits each; `tag` is the abridged
    tag byte, one bit per register that is not empty (Intel SDM vol. 1, 10.5.1.1).
    """

    control: int = INITIAL_CONTROL
    status: int = 0
    tag: int = 0
    opcode: int = 0
    instruction_pointer: int = 0
    data_pointer: int = 0
    mxcsr: int = INITIAL_MXCSR
    st: list[int] = field(default_factory=lambda: [0] * 8)
    xmm: list[int] = field(default_factory=lambda: [0] * 16)


def decode_fpu(area: bytes) -> FpuState:
    """Return the x87 and SSE registers of an XSAVE or FXSAVE area; ConfigError when it is too short.

    A component whose XSTATE_BV bit is clear is in its initial state, whatever the area holds.
    """
    if len(area) < LEGACY_SIZE:
        raise ConfigError(f"XSAVE area of {len(area)} bytes: the legacy region alone has {LEGACY_SIZE}")
    present = XSTATE_X87 | XSTATE_SSE
    if len(area) >= LEGACY_SIZE + HEADER_SIZE:
        present = int.from_bytes(area[LEGACY_SIZE : LEGACY_SIZE + 8], "little")
    state = FpuState()
    if present & XSTATE_X87:
        state.control, state.status, state.tag, state.opcode = struct.unpack_from("<HHBxH", area)
        state.instruction_pointer, state.data_pointer = struct.unpack_from("<QQ", area, 8)
        state.st = _registers(area, ST_AT, 8, 10)
    if present & XSTATE_SSE:
        (state.mxcsr,) = struct.unpack_from("<I", area, MXCSR_AT)
        state.xmm = _registers(area, XMM_AT, 16, 16)
    return state


def encode_fpu(state: FpuState, area: bytes = b"") -> bytes:
    """Return `area` with these registers in it and marked as present; without one, an area of 4 KiB."""
    out = bytearray(area or bytes(4096))
    if len(out) < LEGACY_SIZE + HEADER_SIZE:
        raise ConfigError(f"XSAVE area of {len(out)} bytes: it needs {LEGACY_SIZE + HEADER_SIZE} at least")
    try:
        struct.pack_into("<HHBxHQQI", out, 0, state.control, state.status, state.tag, state.opcode,
                         state.instruction_pointer, state.data_pointer, state.mxcsr)  # fmt: skip
        _store(out, ST_AT, state.st, 8, 10)
        _store(out, XMM_AT, state.xmm, 16, 16)
    except (struct.error, OverflowError) as error:
        raise ConfigError(f"FPU state: a value does not fit its register: {error}") from None
    present = int.from_bytes(out[LEGACY_SIZE : LEGACY_SIZE + 8], "little") | XSTATE_X87 | XSTATE_SSE
    out[LEGACY_SIZE : LEGACY_SIZE + 8] = present.to_bytes(8, "little")
    return bytes(out)


def _registers(area: bytes, at: int, count: int, size: int) -> list[int]:
    starts = range(at, at + count * REGISTER_SIZE, REGISTER_SIZE)
    return [int.from_bytes(area[start : start + size], "little") for start in starts]


def _store(out: bytearray, at: int, values: list[int], count: int, size: int) -> None:
    if len(values) != count:
        raise ConfigError(f"FPU state: {len(values)} registers where there are {count}")
    for i, value in enumerate(values):
        start = at + i * REGISTER_SIZE
        out[start : start + size] = value.to_bytes(size, "little")
