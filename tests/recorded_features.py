"""What KVM does not do as the manuals say, by the kind of host: the module that backs /dev/kvm.

A test that needs a feature is skipped where the probe says no. This record is what keeps a fault of kvmpy's own from
becoming such a skip: a feature that is not listed here must be there (tests/accel/test_probe.py).
"""

from __future__ import annotations

from pathlib import Path

MISSING: dict[str, frozenset[str]] = {
    # A processor with VT-x or SVM executes the guest itself; so says the manual, and so it stays until one shows
    # otherwise: these two were not measured.
    "kvm_intel": frozenset(),
    "kvm_amd": frozenset(),
    # Software-backed: ring 0 is emulated, 64-bit ring 3 runs natively. Recorded with Linux 6.18.
    "kvm_pvm": frozenset(
        {
            "cmpxchg16b", "cpuid_features", "cpuid_ring3", "guest_watchpoint", "int3", "int_n", "int_n_16_high",
            "int_n_32", "int_n_ring3", "iopl_ring3", "iret_32", "ivt_limit", "paging_32", "popcnt", "serial_faults",
            "sse", "syscall", "ts_ring3", "tsd_ring3", "watchpoint", "x87", "xgetbv",
        }
    ),
}  # fmt: skip


def kind_of_host() -> str | None:
    """Return which module backs /dev/kvm here, None when it is one that has no record."""
    return next((kind for kind in MISSING if Path(f"/sys/module/{kind}").exists()), None)
