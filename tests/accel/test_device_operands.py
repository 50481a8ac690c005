"""Devices under every kind of instruction, on the software CPU: what is asked and told, once each, and in which order.

KVM's emulator lacks most of these; where it has them, tests/differential compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from machines import loaded

from kvmpy import SoftAccelerator, StopKind
from kvmpy.accel.exits import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite
from kvmpy.accel.testbed import CODE, DATA, GDT, PT, STACK, TSS_SELECTOR, Testbed
from kvmpy.asm import assemble
from kvmpy.memory import GuestMemory

DEVICE, ROM, ROM_SIZE = 0x30_0000, 0x20_0000, 0x1000  # memory ends where ROM begins, and ROM where nothing is


@pytest.fixture(scope="module")
def soft() -> Iterator[SoftAccelerator]:
    with SoftAccelerator() as accelerator:
        yield accelerator


def beds(soft: SoftAccelerator, bits: int) -> Testbed:
    memory = GuestMemory(ROM)
    memory.add(ROM, ROM_SIZE, readonly=True, name="rom")
    return Testbed(soft, bits, memory=memory)


def read(at: int, size: int) -> str:
    return f"R{at:x}/{size}"


def write(at: int, size: int, value: int) -> str:
    return f"W{at:x}/{size}={value:x}"


def byte(gpa: int) -> int:
    """What the device holds there, unless a test says otherwise."""
    return gpa * 7 & 0x7F


def word(gpa: int, size: int) -> int:
    return int.from_bytes(bytes(byte(gpa + i) for i in range(size)), "little")


def answer_all(bed: Testbed, answer: Callable[[int, int], int] = word) -> list[str]:
    """Run to what is no access, and return the accesses, and then what it was."""
    seen: list[str] = []
    while len(seen) < 300:
        exit: Exit = bed.go()
        if isinstance(exit, MmioRead):
            exit.value = answer(exit.gpa, exit.size)
            seen.append(read(exit.gpa, exit.size))
        elif isinstance(exit, MmioWrite):
            seen.append(write(exit.gpa, exit.size, exit.value))
        elif isinstance(exit, IoIn):
            exit.data = b"\x5a" * exit.size
            seen.append(f"I{exit.port:x}")
        elif isinstance(exit, IoOut) and exit.port >= 0x100:
            seen.append(f"O{exit.port:x}={exit.data.hex()}")
        else:
            vector = bed.vector(exit)
            return [*seen, type(exit).__name__ if vector is None else f"exception {vector}"]
    return [*seen, "too many"]


@dataclass
class Case:
    """An instruction, what was done before it, its accesses, and what registers hold behind it."""

    code: str
    accesses: list[str]
    before: str = ""
    after: dict[str, int] | None = None
    end: str = "Hlt"


D = DEVICE
CASES_32 = {
    "cmpxchg8b, other": Case(
        "cmpxchg8b [ebx]",
        [read(D, 8), write(D, 8, word(D, 8))],
        after={"rax": word(D, 4), "rdx": word(D + 4, 4)},
    ),
    "fld m64": Case("fld qword ptr [ebx]", [read(D, 8)], "fninit"),
    "fstp m80": Case("fstp tbyte ptr [ebx]", [write(D, 8, 1 << 63), write(D + 8, 2, 0x3FFF)], "fninit\nfld1"),
    "fnstcw": Case("fnstcw [ebx]", [write(D, 2, 0x37F)], "fninit"),
    "repe cmpsb": Case(
        "repe cmpsb",
        [read(D + i, 1) for i in range(4)],
        f"mov esi, ebx\nmov edi, {DATA}\nmov ecx, 5\n"
        + "\n".join(f"mov byte ptr [{DATA + i}], {byte(D + i) if i < 3 else 0xFF}" for i in range(5)),
        {"rcx": 1, "rsi": D + 4},
    ),
    "rep movsb": Case(
        "rep movsb",
        [read(D + i, 1) for i in range(3)],
        f"mov esi, ebx\nmov edi, {DATA}\nmov ecx, 3",
        {"rcx": 0},
    ),
    "std; rep movsd": Case(
        "rep movsd",
        [read(D + 8 - 4 * i, 4) for i in range(3)],
        f"std\nlea esi, [ebx + 8]\nmov edi, {DATA + 8}\nmov ecx, 3",
        {"rsi": D - 4, "rdi": DATA - 4},
    ),
    "movsd, device to device": Case(
        "movsd",
        [read(D, 4), write(D + 0x100, 4, word(D, 4))],
        "mov esi, ebx\nlea edi, [ebx + 0x100]",
    ),
    "movsb, device to ROM": Case("movsb", [read(D, 1), write(ROM, 1, byte(D))], f"mov esi, ebx\nmov edi, {ROM}"),
    "rep outsb": Case(
        "rep outsb",
        [x for i in range(3) for x in (read(D + i, 1), f"O155={byte(D + i):02x}")],
        "mov esi, ebx\nmov edx, 0x155\nmov ecx, 3",
        {"rcx": 0, "rsi": D + 3},
    ),
    "insb": Case("insb", ["I155", write(D, 1, 0x5A)], "mov edi, ebx\nmov edx, 0x155", {"rdi": D + 1}),
    "rep insb": Case(
        "rep insb",
        [x for i in range(3) for x in ("I155", write(D + i, 1, 0x5A))],
        "mov edi, ebx\nmov edx, 0x155\nmov ecx, 3",
        {"rcx": 0, "rdi": D + 3},
    ),
    "rep insb to ROM": Case(
        "rep insb",
        [x for i in range(2) for x in ("I155", write(ROM + i, 1, 0x5A))],
        f"mov edi, {ROM}\nmov edx, 0x155\nmov ecx, 2",
        {"rcx": 0},
    ),
    "pushad to ROM": Case(  # docs/errata.toml: a processor writes the highest first
        "pushad",
        [write(ROM + 0x60 + 4 * i, 4, value) for i, value in enumerate((6, 7, 8, ROM + 0x80, D, 9, 2, 4))],
        f"mov eax, 4\nmov ecx, 2\nmov edx, 9\nmov esp, {ROM + 0x80}\nmov ebp, 8\nmov esi, 7\nmov edi, 6",
    ),
    "a store from RAM into ROM": Case("mov [ebx], eax", [write(ROM, 2, 0x0102)], f"mov ebx, {ROM - 2}"),
    "a store from ROM to nothing": Case(
        "mov [ebx], eax",
        [write(ROM + ROM_SIZE - 1, 1, 4), write(ROM + ROM_SIZE, 3, 0x010203)],
        f"mov ebx, {ROM + ROM_SIZE - 1}",
    ),
    "inc from RAM into ROM": Case(
        "inc word ptr [ebx]",
        [write(ROM, 1, 0x56)],
        f"mov ebx, {ROM - 1}\nmov byte ptr [ebx], 0xff",
    ),
    "inc from ROM to nothing": Case(
        "inc word ptr [ebx]",
        [read(ROM + ROM_SIZE, 1), write(ROM + ROM_SIZE - 1, 1, 0x56), write(ROM + ROM_SIZE, 1, byte(ROM + ROM_SIZE))],
        f"mov ebx, {ROM + ROM_SIZE - 1}",
    ),
    "idiv": Case("idiv byte ptr [ebx + 1]", [read(D + 1, 1)], "mov eax, 15", {"rax": 0x0102}),
    "idiv by 0": Case("idiv byte ptr [ebx]", [read(D, 1)], "mov eax, 15", end="exception 0"),
    "bound": Case("bound eax, [ebx]", [read(D, 4), read(D + 4, 4)], "mov eax, 0x20000000"),
    "jmp": Case("jmp dword ptr [ebx + 0x800]", [read(D + 0x800, 4)]),
    "call, on a stack in a device": Case(
        "call next\nnext:",
        [write(D + 0xFC, 4, CODE + 0x100)],
        f"mov esp, {D + 0x100}",
        {"rsp": D + 0xFC},
    ),
    "adc": Case("adc [ebx], eax", [read(D, 4), write(D, 4, word(D, 4) + 0x01020304 + 1)], "stc"),
    "setc": Case("setc [ebx]", [write(D, 1, 1)], "stc"),
    "setg behind test": Case("setg [ebx]", [write(D, 1, 1)], "test eax, eax"),
    "cmovnc that is not": Case("cmovnc eax, [ebx]", [read(D, 4)], "stc", {"rax": 0x01020304}),
    "xchg": Case("xchg [ebx], eax", [read(D, 4), write(D, 4, 0x01020304)], after={"rax": word(D, 4)}),
}
SELECTORS = {
    "mov ds": Case("mov ds, [ebx]", [read(D, 2)]),
    "pop ds": Case("pop ds", [read(D, 4)], f"mov esp, {D}"),
    "les": Case("les eax, [ebx]", [read(D, 4), read(D + 4, 2)]),
    "lldt": Case("lldt [ebx]", [read(D, 2)]),
    "ltr": Case("ltr [ebx]", [read(D, 2)]),
    "verr": Case("verr [ebx]", [read(D, 2)]),
}
SELECTED = {"lldt": 0, "ltr": TSS_SELECTOR}
CASES_64 = {
    "cmpxchg16b": Case(
        "cmpxchg16b [rbx]", [read(D, 8), read(D + 8, 8), write(D, 8, word(D, 8)), write(D + 8, 8, word(D + 8, 8))],
        after={"rax": word(D, 8), "rdx": word(D + 8, 8)},
    ),
    "movups": Case("movups xmm0, [rbx]\nmovq rax, xmm0", [read(D, 8), read(D + 8, 8)], after={"rax": word(D, 8)}),
    "rax over two pages": Case(
        "mov rax, [rbx + 0xffb]", [read(D + 0xFFB, 5), read(D + 0x1000, 3)], after={"rax": word(D + 0xFFB, 8)},
    ),
    "call": Case("call [rbx + 0x800]", [read(D + 0x800, 8)]),
}  # fmt: skip


def run_case(bed: Testbed, case: Case, answer: Callable[[int, int], int] = word) -> list[str]:
    """Execute it, at CODE + 0xf0 and behind, and HLT; return the accesses and the end."""
    wide = "r" if bed.bits == 64 else "e"
    before = f"mov {wide}bx, {DEVICE}\nmov eax, 0x01020304\n{case.before}\njmp {CODE + 0xF0}\n.org {CODE + 0xF0}"
    padded = f".org {CODE + 0xFB}\n{case.code}" if case.code.startswith("call next") else case.code
    bed.load(assemble(f"{before}\n{padded}\nhlt", bits=bed.bits, origin=CODE).code)
    bed.memory.write(CODE + 0x500, b"\xf4")
    bed.memory.write(ROM, b"\x55" * ROM_SIZE)
    sregs = bed.vcpu.sregs
    sregs.cr4 |= 0x600
    bed.vcpu.sregs = sregs
    return answer_all(bed, answer)


def jumps(gpa: int, size: int) -> int:
    return CODE + 0x500 if gpa == DEVICE + 0x800 else word(gpa, size)


@pytest.mark.parametrize("name", CASES_32)
def test_in_32_bit_code(soft: SoftAccelerator, name: str) -> None:
    case = CASES_32[name]
    with beds(soft, 32) as bed:
        assert run_case(bed, case, jumps) == [*case.accesses, case.end]
        regs = bed.vcpu.regs
        assert {key: getattr(regs, key) for key in case.after or {}} == (case.after or {})
        assert bed.memory.read(ROM, ROM_SIZE) == b"\x55" * ROM_SIZE


@pytest.mark.parametrize("name", CASES_64)
def test_in_64_bit_code(soft: SoftAccelerator, name: str) -> None:
    case = CASES_64[name]
    with Testbed(soft, 64) as bed:
        open_device(bed)
        assert run_64(bed, case) == [*case.accesses, case.end]
        regs = bed.vcpu.regs
        assert {key: getattr(regs, key) for key in case.after or {}} == (case.after or {})


def open_device(bed: Testbed) -> None:
    """Map two pages of the device where they are, by a large page."""
    bed.memory.write_int(0x3008, 8, 0x200000 | 0x83)


def run_64(bed: Testbed, case: Case) -> list[str]:
    bed.load(assemble(f"mov rbx, {DEVICE}\nmov eax, 0x01020304\n{case.before}\n{case.code}\nhlt", origin=CODE).code)
    bed.memory.write(CODE + 0x500, b"\xf4")
    sregs = bed.vcpu.sregs
    sregs.cr4 |= 0x600
    bed.vcpu.sregs = sregs
    return answer_all(bed, jumps)


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_that_a_device_answers(soft: SoftAccelerator, name: str) -> None:
    """Not asked, they would be all ones, and fault."""
    case, selector = SELECTORS[name], SELECTED.get(name, 0x10)
    with beds(soft, 32) as bed:
        gdt = bytearray(bed.memory.read(GDT, 0x48))
        gdt[0x38 + 5] &= ~2  # the TSS is not busy, for LTR
        bed.load(b"")
        bed.memory.write(GDT, bytes(gdt))

        def answer(gpa: int, size: int) -> int:
            return selector if name != "les" or gpa == DEVICE + 4 else 0x1234

        assert run_case(bed, case, answer) == [*case.accesses, "Hlt"]


@pytest.mark.parametrize("code", ["fxsave [rbx]", "fnsave [rbx]", "fxrstor [rbx]", "xsave [rbx]"])
def test_large_images_in_a_device(soft: SoftAccelerator, code: str) -> None:
    """Each byte is told or asked once, whatever the pieces."""
    with Testbed(soft, 64) as bed:
        open_device(bed)

        def answer(gpa: int, size: int) -> int:
            at = gpa - DEVICE
            return int.from_bytes(bytes(512)[:24] + b"\x80\x1f" + bytes(512), "little") >> 8 * at & (1 << 8 * size) - 1

        bed.load(
            assemble(
                f"mov rbx, {DEVICE}\nmov eax, 3\nxor edx, edx\nfninit\n{code}\nmov edx, 0x155\nout dx, al\nhlt"
            ).code
        )
        sregs = bed.vcpu.sregs
        sregs.cr4 |= 0x40600
        bed.vcpu.sregs = sregs
        seen = answer_all(bed, answer)
    assert seen[-2:] == ["O155=03", "Hlt"]
    kinds = {"R": "rstor" in code or code.startswith("xsave"), "W": "rstor" not in code}
    for kind, is_there in kinds.items():  # XSAVE reads what is in its header, and writes it
        pieces = [text[1:].split("=")[0].split("/") for text in seen[:-2] if text[0] == kind]
        touched = [int(at, 16) + i for at, size in pieces for i in range(int(size))]
        assert len(touched) == len(set(touched))
        assert bool(touched) == is_there


def test_two_virtual_pages_of_one_physical_page(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        for n in (0x1F0, 0x1F1):
            bed.memory.write_int(PT + n * 8, 8, DEVICE | 7)
        bed.load(assemble("mov rax, 0x1122334455667788\nmov [0x1f0ffd], rax\nmov rcx, [0x1f0ffd]\nhlt").code)
        assert answer_all(bed) == [
            write(DEVICE + 0xFFD, 3, 0x667788), write(DEVICE, 5, 0x1122334455),
            read(DEVICE + 0xFFD, 3), read(DEVICE, 5), "Hlt",
        ]  # fmt: skip


def test_ins_in_64_bit_code_does_not_look_at_the_base_of_es(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble(f"mov edi, {DATA}\nmov edx, 0x155\ninsb\nhlt").code)
        sregs = bed.vcpu.sregs
        sregs.es.base = 0x7FFF_0000_0000
        bed.vcpu.sregs = sregs
        assert answer_all(bed) == ["I155", "Hlt"]
        assert bed.memory.read(DATA, 1) == b"\x5a"


def test_a_page_that_is_missing_behind_a_device_is_a_fault_before_it_is_asked(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.memory.write_int(PT + 0x1F0 * 8, 8, DEVICE | 7)
        bed.memory.write_int(PT + 0x1F1 * 8, 8, 0)
        for code in ("mov rax, [0x1f0ffd]", "mov [0x1f0ffd], rax", "add [0x1f0ffd], rax"):
            bed.load(assemble(f"{code}\nhlt").code)
            assert answer_all(bed) == ["exception 14"]
            assert bed.vcpu.sregs.cr2 == 0x1F1000


@pytest.mark.parametrize("code", ["rep insb", "rep movsb", "rep stosb"])
def test_a_string_instruction_over_a_device_hears_the_deadline(soft: SoftAccelerator, code: str) -> None:
    source = f"mov edi, 0xd0000000\nmov esi, 0xd0000000\nmov edx, 0x155\nagain: mov ecx, -1\n{code}\njmp again"
    with loaded(soft, source, irqchip="none") as machine:
        assert machine.run(timeout=0.3).kind == StopKind.TIMEOUT


def test_what_a_string_instruction_has_done_stays_done(soft: SoftAccelerator) -> None:
    """It is stopped in the middle, and goes on where it was: no item is read twice, and none is left out."""
    with Testbed(soft, 32) as bed:
        bed.load(assemble(f"mov esi, {DEVICE}\nmov edi, {DATA}\nmov ecx, 100\nrep movsb\nhlt", bits=32).code)
        asked: list[int] = []
        while not isinstance(exit := bed.vcpu.run(), Hlt):
            if isinstance(exit, MmioRead):
                asked.append(exit.gpa - DEVICE)
                exit.value = exit.gpa & 0xFF
                bed.vcpu.kick()
        assert asked == list(range(100))
        assert bed.memory.read(DATA, 100) == bytes(range(100))
        assert bed.vcpu.regs.rsp == STACK
