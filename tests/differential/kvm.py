"""KVM as the right one beside devices.

Where a host has no VT-x it executes ring 0 by an emulator, which cannot do everything: it is not asked that anywhere.
"""

from __future__ import annotations

from dataclasses import replace

from differential.devices import TRIPLE_FAULT, DeviceGuest
from differential.program import TIMEOUT, Outcome, Program

from kvmpy.accel.base import Accelerator

# What the emulator (arch/x86/kvm/emulate.c) has wrong, or has not and answers with InternalError.
NOT_ASKED = (
    ("(66 |f[23] )?0f .*|x87 .*|lzcnt|popcnt|adcx|adox|crc32|lss|lds|pusha|popa|movbe|enter|popf|push sreg", ""),
    ("aad|aam|ptest|ps[rl]ldq", ""),
    ("ins", "repeated"),  # it asks of the port at once, and writes in pieces of its own
    ("store sreg", "rex"),  # it stores 8 bytes
)
LIMIT_FAULTS = (12, 13)


class Kvm:
    """Executes programs beside devices on KVM; `close()` it."""

    def __init__(self, accelerator: Accelerator, bits: int) -> None:
        self._accelerator, self._bits = accelerator, bits
        self._guest = DeviceGuest(accelerator, bits)

    def close(self) -> None:
        """Release the guest."""
        self._guest.close()

    def run(self, program: Program) -> Outcome:
        """Execute a program; TIMEOUT is the vector of what KVM cannot."""
        if any(made.is_one_of(NOT_ASKED) for made in program.instructions):
            return Outcome(TIMEOUT, 0, 0, (), 0, 0, b"", b"", b"")
        outcome = self._guest.run(program)
        if outcome.vector == TIMEOUT:  # an emulator that gave up is in no state to go on
            self.close()
            self._guest = DeviceGuest(self._accelerator, self._bits)
        # It writes no frame to a device; and of the limits of segments the software CPU knows nothing.
        is_other = outcome.vector == TRIPLE_FAULT or (self._bits == 16 and outcome.vector in LIMIT_FAULTS)
        is_other |= outcome.vector >= 0 and not outcome.rip  # its frame is nowhere, flags that nobody defines in it
        return replace(outcome, vector=TIMEOUT) if is_other else outcome
