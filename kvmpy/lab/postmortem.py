"""Why a guest crashed, told from the state it left behind.

What failed first has often been overwritten by what failed after it; so this shows the evidence in the order in which
the processor used it: the instruction, what it raises, the page walk of CR2, the IDT entry, the last exits.
"""

from __future__ import annotations

from kvmpy.accel import packed
from kvmpy.accel.exits import FailEntry
from kvmpy.asm import disassemble
from kvmpy.cpu.bits import CR0_PE, CR0_PG
from kvmpy.cpu.entry_checks import refused_state
from kvmpy.cpu.flags import CR0, CR4, EFER, EXCEPTIONS, RFLAGS, describe_flags
from kvmpy.cpu.modes import cpl, mode_of
from kvmpy.cpu.paging import walk
from kvmpy.cpu.segments import Gate
from kvmpy.cpu.state import GENERAL_REGISTERS, SEGMENT_NAMES
from kvmpy.errors import KvmpyError, MemoryAccessError
from kvmpy.lab.autopsy import PAGE_FAULT, Raised, exception_of
from kvmpy.lab.judgement import judge
from kvmpy.machine.stop import StopKind
from kvmpy.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kvmpy.accel.exits import Exit
    from kvmpy.accel.packed import PastExit
    from kvmpy.cpu.state import Registers, SystemRegisters
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.stop import Stop
    from kvmpy.memory import GuestMemory

INSTRUCTION_BYTES = 15  # the longest an x86 instruction can be (Intel SDM vol. 2, 2.3.11)
DOUBLE_FAULT, GENERAL_PROTECTION = 8, 13
STACK_WORDS = 6
# Intel SDM vol. 3, 26.8 (the basic exit reason with bit 31); AMD APM vol. 2, appendix C (VMEXIT_INVALID).
REFUSALS = {
    0x8000_0021: "invalid guest state",
    0x8000_0022: "an MSR could not be loaded",
    0x8000_0029: "a machine check",
    (1 << 64) - 1: "invalid guest state",
}
EXITS_SHOWN = 8
NOTHING_RAISED = (
    "not known: executed once more, the instruction raises none on the software CPU; perhaps the processor is "
    "stricter, or an interrupt could not be delivered"
)


def post_mortem(stop: Stop, machine: Machine, symbols: Mapping[str, int] | None = None) -> list[str]:
    """Return the report on a crashed vCPU, line by line. `symbols` name addresses of the guest (`BootPlan.symbols`).

    >>> from kvmpy import Machine, SoftAccelerator, plan_code
    >>> with SoftAccelerator() as soft, Machine(soft, memory=4 << 20) as machine:
    ...     machine.load(plan_code(bytes.fromhex("0f0b"), mode="protected", memory=machine.memory.size))
    ...     report = post_mortem(machine.run(timeout=5), machine, {"start": 0x100000})
    >>> report[1:5]
    ['exception:', '  #UD, invalid opcode', 'instruction:', '  0x100000 <start>: 0f 0b  ud2']
    """
    symbols = symbols or {}
    vcpu = machine.vcpus[stop.vcpu]
    lines = [f"kvmpy: {stop.kind} on vCPU {vcpu.id}: {stop.detail}"]
    try:
        regs, sregs = vcpu.regs, vcpu.sregs
    except KvmpyError as error:
        return [*lines, f"  the vCPU's state cannot be read: {error}"]
    raised = _raised(stop, machine.memory, regs, sregs, vcpu.cpuid.address_bits)
    sections = (
        *_causes(stop, regs, sregs, raised),
        ("instruction", instruction_lines(machine.memory, regs, sregs, symbols)),
        ("registers", register_lines(regs)),
        ("control", control_lines(regs, sregs)),
        ("segments", segment_lines(sregs)),
        ("stack", stack_lines(machine.memory, regs, sregs, symbols)),
        ("page walk of CR2", walk_lines(machine.memory, sregs, sregs.cr2)),
        ("interrupt table", idt_lines(machine.memory, sregs, symbols, raised)),
        ("last exits", exit_lines(vcpu.recent())),
    )
    for title, content in sections:
        lines += [f"{title}:", *(f"  {line}" for line in content)]
    return lines


def _raised(
    stop: Stop, memory: GuestMemory, regs: Registers, sregs: SystemRegisters, address_bits: int
) -> Raised | str | None:
    """Return the exception that ended in a triple fault; None for other ends, a text when it cannot be known.

    Where the rules and the software CPU disagree the rules are right: it does not check everything (docs/reference.md).
    """
    if stop.kind != StopKind.TRIPLE_FAULT:
        return None
    try:
        raised = exception_of(memory, regs, sregs)
    except KvmpyError as error:  # without Unicorn, say; the rest of the report is still worth having
        return f"not known: {error}"
    judged = judge(memory, regs, sregs, address_bits)
    if raised and judged and judged.vector == raised.vector:
        return replace(raised, why=judged.why)
    if raised and judged and judged.vector == PAGE_FAULT:
        return raised  # of the next instruction; this one did not come so far
    return judged or raised or NOTHING_RAISED


def _causes(
    stop: Stop, regs: Registers, sregs: SystemRegisters, raised: Raised | str | None
) -> Iterator[tuple[str, list[str]]]:
    if raised is not None:
        yield "exception", [str(raised)]
    if stop.kind == StopKind.FAIL_ENTRY:
        yield "refused by the processor", refusal_lines(stop.exit, regs, sregs)


def refusal_lines(exit: Exit | None, regs: Registers, sregs: SystemRegisters) -> list[str]:
    """Why the processor did not enter the guest: its own reason, and the rules that the state breaks."""
    reason = exit.reason if isinstance(exit, FailEntry) else 0
    broken = refused_state(regs, sregs) or [
        "none of the rules for registers is broken: look at MSRs and pending events"
    ]
    return [f"reason {reason:#x}: {REFUSALS.get(reason, 'see the processor manual')}", *broken]


def instruction_lines(
    memory: GuestMemory, regs: Registers, sregs: SystemRegisters, symbols: Mapping[str, int]
) -> Iterator[str]:
    """Disassemble what CS:RIP points at."""
    bits = mode_of(sregs, regs.rflags).bits
    address = regs.rip if bits == 64 else sregs.cs.base + regs.rip & 0xFFFF_FFFF
    code = read_some(memory, sregs, address, INSTRUCTION_BYTES)
    if not code:
        yield f"{address:#x}: not readable: {_why(memory, sregs, address)}"
        return
    for instruction in disassemble(code, bits=bits, origin=address, symbols=symbols, count=1):
        yield f"{name_of(address, symbols)}: {instruction.raw.hex(' ')}  {instruction.text}"


def register_lines(regs: Registers) -> Iterator[str]:
    """Three general registers a line: that is 75 columns."""
    for i in range(0, len(GENERAL_REGISTERS), 3):
        yield "  ".join(f"{name:>6} {getattr(regs, name):016x}" for name in GENERAL_REGISTERS[i : i + 3])


def control_lines(regs: Registers, sregs: SystemRegisters) -> Iterator[str]:
    """The registers that choose the mode, with their bits by name."""
    yield f"mode {mode_of(sregs, regs.rflags)}, CPL {cpl(sregs)}"
    yield f"rflags {describe_flags(RFLAGS, regs.rflags)}"
    yield f"cr0 {sregs.cr0:#x} {describe_flags(CR0, sregs.cr0)}"
    yield f"cr4 {sregs.cr4:#x} {describe_flags(CR4, sregs.cr4)}"
    yield f"efer {sregs.efer:#x} {describe_flags(EFER, sregs.efer)}"
    yield f"cr2 {sregs.cr2:#x}  cr3 {sregs.cr3:#x}  cr8 {sregs.cr8:#x}"


def segment_lines(sregs: SystemRegisters) -> Iterator[str]:
    """Selectors with their hidden parts, and the descriptor tables."""
    for name in SEGMENT_NAMES:
        s = getattr(sregs, name)
        state = "unusable" if s.unusable else f"type {s.type:#x} dpl {s.dpl} l {s.l} db {s.db} g {s.g}"
        yield f"{name:>4} {s.selector:04x} base {s.base:016x} limit {s.limit:08x} {state}"
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        yield f"{name:>4}      base {table.base:016x} limit {table.limit:08x}"


def stack_lines(
    memory: GuestMemory, regs: Registers, sregs: SystemRegisters, symbols: Mapping[str, int]
) -> Iterator[str]:
    """The words on top of the stack."""
    width = mode_of(sregs, regs.rflags).bits // 8
    top = regs.rsp if width == 8 else sregs.ss.base + regs.rsp & 0xFFFF_FFFF
    data = read_some(memory, sregs, top, STACK_WORDS * width)
    if len(data) < width:
        yield f"{top:#x}: not readable: {_why(memory, sregs, top)}"
    for i in range(0, len(data) - width + 1, width):
        value = int.from_bytes(data[i : i + width], "little")
        yield f"{top + i:#x}: {value:0{2 * width}x}  {name_of(value, symbols) if symbols else ''}".rstrip()


def walk_lines(memory: GuestMemory, sregs: SystemRegisters, address: int) -> Iterable[str]:
    """The page walk of an address, level by level."""
    if not sregs.cr0 & CR0_PG:
        return ["paging is off"]
    return walk(memory.read, sregs, address).explain()


def idt_lines(
    memory: GuestMemory, sregs: SystemRegisters, symbols: Mapping[str, int], raised: Raised | str | None = None
) -> Iterator[str]:
    """The entry of the exception that happened, and those of the faults that deliveries end in."""
    happened = [raised.vector] if isinstance(raised, Raised) else []
    for vector in dict.fromkeys((*happened, GENERAL_PROTECTION, PAGE_FAULT, DOUBLE_FAULT)):
        name = EXCEPTIONS[vector].mnemonic if vector in EXCEPTIONS else "---"
        yield f"{vector:3} {name}: {_gate(memory, sregs, vector, symbols)}"


def _gate(memory: GuestMemory, sregs: SystemRegisters, vector: int, symbols: Mapping[str, int]) -> str:
    long = bool(sregs.efer & int(EFER.LMA))
    width = 16 if long else 8 if sregs.cr0 & CR0_PE else 4
    at = vector * width
    if at + width - 1 > sregs.idt.limit:
        return f"beyond the table's limit {sregs.idt.limit:#x}"
    data = read_some(memory, sregs, sregs.idt.base + at, width)
    if len(data) < width:
        return f"not readable: {_why(memory, sregs, sregs.idt.base + at)}"
    if width == 4:
        offset, segment = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:], "little")
        return f"{segment:04x}:{offset:04x} = {name_of((segment << 4) + offset, symbols)}"
    gate = Gate.decode(data)
    if not gate.present:
        return "not present"
    return f"{gate.selector:04x}:{name_of(gate.offset, symbols)} type {gate.type:#x} ist {gate.ist}"


def exit_lines(recent: Iterable[PastExit]) -> Iterator[str]:
    """The last exits of the vCPU, oldest first, with what reads were answered. That the host kicked it is none."""
    exits = [exit for exit in recent if exit.code & packed.REASON_MASK != packed.INTERRUPTED]
    for exit in exits[-EXITS_SHOWN:]:
        yield describe_exit(exit)


def describe_exit(exit: PastExit) -> str:
    """Return one exit in words."""
    code = exit.code
    reason, width = code & packed.REASON_MASK, f"{packed.size_of(code)} bytes"
    if reason == packed.IO:
        port = f"port {packed.port_of(code):#x}"
        if code & packed.MANY:
            return f"out {width} to {port} (string)" if code & packed.OUT else f"in {width} from {port} (string)"
        if code & packed.OUT:
            return f"out {width} to {port}: {code >> packed.VALUE_SHIFT:#x}"
        return f"in {width} from {port}: {exit.value:#x}"
    if reason == packed.MMIO:
        way = "write of" if code & packed.OUT else "read of"
        return f"mmio {way} {width} at {exit.gpa:#x}: {exit.value:#x}"
    return REASONS.get(reason, f"exit reason {reason}")


REASONS = {
    packed.HLT: "hlt",
    packed.SHUTDOWN: "shutdown",
    packed.INTERNAL_ERROR: "internal error",
    packed.FAIL_ENTRY: "entry refused",
    packed.DEBUG: "debug",
    packed.ERROR: "KVM_RUN failed",
}


def name_of(address: int, symbols: Mapping[str, int]) -> str:
    """Return the address with the nearest symbol below it."""
    from kvmpy.asm import format_address

    name = format_address(address, symbols)
    return name if name == f"{address:#x}" else f"{address:#x} <{name}>"


def read_some(memory: GuestMemory, sregs: SystemRegisters, address: int, size: int) -> bytes:
    """Read up to `size` bytes at a linear address: as many as are mapped."""
    for count in (size, min(size, 0x1000 - address % 0x1000)):
        try:
            return memory.read_virtual(sregs, address, count)
        except MemoryAccessError:
            continue
    return b""


def _why(memory: GuestMemory, sregs: SystemRegisters, address: int) -> str:
    found = walk(memory.read, sregs, address)
    return found.reason if found.gpa is None else "no memory there"
