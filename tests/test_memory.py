"""Guest-physical memory: what is written is read, nothing lies in the hole, and nothing beyond the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.cpu.modes import long_mode
from kvmpy.cpu.page_tables import PAGE_4K, PageTables
from kvmpy.errors import ClosedError, ConfigError, MemoryAccessError
from kvmpy.memory import HOLE_END, HOLE_START, GuestMemory

SIZE = 64 << 10


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, SIZE + 100), st.binary(min_size=1, max_size=200)), max_size=20))
def test_it_is_a_run_of_bytes(writes: list[tuple[int, bytes]]) -> None:
    model = bytearray(SIZE)
    with GuestMemory(SIZE) as memory:
        for at, data in writes:
            if at + len(data) <= SIZE:
                memory.write(at, data)
                model[at : at + len(data)] = data
            else:
                with pytest.raises(MemoryAccessError, match="no memory there"):
                    memory.write(at, data)
        assert memory.read(0, SIZE) == model
        for at, data in writes:
            if at + len(data) <= SIZE:
                assert bytes(memory.view(at, len(data))) == model[at : at + len(data)]


@pytest.mark.parametrize("high", [4096, 1 << 20, 1 << 30])
def test_what_does_not_fit_below_the_hole_goes_on_above_it(high: int) -> None:
    """All of it: the last byte is there, and the one behind it is not."""
    with GuestMemory(HOLE_START + high) as memory:
        assert memory.size == HOLE_START + high
        for last in (HOLE_START - 1, HOLE_END + high - 1):
            memory.write(last, b"x")
            assert memory.read(last, 1) == b"x"
            with pytest.raises(MemoryAccessError):
                memory.read(last + 1, 1)
        with pytest.raises(MemoryAccessError):
            memory.read(HOLE_END - 1, 2)


@given(st.integers(0, SIZE - 8), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 70) - 1))
def test_integers_are_little_endian_and_cut_off(at: int, size: int, value: int) -> None:
    with GuestMemory(SIZE) as memory:
        memory.write_int(at, size, value)
        assert memory.read_int(at, size) == value % (1 << 8 * size)
        assert memory.read(at, size) == (value % (1 << 8 * size)).to_bytes(size, "little")


@pytest.mark.parametrize(("gpa", "size"), [(1, 4096), (0, 1), (-4096, 4096), (0, 0), (1 << 52, 4096)])
def test_regions_that_cannot_be(gpa: int, size: int) -> None:
    with GuestMemory() as memory, pytest.raises(ConfigError, match="multiples of 4 KiB"):
        memory.add(gpa, size)


def test_regions_do_not_overlap() -> None:
    with GuestMemory(8192) as memory:
        memory.add(8192, 4096)
        for gpa in (0, 4096, 8192):
            with pytest.raises(ConfigError, match="overlaps"):
                memory.add(gpa, 4096)


@given(
    st.lists(st.integers(0, 15), min_size=4, max_size=4, unique=True),
    st.integers(0, 3 * 4096),
    st.binary(max_size=4000),
)
def test_virtual_memory_goes_page_by_page(pages: list[int], at: int, data: bytes) -> None:
    """Four virtual pages that lie anywhere in physical memory."""
    with GuestMemory(1 << 20) as memory:
        tables = PageTables(0x80000)
        for number, page in enumerate(pages):
            tables.map(number * PAGE_4K, page * PAGE_4K, PAGE_4K)
        memory.write(0x80000, tables.encode())
        sregs = long_mode(0, 0, 0x80000).sregs
        memory.write_virtual(sregs, at, data)
        assert memory.read_virtual(sregs, at, len(data)) == data
        if data:
            assert memory.read(pages[at >> 12] * 4096 + at % 4096, 1) == data[:1]
        with pytest.raises(MemoryAccessError, match="guest-virtual address 0x4000"):
            memory.read_virtual(sregs, 0x3FFF, 2)


def test_once_closed_it_says_so() -> None:
    memory = GuestMemory(4096)
    memory.close()
    memory.close()
    for attempt in (lambda: memory.read(0, 1), lambda: memory.write(0, b"x"), lambda: memory.add(4096, 4096)):
        with pytest.raises(ClosedError, match="memory is closed"):
            attempt()
