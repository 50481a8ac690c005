"""The bus: sorted ranges, overlap is an error, what no device claims reads as all ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.base import Device
from kvmpy.errors import BusError, ConfigError
from kvmpy.machine.bus import AddressSpace


class Recorder(Device):
    """Answers with its offset, and notes what is written."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset | size << 4

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def space(*, strict: bool = False) -> AddressSpace:
    return AddressSpace("port", 1 << 16, strict=strict)


def test_an_access_reaches_its_device_with_an_offset() -> None:
    ports, device = space(), Recorder()
    ports.add(device, 0x100, 8)
    assert ports.read(0x103, 2) == 3 | 2 << 4
    ports.write(0x106, 2, 0xBEEF)
    assert device.written == [(6, 2, 0xBEEF)]


def test_ranges_keep_apart_whatever_the_order() -> None:
    ports = space()
    for start in (0x300, 0x100, 0x200):
        ports.add(Recorder(f"at {start:#x}"), start, 0x100)
    assert [device.name for _, _, device in ports.devices()] == ["at 0x100", "at 0x200", "at 0x300"]
    assert ports.find(0x2FF, 1) == (ports.devices()[1][2], 0xFF)


@pytest.mark.parametrize(("start", "size"), [(0x0F8, 9), (0x100, 8), (0x104, 1), (0x107, 10), (0, 0x10000)])
def test_overlap_is_an_error_that_names_both(start: int, size: int) -> None:
    ports = space()
    ports.add(Recorder("first"), 0x100, 8)
    with pytest.raises(ConfigError, match=r"second.*overlaps first"):
        ports.add(Recorder("second"), start, size)


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0xFFFF, 2), (0x10000, 1), (5, 0)])
def test_a_range_outside_the_space_is_an_error(start: int, size: int) -> None:
    with pytest.raises(ConfigError, match="outside"):
        space().add(Recorder(), start, size)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_nobody_home_reads_as_ones_and_is_counted(size: int) -> None:
    ports = space()
    assert ports.read(0x5000, size) == (1 << 8 * size) - 1
    ports.write(0x5000, size, 0)
    ports.write(0x5000, size, 0)
    assert ports.unclaimed == {("read", 0x5000, size): 1, ("write", 0x5000, size): 2}


def test_strict_makes_it_an_error() -> None:
    with pytest.raises(BusError, match="read of 2 bytes at port 0x5000"):
        space(strict=True).read(0x5000, 2)


def test_an_access_over_the_edge_is_split_into_bytes() -> None:
    ports, device = space(), Recorder()
    ports.add(device, 0x100, 2)
    assert ports.read(0x101, 2) == 0xFF << 8 | 1 | 1 << 4
    ports.write(0x0FF, 2, 0xAABB)
    assert device.written == [(0, 1, 0xAA)]


def test_replace_puts_a_device_in_anothers_place() -> None:
    ports = space()
    ports.add(Recorder("old"), 0x100, 8)
    new = Recorder("new")
    ports.replace(0x100, new)
    assert ports.find(0x107, 1) == (new, 7)
    with pytest.raises(ConfigError):
        ports.replace(0x104, new)


def test_unclaimed_accesses_do_not_fill_memory() -> None:
    memory = AddressSpace("address", 1 << 52)
    for address in range(0, 1 << 20, 64):
        memory.read(address, 8)
    assert len(memory.unclaimed) == 4096


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(1, 64)), max_size=20), st.integers(0, 0xFFFF))
def test_an_address_belongs_to_the_range_that_holds_it(ranges: list[tuple[int, int]], address: int) -> None:
    ports, kept = space(), []
    for start, size in ranges:
        try:
            ports.add(Recorder(str(start)), start, size)
        except ConfigError:
            continue
        kept.append((start, start + size))
    found = ports.find(address, 1)
    holders = [start for start, end in kept if start <= address < end]
    assert (found is not None) == bool(holders)
    if found:
        assert (found[0].name, found[1]) == (str(holders[0]), address - holders[0])
