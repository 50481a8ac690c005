"""The CMOS memory with its real-time clock, at ports 0x70 (index) and 0x71 (data): Motorola MC146818A data sheet.

Where a PC's firmware keeps the memory's size is after Ralf Brown's CMOS list; 0x5B-0x5D and 0x5F are QEMU's.
"""

from __future__ import annotations

import time

from kvmpy.devices.base import Register, RegisterDevice
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CMOS_SIZE = 128
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
STATUS_A, STATUS_B, STATUS_C, STATUS_D = 0x0A, 0x0B, 0x0C, 0x0D
A_UPDATING, A_RATES = 0x80, 0x26  # 32.768 kHz divider, 1024 Hz
B_SET, B_BINARY, B_24_HOURS = 0x80, 0x04, 0x02
D_VALID = 0x80
PM = 0x80
UPDATE_SECONDS = 244e-6  # UIP rises that long before the seconds change (data sheet, "Update Cycle")

FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 and 9999

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BASE_MEMORY_KIB = 640


class CmosRtc(RegisterDevice):
    """128 bytes, the first ones a clock in UTC. `clock` gives seconds since 1970.

    The guest may set the time: that changes what it sees, not the host. Alarms and periodic interrupts are not there.
    """

    name = "CMOS RTC"
    REGISTERS = (Register(0, "index"), Register(1, "data"))

    def __init__(self, memory: int, *, cpus: int = 1, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.cells = bytearray(CMOS_SIZE)
        self._clock = clock
        self._offset = 0
        self.cells[STATUS_A] = A_RATES
        self.cells[STATUS_B] = B_24_HOURS
        self.cells[STATUS_D] = D_VALID
        for at, count, value in _sizes(memory):
            self.cells[at : at + count] = value.to_bytes(count, "little")
        self.cells[0x5F] = cpus - 1

    def read_index(self) -> int:
        """The index register is write-only and reads as all ones."""
        return 0xFF

    def read_data(self) -> int:
        """Return the cell that the index chose; bit 7 of the index masks NMIs and is no part of it."""
        at = self.registers["index"] % CMOS_SIZE
        if at in TIME_REGISTERS and not self.cells[STATUS_B] & B_SET:
            return self._encode(self._fields())[at]
        if at == STATUS_A:
            return self.cells[at] | (A_UPDATING if self._is_updating() else 0)
        return self.cells[at]

    def write_data(self, value: int) -> None:
        """Store a cell. Time registers take effect at once, or together when status B's SET bit is cleared."""
        at = self.registers["index"] % CMOS_SIZE
        if at in (STATUS_C, STATUS_D):
            return
        was_set = self.cells[STATUS_B] & B_SET
        if not was_set and (at in TIME_REGISTERS or (at == STATUS_B and value & B_SET)):
            for register, content in self._encode(self._fields()).items():
                self.cells[register] = content
        self.cells[at] = value & ~A_UPDATING if at == STATUS_A else value
        if (at in TIME_REGISTERS and not was_set) or (was_set and not self.cells[STATUS_B] & B_SET):
            self._set_clock()

    def _fields(self) -> time.struct_time:
        return time.gmtime(self._clock() + self._offset)

    def _is_updating(self) -> bool:
        return not self.cells[STATUS_B] & B_SET and self._clock() % 1 >= 1 - UPDATE_SECONDS

    def _encode(self, now: time.struct_time) -> dict[int, int]:
        """Return the time registers in the format status B asks for: BCD or binary, 24 or 12 hours."""
        hours, afternoon = now.tm_hour, 0
        if not self.cells[STATUS_B] & B_24_HOURS:
            hours, afternoon = (hours - 1) % 12 + 1, PM if hours >= 12 else 0
        weekday = (now.tm_wday + 1) % 7 + 1  # Sunday is 1
        values = (
            now.tm_sec,
            now.tm_min,
            hours,
            weekday,
            now.tm_mday,
            now.tm_mon,
            now.tm_year % 100,
            now.tm_year // 100,
        )
        encoded = values if self.cells[STATUS_B] & B_BINARY else [v // 10 << 4 | v % 10 for v in values]
        registers = dict(zip(TIME_REGISTERS, encoded, strict=True))
        registers[HOURS] |= afternoon
        return registers

    def _decode(self, value: int) -> int:
        return value if self.cells[STATUS_B] & B_BINARY else (value >> 4) * 10 + (value & 0xF)

    def _set_clock(self) -> None:
        """Go on from the time in the cells; what is no date leaves the clock as it was."""
        import datetime

        hours = self._decode(self.cells[HOURS] & ~PM)
        if not self.cells[STATUS_B] & B_24_HOURS:
            hours = hours % 12 + (12 if self.cells[HOURS] & PM else 0)
        year, month, day, minutes, seconds = (
            self._decode(self.cells[at]) for at in (YEAR, MONTH, DAY, MINUTES, SECONDS)
        )
        year += 100 * self._decode(self.cells[CENTURY])
        try:
            wanted = datetime.datetime(year, month, day, hours, minutes, seconds, tzinfo=datetime.UTC)
        except ValueError:
            return
        self._offset = int(wanted.timestamp()) - int(self._clock())

    def state(self) -> dict[str, object]:
        """Return the cells, the index and the guest's own time as an offset in seconds."""
        return {**super().state(), "cells": self.cells.hex(), "offset": self._offset}

    def restore(self, state: dict[str, object]) -> None:
        """Take them back."""
        try:
            cells = bytes.fromhex(str(state.get("cells")))
        except ValueError:
            cells = b""
        offset = state.get("offset")
        is_time = isinstance(offset, int) and FIRST_SECOND <= self._clock() + offset <= LAST_SECOND
        if len(cells) != CMOS_SIZE or not isinstance(offset, int) or not is_time:
            raise ConfigError(f"state of {self.name}: 'cells' or 'offset' was not saved by this device")
        super().restore(state)
        self.cells = bytearray(cells)
        self._offset = offset


def _sizes(memory: int) -> tuple[tuple[int, int, int], ...]:
    """Return (cell, bytes, value) for everything that tells the size of memory."""
    below_hole = min(memory, 3 * GIB)
    extended = min(max(below_hole - MIB, 0) // KIB, 0xFFFF)
    above_16m = max(below_hole - 16 * MIB, 0) // (64 * KIB)
    above_4g = max(memory - 3 * GIB, 0) // (64 * KIB)
    return (
        (0x15, 2, min(BASE_MEMORY_KIB, memory // KIB)),
        (0x17, 2, extended),
        (0x30, 2, extended),
        (0x34, 2, min(above_16m, 0xFFFF)),
        (0x5B, 3, min(above_4g, 0xFFFFFF)),
    )
