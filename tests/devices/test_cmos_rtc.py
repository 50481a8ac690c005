"""The clock by the calendar, in every format, and where a PC's firmware keeps the memory's size."""

from __future__ import annotations

import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.cmos_rtc import CmosRtc

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY, A, B = 0, 2, 4, 6, 7, 8, 9, 0x32, 0x0A, 0x0B
moments = st.integers(calendar.timegm((1970, 1, 1, 0, 0, 0)), calendar.timegm((2199, 12, 31, 23, 59, 59)))


def clock(at: float) -> CmosRtc:
    return CmosRtc(64 << 20, clock=lambda: at)


def get(rtc: CmosRtc, cell: int) -> int:
    rtc.write(0, 1, cell)
    return rtc.read(1, 1)


def put(rtc: CmosRtc, cell: int, value: int) -> None:
    rtc.write(0, 1, cell)
    rtc.write(1, 1, value)


def bcd(value: int) -> int:
    return int(str(value), 16)


@given(moments)
def test_the_time_in_bcd_as_firmware_sets_it_up(at: int) -> None:
    """MC146818A, table 3: Sunday is 1; the century after the PS/2 BIOS."""
    now, rtc = time.gmtime(at), clock(at)
    shown = [get(rtc, cell) for cell in (SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY)]
    fields = (now.tm_sec, now.tm_min, now.tm_hour, now.tm_mday, now.tm_mon, now.tm_year % 100, now.tm_year // 100)
    assert shown == [bcd(value) for value in fields]
    assert get(rtc, WEEKDAY) == int(time.strftime("%w", now)) + 1


@given(moments)
def test_the_time_in_binary_with_twelve_hours(at: int) -> None:
    now, rtc = time.gmtime(at), clock(at)
    put(rtc, B, 0x04)
    hour = int(time.strftime("%I", now)) | (0x80 if now.tm_hour >= 12 else 0)
    assert [get(rtc, cell) for cell in (HOURS, MONTH, YEAR)] == [hour, now.tm_mon, now.tm_year % 100]


@given(moments, moments, st.sampled_from([0x02, 0x06, 0x00, 0x04]))
def test_a_time_that_is_set_goes_on_from_there(at: int, wanted: int, status: int) -> None:
    """Linux sets it with B.SET held (mc146818_set_time)."""
    rtc = clock(at)
    other = clock(wanted)
    for each in (rtc, other):
        put(each, B, status)
    put(rtc, B, status | 0x80)
    for cell in (SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY):
        put(rtc, cell, get(other, cell))
    put(rtc, B, status)
    for cell in (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY):
        assert get(rtc, cell) == get(other, cell)


def test_an_update_is_announced_just_before_the_second_changes() -> None:
    """Data sheet, "Update Cycle": UIP rises 244 µs before."""
    assert get(clock(100.5), A) == 0x26
    assert get(clock(100.9999), A) == 0xA6


@pytest.mark.parametrize(
    ("memory", "cells"),
    [
        (1 << 20, {0x15: 0x80, 0x16: 0x02, 0x17: 0, 0x18: 0, 0x34: 0, 0x35: 0}),
        (64 << 20, {0x15: 0x80, 0x16: 0x02, 0x17: 0x00, 0x18: 0xFC, 0x34: 0x00, 0x35: 0x03}),
        (5 << 30, {0x34: 0x00, 0x35: 0xBF, 0x5B: 0, 0x5C: 0x00, 0x5D: 0x00}),
    ],
)
def test_where_firmware_keeps_the_memorys_size(memory: int, cells: dict[int, int]) -> None:
    """Ralf Brown's CMOS list: 0x15 KiB below 640, 0x17 KiB above 1 MiB, 0x34 units of 64 KiB above 16 MiB."""
    rtc = CmosRtc(memory)
    if memory <= 4 << 30:
        assert {cell: get(rtc, cell) for cell in cells} == cells
    else:
        low = get(rtc, 0x34) | get(rtc, 0x35) << 8
        high = get(rtc, 0x5B) | get(rtc, 0x5C) << 8 | get(rtc, 0x5D) << 16
        assert (low << 16) + (16 << 20) + (high << 16) == memory


def test_how_many_processors_there_are() -> None:
    assert get(CmosRtc(1 << 20, cpus=4), 0x5F) == 3


def test_bit_7_of_the_index_is_no_part_of_it() -> None:
    rtc = clock(0)
    put(rtc, 0x40, 0x5A)
    assert get(rtc, 0xC0) == 0x5A
