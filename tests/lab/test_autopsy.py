"""What a guest died of: the first exception, found out although the triple fault has taken it away."""

from __future__ import annotations

import pytest
from conftest import Guests

from kvmpy import post_mortem
from kvmpy.accel import packed
from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import Shutdown
from kvmpy.accel.kvm_vcpu import KvmVcpu
from kvmpy.accel.soft import SoftAccelerator
from kvmpy.accel.testbed import CODE, DATA, PT, Testbed
from kvmpy.asm import assemble
from kvmpy.boot.flat import plan_code
from kvmpy.cpu.state import DescriptorTable
from kvmpy.errors import NoAcceleratorError
from kvmpy.lab import postmortem
from kvmpy.lab.autopsy import Raised, exception_of
from kvmpy.machine.machine import Machine
from kvmpy.machine.stop import Stop, StopKind
from kvmpy.memory import GuestMemory

DE, UD, GP, PF = 0, 6, 13, 14
AWAY = 0x7F_0000_0000
ENDS = [
    # Vector, error code and address as the manual has them (Intel SDM vol. 3, 6.15).
    (16, 0, "ud2", Raised(UD)),
    (32, 0, "ud2", Raised(UD)),
    (64, 0, "ud2", Raised(UD)),
    (64, 0, "xor ecx, ecx\ndiv ecx", Raised(DE)),
    (32, 0, "mov ax, 0x200\nmov es, ax", Raised(GP, 0x200)),
    (64, 0, "mov rbx, 0x800000000000\nmov rax, [rbx]", Raised(GP, 0)),
    (64, 0, f"mov rbx, {AWAY}\nmov rax, [rbx]", Raised(PF, 0, AWAY)),
    (64, 0, f"mov rbx, {AWAY}\nmov [rbx], rax", Raised(PF, 2, AWAY)),
    (64, 0, f"mov rbx, {AWAY}\njmp rbx", Raised(PF, 0x10, AWAY)),
    (64, 3, "hlt", Raised(GP, 0)),
    (32, 3, "cli", Raised(GP, 0)),
    (64, 3, f"mov rbx, {AWAY}\nmov [rbx], rax", Raised(PF, 6, AWAY)),
]


def crash(bed: Testbed) -> None:
    """Take the interrupt table away, and run into the fault."""
    sregs = bed.vcpu.sregs
    sregs.idt = DescriptorTable(0x10_0000, 0)
    bed.vcpu.sregs = sregs
    assert isinstance(bed.go(), Shutdown)


@pytest.mark.parametrize(("bits", "ring", "source", "raised"), ENDS)
def test_the_first_exception_is_found(guests: Guests, bits: int, ring: int, source: str, raised: Raised) -> None:
    if bits == 16 and not guests.accelerator.features.ivt_limit:
        pytest.skip("this host's real mode has no limit of the vector table, and so no triple fault")
    bed = guests.load(bits, source, ring=ring)
    crash(bed)
    before = bed.memory.read(0, bed.memory.size)
    assert exception_of(bed.memory, bed.vcpu.regs, bed.vcpu.sregs) == raised
    assert bed.memory.read(0, bed.memory.size) == before  # not even accessed bits


def test_an_instruction_that_does_no_harm(guests: Guests) -> None:
    """The memory it would write stays as it is."""
    bed = guests.load(64, f"mov rbx, {DATA}\nmov byte ptr [rbx], 1\nhlt")
    bed.vcpu.step()
    assert exception_of(bed.memory, bed.vcpu.regs, bed.vcpu.sregs) is None
    assert bed.memory.read(DATA, 1) == b"\0"


def test_a_software_interrupt_that_cannot_be_delivered_raises_gp_with_its_vector() -> None:
    """SDM vol. 3, 6.13: index, and the flag for the interrupt table."""
    with SoftAccelerator() as soft, Testbed(soft, 64) as bed:
        bed.load(assemble("int 0x42", bits=64).code)
        crash(bed)
        assert exception_of(bed.memory, bed.vcpu.regs, bed.vcpu.sregs) == Raised(GP, 0x42 << 3 | 2)


def test_a_page_that_faults_in_a_table_with_reserved_bits(guests: Guests) -> None:
    bed = guests.load(64, "mov rbx, 0x1f0000\nmov rax, [rbx]")
    bed.memory.write_int(PT + 0x1F0 * 8, 8, 0x1F_0000 | 1 | 1 << 51)
    leaf = bed.vcpu.cpuid.find(0x8000_0008)
    if leaf and leaf.eax & 0xFF > 51:
        pytest.skip("this processor has 52 physical address bits: bit 51 is not reserved")
    crash(bed)
    assert exception_of(bed.memory, bed.vcpu.regs, bed.vcpu.sregs) == Raised(PF, 0x9, 0x1F_0000)


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (Raised(UD), "#UD, invalid opcode"),
        (Raised(GP, 0x200), "#GP, general protection, error code 0x200"),
        (Raised(PF, 2, 0x1000), "#PF, page fault, error code 0x2, address 0x1000"),
        (Raised(30), "exception 30"),
    ],
)
def test_in_words(raised: Raised, text: str) -> None:
    assert str(raised) == text


# The report as a whole

LOAD = 0x10_0000


def report(accelerator: Accelerator, source: str, *, mode: str = "long") -> dict[str, list[str]]:
    """Run a machine into a crash, and return the report by its sections."""
    code = assemble(source, bits={"real": 16, "protected": 32, "long": 64}[mode], origin=LOAD).code
    with Machine(accelerator, memory=4 << 20, irqchip="none") as machine:
        machine.load(plan_code(code, mode=mode, load=LOAD, memory=4 << 20))
        stop = machine.run(timeout=10)
        assert stop.crashed
        return sections(post_mortem(stop, machine))


def sections(lines: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"": []}
    for line in lines:
        if line.startswith("  "):
            found[list(found)[-1]].append(line[2:])
        elif line.endswith(":"):
            found[line[:-1]] = []
        else:
            found[""].append(line)
    return found


def test_the_report_names_the_exception_and_its_entry_of_the_table(accelerator: Accelerator) -> None:
    found = report(accelerator, "mov rax, 1\nud2")
    assert found["exception"] == ["#UD, invalid opcode"]
    assert found["interrupt table"][0] == "  6 #UD: beyond the table's limit 0x0"
    assert [line[:7] for line in found["interrupt table"]] == ["  6 #UD", " 13 #GP", " 14 #PF", "  8 #DF"]


def test_a_page_fault_is_shown_once(accelerator: Accelerator) -> None:
    found = report(accelerator, f"mov rbx, {AWAY}\nmov rax, [rbx]")
    assert found["exception"] == [f"#PF, page fault, error code 0x0, address {AWAY:#x}"]
    assert [line[:7] for line in found["interrupt table"]] == [" 14 #PF", " 13 #GP", "  8 #DF"]
    assert f"{AWAY:#x}, 4-level paging" in found["page walk of CR2"]


def test_the_last_exits_have_addresses_and_answers(accelerator: Accelerator) -> None:
    """What no device claims reads as all ones; register 0xd of the clock says that its time is good."""
    source = """
        mov ebx, 0xd0000000
        mov byte ptr [ebx + 4], 0x2a
        mov ax, [ebx + 8]
        mov al, 0xd
        out 0x70, al
        in al, 0x71
        mov edx, 0x5678
        in eax, dx
        ud2
    """
    assert report(accelerator, source, mode="protected")["last exits"] == [
        "mmio write of 1 bytes at 0xd0000004: 0x2a",
        "mmio read of 2 bytes at 0xd0000008: 0xffff",
        "out 1 bytes to port 0x70: 0xd",
        "in 1 bytes from port 0x71: 0x80",
        "in 4 bytes from port 0x5678: 0xffffffff",
        "shutdown",
    ]


def test_without_the_software_cpu_the_exception_is_not_known(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_arguments: object) -> Raised | None:
        raise NoAcceleratorError("the software CPU needs Unicorn")

    monkeypatch.setattr(postmortem, "exception_of", missing)
    assert report(accelerator, "ud2")["exception"] == ["not known: the software CPU needs Unicorn"]


def test_a_refused_entry_names_the_broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nothing refuses a state, so the refusal is put into the run page; all behind it is real."""
    with SoftAccelerator() as soft, Machine(soft, memory=1 << 20, irqchip="none") as machine:
        machine.load(plan_code(b"\xf4", mode="protected", load=0x8000, memory=1 << 20))
        sregs = machine.vcpus[0].sregs
        sregs.tr.type = 9
        monkeypatch.setattr(type(machine.vcpus[0]), "sregs", property(lambda _vcpu: sregs))
        from kvmpy.accel.exits import FailEntry

        stop = Stop(StopKind.FAIL_ENTRY, "the processor refused the guest's state", exit=FailEntry(0x8000_0021))
        assert stop.crashed
        found = sections(post_mortem(stop, machine))
    assert found["refused by the processor"] == [
        "reason 0x80000021: invalid guest state",
        "TR: type 0x9 is none that it may have",
    ]
    assert "exception" not in found


def test_a_machine_stops_at_a_refused_entry(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    with Machine(accelerator, memory=1 << 20, irqchip="none") as machine:
        vcpu = machine.vcpus[0]
        if not isinstance(vcpu, KvmVcpu):
            pytest.skip("the software CPU refuses nothing")
        machine.load(plan_code(b"\xf4", mode="protected", load=0x8000, memory=1 << 20))
        monkeypatch.setattr(vcpu, "exits", lambda _limit: iter([packed.FAIL_ENTRY]))
        vcpu.fd.run.fail_entry.hardware_entry_failure_reason = 0x8000_0021
        stop = machine.run(timeout=10)
        found = sections(post_mortem(stop, machine))
    assert (stop.kind, stop.crashed) == (StopKind.FAIL_ENTRY, True)
    assert found["refused by the processor"] == [
        "reason 0x80000021: invalid guest state",
        "none of the rules for registers is broken: look at MSRs and pending events",
    ]


def test_a_guest_without_memory_can_be_looked_at_too() -> None:
    with SoftAccelerator() as soft, GuestMemory() as memory, soft.create_vm() as vm:
        vcpu = vm.create_vcpu()
        regs = vcpu.regs
        regs.rip = CODE
        found = exception_of(memory, regs, vcpu.sregs)
    assert found is None or found.vector in (UD, GP, PF)
