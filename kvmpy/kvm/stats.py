"""StatsFd: the binary statistics of a VM or a vCPU (Documentation/virt/kvm/api.rst, 4.134)."""

from __future__ import annotations

import os

from kvmpy.kvm.binding import CData, Fd, constant, ffi
from kvmpy.record import record

TYPES = ("CUMULATIVE", "INSTANT", "PEAK", "LINEAR_HIST", "LOG_HIST")
UNITS = ("NONE", "BYTES", "SECONDS", "CYCLES", "BOOLEAN")


@record
class Statistic:
    """One statistic. `values` has one item, or one per bucket of a histogram.

    The quantity is value x base ** exponent in `unit`; `bucket_size` is the width of a linear histogram's buckets.
    """

    name: str
    kind: str
    unit: str
    base: int
    exponent: int
    bucket_size: int
    values: list[int]


class StatsFd(Fd):
    """An open statistics file; `read()` may be called as often as wanted."""

    def read(self) -> dict[str, Statistic]:
        """Return all statistics by name, as they are now."""
        header = self._at("struct kvm_stats_header *", 0, ffi.sizeof("struct kvm_stats_header"))
        stride = ffi.sizeof("struct kvm_stats_desc") + header.name_size
        found = (self._statistic(header, header.desc_offset + i * stride) for i in range(header.num_desc))
        return {statistic.name: statistic for statistic in found}

    def _at(self, kind: str, offset: int, size: int) -> CData:
        data = os.pread(self.open_fd("reading statistics"), size, offset)
        return ffi.from_buffer(kind, data)

    def _statistic(self, header: CData, offset: int) -> Statistic:
        fixed = ffi.sizeof("struct kvm_stats_desc")
        description = self._at("struct kvm_stats_desc *", offset, fixed)
        name = os.pread(self._fd, header.name_size, offset + fixed).split(b"\0", 1)[0].decode()
        values = self._at("uint64_t[]", header.data_offset + description.offset, description.size * 8)
        flags = description.flags
        return Statistic(
            name,
            _named(TYPES, "TYPE", flags),
            _named(UNITS, "UNIT", flags),
            10 if flags & constant("KVM_STATS_BASE_MASK") == constant("KVM_STATS_BASE_POW10") else 2,
            description.exponent,
            description.bucket_size,
            list(values),
        )


def _named(names: tuple[str, ...], field: str, flags: int) -> str:
    value = flags & constant(f"KVM_STATS_{field}_MASK")
    return next((n.lower() for n in names if constant(f"KVM_STATS_{field}_{n}") == value), f"unknown {value:#x}")
