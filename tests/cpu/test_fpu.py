"""The x87 and SSE registers in an XSAVE area (Intel SDM vol. 1, table 10-2 and 13.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.cpu.fpu import FpuState, decode_fpu, encode_fpu
from kvmpy.errors import ConfigError

states = st.builds(
    FpuState,
    control=st.integers(0, 0xFFFF), status=st.integers(0, 0xFFFF), tag=st.integers(0, 0xFF),
    opcode=st.integers(0, 0x7FF),
    instruction_pointer=st.integers(0, (1 << 64) - 1), data_pointer=st.integers(0, (1 << 64) - 1),
    mxcsr=st.integers(0, (1 << 32) - 1),
    st=st.lists(st.integers(0, (1 << 80) - 1), min_size=8, max_size=8),
    xmm=st.lists(st.integers(0, (1 << 128) - 1), min_size=16, max_size=16),
)  # fmt: skip


@given(states)
def test_what_is_encoded_can_be_decoded(state: FpuState) -> None:
    assert decode_fpu(encode_fpu(state)) == state


def test_each_field_lies_where_the_manual_has_it() -> None:
    state = FpuState(
        control=0x1111, status=0x2222, tag=0x33, opcode=0x444, instruction_pointer=0x55, data_pointer=0x66,
        mxcsr=0x77778888, st=[0x99 + n for n in range(8)], xmm=[0xAA00 + n for n in range(16)],
    )  # fmt: skip
    area = encode_fpu(state)
    at = {0: 0x1111, 2: 0x2222, 6: 0x444, 24: 0x8888, 26: 0x7777, 32: 0x99, 48: 0x9A, 160: 0xAA00, 176: 0xAA01}
    assert {where: int.from_bytes(area[where : where + 2], "little") for where in at} == at
    assert (area[4], area[8], area[16]) == (0x33, 0x55, 0x66)
    assert area[512] & 3 == 3  # XSTATE_BV: both are there


def test_what_xstate_bv_leaves_out_is_in_its_initial_state() -> None:
    area = bytearray(encode_fpu(FpuState(control=0x27F, mxcsr=0x1FC0, xmm=[5] * 16)))
    area[512] = 0
    assert decode_fpu(bytes(area)) == FpuState()
    area[512] = 2
    assert (decode_fpu(bytes(area)).control, decode_fpu(bytes(area)).mxcsr) == (0x37F, 0x1FC0)


@pytest.mark.parametrize("wrong", [FpuState(control=1 << 16), FpuState(st=[1 << 80] + [0] * 7), FpuState(xmm=[0])])
def test_values_that_do_not_fit(wrong: FpuState) -> None:
    with pytest.raises(ConfigError, match="FPU state"):
        encode_fpu(wrong)


def test_areas_that_are_too_short() -> None:
    with pytest.raises(ConfigError, match="511 bytes"):
        decode_fpu(bytes(511))
    with pytest.raises(ConfigError, match="512 bytes"):
        encode_fpu(FpuState(), bytes(512))
