"""From KVM's run page to typed exits, and from their answers back into it."""

from __future__ import annotations

from kvmpy.accel import exits, packed
from kvmpy.accel.answers import bytes_answer, whole_answer
from kvmpy.cpu.bits import MASK64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.kvm.vcpu import VcpuFd

    Typed = tuple[exits.Exit, Callable[[], None] | None]

BYTES_VALID = 1  # KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES


def typed_exit(fd: VcpuFd, code: int) -> Typed:
    """Return the exit behind a packed one, and a function that hands its answer to KVM."""
    reason = code & packed.REASON_MASK
    make = MAKERS.get(reason)
    return make(fd, code) if make else (exits.UnknownExit(reason), None)


def _io(fd: VcpuFd, code: int) -> Typed:
    size, port = packed.size_of(code), packed.port_of(code)
    data, count = bytes(fd.io_data()), fd.run.io.count
    if code & packed.OUT:
        return exits.IoOut(port, size, data, count), None
    exit = exits.IoIn(port, size, count, b"\xff" * len(data))

    def answer() -> None:
        fd.io_data()[:] = bytes_answer(exit, exit.data)[: len(data)].ljust(len(data), b"\xff")

    return exit, answer


def _mmio(fd: VcpuFd, code: int) -> Typed:
    access = fd.run.mmio
    if access.is_write:
        value = int.from_bytes(bytes(access.data)[: access.len], "little")
        return exits.MmioWrite(access.phys_addr, access.len, value), None
    mask = (1 << 8 * access.len) - 1
    exit = exits.MmioRead(access.phys_addr, access.len, mask)
    return exit, lambda: fd.answer(whole_answer(exit, exit.value) & mask)


def _debug(fd: VcpuFd, _code: int) -> Typed:
    arch = fd.run.debug.arch
    return exits.Debug(arch.exception, arch.pc, arch.dr6, arch.dr7), None


def _hypercall(fd: VcpuFd, _code: int) -> Typed:
    call = fd.run.hypercall
    exit = exits.Hypercall(call.nr, list(call.args))

    def answer() -> None:
        call.ret = whole_answer(exit, exit.result) & MASK64

    return exit, answer


def _msr(fd: VcpuFd, code: int) -> Typed:
    access = fd.run.msr
    if code & packed.REASON_MASK == packed.WRMSR:
        write = exits.Wrmsr(access.index, access.data)

        def refuse() -> None:
            access.error = int(write.fault)

        return write, refuse
    read = exits.Rdmsr(access.index)

    def answer() -> None:
        access.data = whole_answer(read, read.value) & MASK64
        access.error = int(read.fault)

    return read, answer


def _internal_error(fd: VcpuFd, _code: int) -> Typed:
    error = fd.run.internal
    data = list(error.data)[: min(error.ndata, len(error.data))]
    instruction = b""
    if error.suberror == packed.EMULATION_FAILURE and error.ndata and fd.run.emulation_failure.flags & BYTES_VALID:
        failure = fd.run.emulation_failure
        instruction = bytes(failure.insn_bytes)[: failure.insn_size]
    return exits.InternalError(error.suberror, data, instruction), None


def _system_event(fd: VcpuFd, _code: int) -> Typed:
    event = fd.run.system_event
    return exits.SystemEvent(event.type, list(event.data)[: min(event.ndata, len(event.data))]), None


MAKERS: dict[int, Callable[[VcpuFd, int], Typed]] = {
    packed.IO: _io,
    packed.MMIO: _mmio,
    packed.DEBUG: _debug,
    packed.HYPERCALL: _hypercall,
    packed.RDMSR: _msr,
    packed.WRMSR: _msr,
    packed.INTERNAL_ERROR: _internal_error,
    packed.SYSTEM_EVENT: _system_event,
    packed.HLT: lambda _fd, _code: (exits.Hlt(), None),
    packed.SHUTDOWN: lambda _fd, _code: (exits.Shutdown(), None),
    packed.FAIL_ENTRY: lambda fd, _code: (exits.FailEntry(fd.run.fail_entry.hardware_entry_failure_reason), None),
    packed.INTERRUPTED: lambda _fd, _code: (exits.Interrupted(), None),
    packed.IRQ_WINDOW_OPEN: lambda _fd, _code: (exits.IrqWindowOpen(), None),
    packed.SET_TPR: lambda _fd, _code: (exits.SetTpr(), None),
    packed.DIRTY_RING_FULL: lambda _fd, _code: (exits.DirtyRingFull(), None),
}
