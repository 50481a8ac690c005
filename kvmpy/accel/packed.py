"""An exit packed into one integer, as every accelerator's `enter()` returns it.

    bits  0-7   the reason, in KVM's numbering
    bits  8-11  width of a port or MMIO access in bytes
    bit  12     the guest writes
    bit  13     a string instruction: several items lie in the data area
    bit  14     coalesced writes wait and came before this exit
    bits 16-31  the port
    bits 32-63  the value written to a port, or errno

The low half describes a port access completely, so that the run loop finds its handler with one dictionary look-up.
"""

from __future__ import annotations

from kvmpy.record import record

UNKNOWN = 0
EXCEPTION = 1
IO = 2
HYPERCALL = 3
DEBUG = 4
HLT = 5
MMIO = 6
IRQ_WINDOW_OPEN = 7
SHUTDOWN = 8
FAIL_ENTRY = 9
INTERRUPTED = 10
SET_TPR = 11
INTERNAL_ERROR = 17
SYSTEM_EVENT = 24
RDMSR = 29
WRMSR = 30
DIRTY_RING_FULL = 31
ATTENTION = 0xFE  # not entered: the vCPU has something to do first that `Vcpu.enter()` does
ERROR = 0xFF

REASON_MASK = 0xFF
EMULATION_FAILURE = 1  # suberror of INTERNAL_ERROR: KVM_INTERNAL_ERROR_EMULATION
SIZE_SHIFT = 8
OUT = 1 << 12
MANY = 1 << 13
WRITES_PENDING = 1 << 14
PORT_SHIFT = 16
KEY_MASK = 0xFFFF_FFFF
VALUE_SHIFT = 32


@record
class PastExit:
    """An exit that was: packed in `code`; `gpa` is the address of an MMIO access (0 for others).

    `value` is what was written there, or what a read was answered, of port or MMIO; as wide as the access. What was
    written to a port is in `code`.
    """

    code: int
    gpa: int = 0
    value: int = 0


def past_exit(code: int, gpa: int, value: int) -> PastExit:
    """Return an exit as it was kept: only of an MMIO access is `gpa` its own, only of it and of a port read `value`."""
    if code & REASON_MASK == MMIO:
        return PastExit(code, gpa, value)
    is_read = code & REASON_MASK == IO and not code & (OUT | MANY)
    return PastExit(code, 0, value if is_read else 0)


def io_key(port: int, size: int, *, write: bool) -> int:
    """Return the low half of the packed exit for one port access of `size` bytes."""
    return IO | size << SIZE_SHIFT | (OUT if write else 0) | port << PORT_SHIFT


def size_of(code: int) -> int:
    """Return the width of the access in bytes."""
    return code >> SIZE_SHIFT & 0xF


def port_of(code: int) -> int:
    """Return the port."""
    return code >> PORT_SHIFT & 0xFFFF
