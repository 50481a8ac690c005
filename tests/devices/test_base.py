"""Declared registers: of any width, with fields, reached by accesses of any width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.acpi_pm import CONTROL, AcpiPm
from kvmpy.devices.base import Field, Register, RegisterDevice
from kvmpy.errors import ConfigError

WIDE = Register(8, "wide", reset=0x1122334455667788, size=8)


class Mixed(RegisterDevice):
    """A byte, a word, a gap of a byte, a double word, and eight bytes; it notes what its methods are called with."""

    name = "mixed"
    REGISTERS = (
        Register(0, "byte", 0x5A),
        Register(1, "word", 0xBEEF, size=2, writable=0x0FFF),
        Register(4, "double", size=4),
        WIDE,
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def read_double(self) -> int:
        self.calls.append(("read", 0))
        return self.registers["double"]

    def write_double(self, value: int) -> None:
        self.calls.append(("write", value))
        self.registers["double"] = value


@pytest.fixture
def device() -> Mixed:
    return Mixed()


def test_each_register_is_read_at_its_own_width(device: Mixed) -> None:
    assert device.read(0, 1) == 0x5A
    assert device.read(1, 2) == 0xBEEF
    assert device.read(8, 8) == 0x1122334455667788


def test_a_narrow_read_gives_a_part_and_a_wide_one_the_neighbours(device: Mixed) -> None:
    assert device.read(2, 1) == 0xBE
    assert device.read(10, 2) == 0x5566
    assert device.read(0, 4) == 0xFF_BEEF_5A  # the byte at 3 belongs to nobody


def test_a_register_is_called_once_for_an_access(device: Mixed) -> None:
    device.write(4, 4, 0xAABBCCDD)
    assert device.read(4, 4) == 0xAABBCCDD
    assert device.calls == [("write", 0xAABBCCDD), ("read", 0)]


def test_a_narrow_write_leaves_the_other_bytes(device: Mixed) -> None:
    device.write(4, 4, 0x11223344)
    device.write(5, 2, 0xAABB)
    assert device.registers["double"] == 0x11AABB44
    assert device.calls[-1] == ("write", 0x11AABB44)
    device.write(9, 1, 0)
    assert device.registers["wide"] == 0x1122334455660088


def test_only_writable_bits_change(device: Mixed) -> None:
    device.write(1, 2, 0)
    assert device.read(1, 2) == 0xB000


def test_a_write_beside_all_registers_is_ignored(device: Mixed) -> None:
    before = dict(device.registers)
    device.write(3, 1, 0xFF)
    device.write(40, 8, 0xFF)
    assert device.registers == before
    assert device.read(40, 2) == 0xFFFF


@given(st.lists(st.tuples(st.integers(0, 17), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))))
def test_any_accesses_are_those_on_an_array_of_bytes(accesses: list[tuple[int, int, int]]) -> None:
    """Storage registers without gaps behave like memory, however they are cut."""

    class Flat(RegisterDevice):
        name = "flat"
        REGISTERS = tuple(
            Register(at, f"r{at}", size=size) for at, size in ((0, 1), (1, 2), (3, 1), (4, 4), (8, 8), (16, 8), (24, 2))
        )

    device, memory = Flat(), bytearray(26)
    for offset, size, value in accesses:
        content = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        device.write(offset, size, int.from_bytes(content, "little"))
        memory[offset : offset + size] = content
        assert device.read(offset, size) == int.from_bytes(content, "little")
    for at in range(26):
        assert device.read(at, 1) == memory[at]


def test_fields_are_taken_out_and_put_in() -> None:
    register = Register(0, "control", size=4, fields=(Field("enable", 0), Field("mode", 4, 3), Field("count", 16, 16)))
    value = register.put(register.put(0, "mode", 5), "count", 0xABCD)
    assert value == 0xABCD0050
    assert register.decode(value) == {"enable": 0, "mode": 5, "count": 0xABCD}
    assert register.put(value, "mode", 0) == 0xABCD0000


def test_a_field_that_there_is_not_or_that_is_too_small() -> None:
    with pytest.raises(ConfigError, match="it has sci_en, bm_rld"):
        CONTROL.get(0, "sleep")
    with pytest.raises(ConfigError, match="3 bits cannot hold 0x8"):
        CONTROL.put(0, "slp_typ", 8)


@pytest.mark.parametrize(
    "registers",
    [
        (Register(0, "a", size=2), Register(1, "b")),
        (Register(0, "a", size=3),),
        (Register(0, "a", fields=(Field("f", 7, 2),)),),
        (Register(0, "a", fields=(Field("f", 0, 2), Field("g", 1))),),
        (Register(0, "a", fields=(Field("f", 0, 0),)),),
    ],
)
def test_declarations_that_cannot_be_are_refused_with_the_class(registers: tuple[Register, ...]) -> None:
    with pytest.raises(ConfigError, match="Broken"):
        type("Broken", (RegisterDevice,), {"REGISTERS": registers, "name": "broken"})


def test_state_keeps_every_register_whole(device: Mixed) -> None:
    device.write(8, 8, 0xFEDCBA9876543210)
    other = Mixed()
    other.restore(device.state())
    assert other.registers == device.registers
    with pytest.raises(ConfigError, match="'byte' cannot be 256"):
        other.restore({**device.state(), "byte": 256})


@pytest.mark.parametrize(("offset", "size", "value", "off"), [(4, 2, 0x2000, 1), (5, 1, 0x20, 1), (4, 2, 0x1C00, 0)])
def test_sleep_enable_switches_off_by_any_width(offset: int, size: int, value: int, off: int) -> None:
    times: list[int] = []
    device = AcpiPm(lambda: times.append(1))
    device.write(offset, size, value)
    assert len(times) == off
    assert not CONTROL.get(device.read(4, 2), "slp_en")
