"""Guest-physical memory: regions over memfd mappings, read and written by address.

RAM leaves a hole below 4 GiB for devices, as on a PC: what does not fit under 3 GiB goes on at 4 GiB.
"""

from __future__ import annotations

import errno
import mmap
import os
import warnings
from bisect import bisect_right

from kvmpy.errors import ClosedError, ConfigError, HostError, MemoryAccessError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from kvmpy.cpu.state import SystemRegisters

PAGE_SIZE = 4096
HOLE_START = 0xC000_0000
HOLE_END = 0x1_0000_0000
ADDRESS_LIMIT = 1 << 52


class Region:
    """A run of guest-physical memory at `gpa`, backed by a memfd of its own."""

    def __init__(self, gpa: int, size: int, *, readonly: bool = False, name: str = "ram") -> None:
        if gpa < 0 or size <= 0 or gpa % PAGE_SIZE or size % PAGE_SIZE or gpa + size > ADDRESS_LIMIT:
            raise ConfigError(
                f"memory region {name!r} of {size:#x} bytes at {gpa:#x}: both must be multiples of 4 KiB below 2^52"
            )
        self.gpa = gpa
        self.size = size
        self.readonly = readonly
        self.name = name
        self.fd = -1
        try:
            self.fd = os.memfd_create(f"kvmpy-{name}", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
        except OSError as error:
            self._close_fd()
            too_many = error.errno == errno.EMFILE
            advice = "raise the limit of open files (ulimit -n)" if too_many else "ask for less memory"
            reason = os.strerror(error.errno or 0)
            raise HostError(f"memory region {name!r} of {size:#x} bytes: {reason}; {advice}") from None
        except (ValueError, OverflowError) as error:
            self._close_fd()
            raise ConfigError(f"memory region {name!r} of {size:#x} bytes: {error}; ask for less memory") from None

    @property
    def end(self) -> int:
        """The first address behind the region."""
        return self.gpa + self.size

    def close(self) -> None:
        """Unmap the memory. A view that is still in use keeps the mapping alive until it is dropped."""
        if self.fd < 0:
            return
        self._close_fd()
        try:
            self.map.close()
        except BufferError:
            del self.map

    def _close_fd(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<Region {self.name} {self.gpa:#x}-{self.end - 1:#x}{' read-only' if self.readonly else ''}>"


class GuestMemory:
    """All memory of a guest, addressed by GPA.

    >>> with GuestMemory(1 << 20) as memory:
    ...     memory.write(0x1000, b"hello")
    ...     memory.read(0x1001, 4)
    b'ello'
    """

    def __init__(self, size: int = 0) -> None:
        self.regions: list[Region] = []
        self._starts: list[int] = []
        self._listeners: list[Callable[[int, int], None]] = []
        self._closed = False
        low = min(size, HOLE_START)
        try:
            if size:
                self.add(0, low)
            if size > low:
                self.add(HOLE_END, size - low, name="ram-high")
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of memory in all regions."""
        return sum(region.size for region in self.regions)

    def add(self, gpa: int, size: int, *, readonly: bool = False, name: str = "ram") -> Region:
        """Add a region; ConfigError when it is not page-aligned or overlaps another."""
        self._check_open(f"adding {size:#x} bytes at {gpa:#x}")
        for other in self.regions:
            if gpa < other.end and other.gpa < gpa + size:
                raise ConfigError(f"memory region {name!r} at {gpa:#x} overlaps {other!r}")
        region = Region(gpa, size, readonly=readonly, name=name)
        at = bisect_right(self._starts, gpa)
        self.regions.insert(at, region)
        self._starts.insert(at, gpa)
        return region

    def region_at(self, gpa: int, size: int = 1) -> Region:
        """Return the region that holds the whole range; MemoryAccessError when there is none."""
        if self._closed:
            self._check_open(f"access to {gpa:#x}+{size:#x}")
        i = bisect_right(self._starts, gpa) - 1
        if i < 0 or size < 0 or gpa + size > self.regions[i].end:
            raise MemoryAccessError(f"guest-physical range {gpa:#x}+{size:#x}: no memory there")
        return self.regions[i]

    def on_write(self, listener: Callable[[int, int], None]) -> None:
        """Call `listener(gpa, size)` whenever the host writes by `write()` and its kin, or says `changed()`.

        Size 0 means that anything may have changed.
        """
        self._listeners.append(listener)

    def off_write(self, listener: Callable[[int, int], None]) -> None:
        """Call it no longer."""
        self._listeners.remove(listener)

    def changed(self, gpa: int = 0, size: int = 0) -> None:
        """Say that these bytes were written through a view, or, of size 0, that any may have been.

        Who executes the guest may have to look at them again.
        """
        for listener in self._listeners:
            listener(gpa, size)

    def view(self, gpa: int, size: int) -> memoryview:
        """Return a writable view of the range; drop it before the memory is closed. After writing call `changed()`."""
        region = self.region_at(gpa, size)
        return memoryview(region.map)[gpa - region.gpa : gpa - region.gpa + size]

    def read(self, gpa: int, size: int) -> bytes:
        """Return a copy of `size` bytes."""
        region = self.region_at(gpa, size)
        return region.map[gpa - region.gpa : gpa - region.gpa + size]

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes, in read-only regions too: it is the guest that may not write there."""
        region = self.region_at(gpa, len(data))
        region.map[gpa - region.gpa : gpa - region.gpa + len(data)] = data
        if self._listeners:
            self.changed(gpa, len(data))

    def read_int(self, gpa: int, size: int) -> int:
        """Return the little-endian integer of `size` bytes."""
        return int.from_bytes(self.read(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        """Store a little-endian integer of `size` bytes; bits beyond are cut off."""
        self.write(gpa, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def read_virtual(self, sregs: SystemRegisters, gva: int, size: int) -> bytes:
        """Return bytes at a linear address as the guest's page tables map it, page by page.

        MemoryAccessError names the level at which the walk failed. Permissions do not matter: the host looks.
        """
        return b"".join(self.read(gpa, count) for gpa, count in self._translate(sregs, gva, size))

    def write_virtual(self, sregs: SystemRegisters, gva: int, data: bytes) -> None:
        """Store bytes at a linear address; see `read_virtual()`."""
        for gpa, count in list(self._translate(sregs, gva, len(data))):
            self.write(gpa, data[:count])
            data = data[count:]

    def _translate(self, sregs: SystemRegisters, gva: int, size: int) -> list[tuple[int, int]]:
        from kvmpy.cpu.paging import walk

        pieces = []
        while size > 0:
            found = walk(self.read, sregs, gva)
            if found.gpa is None:
                raise MemoryAccessError(f"guest-virtual address {gva:#x}: {found.reason}")
            count = min(size, PAGE_SIZE - gva % PAGE_SIZE)
            pieces.append((found.gpa, count))
            gva += count
            size -= count
        return pieces

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what}: the guest's memory is closed; make a new machine")

    def close(self) -> None:
        """Release all regions."""
        self._closed = True
        for region in self.regions:
            region.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
