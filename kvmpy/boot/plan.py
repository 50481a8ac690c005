"""BootPlan: what goes where in memory, and the state the first vCPU starts in."""

from __future__ import annotations

from kvmpy.cpu.state import CpuState
from kvmpy.record import field, record


@record
class BootPlan:
    """A guest ready to be loaded: `blobs` are (GPA, bytes); `symbols` name addresses for listings and post-mortems.

    `state` is the first vCPU's, `irqchip` the interrupt chips that the guest expects (see Machine).
    """

    name: str
    mode: str
    blobs: list[tuple[int, bytes]]
    state: CpuState
    irqchip: str = "auto"
    symbols: dict[str, int] = field(default_factory=dict)
