"""From the software CPU's exits to typed ones, and from their answers back."""

from __future__ import annotations

from kvmpy.accel import exits, packed
from kvmpy.accel.answers import bytes_answer, whole_answer
from kvmpy.cpu.bits import MASK64
from kvmpy.softcpu.binding import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.softcpu.binding import CData

    Typed = tuple[exits.Exit, Callable[[], None] | None]

RAX = 0
ARGUMENTS = (3, 1, 2, 6)  # RBX, RCX, RDX, RSI (Documentation/virt/kvm/x86/hypercalls.rst)


def typed_exit(soft: CData, code: int) -> Typed:
    """Return the exit behind a packed one, and a function that takes its answer over."""
    reason = code & packed.REASON_MASK
    make = MAKERS.get(reason)
    return make(soft, code) if make else (exits.UnknownExit(reason), None)


def _io(soft: CData, code: int) -> Typed:
    size, port = packed.size_of(code), packed.port_of(code)
    if code & packed.OUT:
        return exits.IoOut(port, size, soft.access.value.to_bytes(8, "little")[:size]), None
    exit = exits.IoIn(port, size, 1, b"\xff" * size)

    def answer() -> None:
        data = bytes_answer(exit, exit.data)[:size].ljust(size, b"\xff")
        lib.soft_answer(soft, int.from_bytes(data, "little"))

    return exit, answer


def _mmio(soft: CData, code: int) -> Typed:
    size = packed.size_of(code)
    if code & packed.OUT:
        return exits.MmioWrite(soft.access.address, size, soft.access.value), None
    mask = (1 << 8 * size) - 1
    exit = exits.MmioRead(soft.access.address, size, mask)
    return exit, lambda: lib.soft_answer(soft, whole_answer(exit, exit.value) & mask)


def _hypercall(soft: CData, _code: int) -> Typed:
    regs = soft.saved.regs
    exit = exits.Hypercall(regs[RAX], [regs[i] for i in ARGUMENTS])

    def answer() -> None:
        soft.hypercall_result = whole_answer(exit, exit.result) & MASK64

    return exit, answer


def _msr(soft: CData, code: int) -> Typed:
    if code & packed.REASON_MASK == packed.WRMSR:
        write = exits.Wrmsr(soft.msr.index, soft.msr.value)

        def refuse() -> None:
            soft.msr.fault = bool(write.fault)

        return write, refuse
    read = exits.Rdmsr(soft.msr.index)

    def answer() -> None:
        soft.msr.value = whole_answer(read, read.value) & MASK64
        soft.msr.fault = bool(read.fault)

    return read, answer


def _internal_error(soft: CData, _code: int) -> Typed:
    return exits.InternalError(packed.EMULATION_FAILURE, [soft.engine_error, soft.failed_at]), None


MAKERS: dict[int, Callable[[CData, int], Typed]] = {
    packed.IO: _io,
    packed.MMIO: _mmio,
    packed.HYPERCALL: _hypercall,
    packed.INTERNAL_ERROR: _internal_error,
    packed.RDMSR: _msr,
    packed.WRMSR: _msr,
    packed.DEBUG: lambda soft, _code: (exits.Debug(1, soft.debug_pc, soft.debug_dr6), None),
    packed.HLT: lambda _soft, _code: (exits.Hlt(), None),
    packed.SHUTDOWN: lambda _soft, _code: (exits.Shutdown(), None),
    packed.INTERRUPTED: lambda _soft, _code: (exits.Interrupted(), None),
    packed.IRQ_WINDOW_OPEN: lambda _soft, _code: (exits.IrqWindowOpen(), None),
    packed.SET_TPR: lambda _soft, _code: (exits.SetTpr(), None),
}
