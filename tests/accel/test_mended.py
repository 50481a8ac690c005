"""Instructions that the software CPU's engine gets wrong, and that are mended: what the manual says of each.

tests/differential tries them with random operands, beside processors.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy import SoftAccelerator
from kvmpy.accel.exits import IoOut
from kvmpy.accel.testbed import CODE, DATA, PT, Testbed
from kvmpy.asm import assemble

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ALL = CF | PF | AF | ZF | SF | OF
INVALID, PROTECTION = 6, 13
LEFT = f"push {ALL:#x}\npopfq\n"  # flags that were there before
STORED = "\npushfq\npop r8\nhlt"


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with SoftAccelerator() as accelerator, Testbed(accelerator, 64) as made:
        state = made.initial_state()
        state.sregs.cr4 |= 0x600  # OSFXSR, OSXMMEXCPT
        made.vcpu.state = state
        yield made


def run(bed: Testbed, source: str) -> None:
    """Execute a source to its end."""
    bed.memory.write(CODE, assemble(source, origin=CODE).code)
    regs = bed.initial_state().regs
    bed.vcpu.regs = regs
    bed.go()


def flags_of(bed: Testbed, source: str) -> int:
    """Execute a source and return the arithmetic flags behind it."""
    run(bed, source + STORED)
    return bed.vcpu.regs.r8 & ALL


def fault(bed: Testbed, code: bytes, **registers: int) -> tuple[int | None, int, int]:
    """Execute an instruction that faults; return its vector, the RIP and the RSP that are told."""
    bed.memory.write(CODE, code + b"\xf4")
    regs = bed.initial_state().regs
    for name, value in registers.items():
        setattr(regs, name, value)
    bed.vcpu.regs = regs
    exit = bed.go()
    vector = exit.port if isinstance(exit, IoOut) else None
    frame = bed.frame(6 if vector == PROTECTION else 5)
    rip, _, _, rsp, _ = frame[-5:]
    return vector, rip - CODE, rsp


@pytest.mark.parametrize("loop", ["loope", "loopne"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("entered", ["", "jmp t\n"])
def test_loop_on_a_condition_changes_no_flag(bed: Testbed, loop: str, count: int, entered: str) -> None:
    """The idiom of boot code: TEST, LOOPZ, JZ (Intel SDM vol. 2, LOOP/LOOPcc)."""
    before = "xor eax, eax\n" + entered + "t: mov ebx, 1\nmov ecx, COUNT\ntest ebx, ebx\nLOOP n\nn: nop"
    assert flags_of(bed, before.replace("COUNT", str(count)).replace("LOOP", loop)) == 0


@pytest.mark.parametrize("instruction", ["repe cmpsb", "repne scasb", "repe cmpsq", "repne scasw"])
@pytest.mark.parametrize("before", ["cmp eax, eax", "mov ecx, 1\nxor ebx, ebx\nsub ecx, 1"])
def test_a_comparison_of_nothing_changes_no_flag(bed: Testbed, instruction: str, before: str) -> None:
    """A compiler's memcmp() of no bytes: CMP of a register with itself, REPE CMPSB, SETcc."""
    assert flags_of(bed, f"xor ecx, ecx\n{before}\n{instruction}") == ZF | PF


@pytest.mark.parametrize("register", ["cmpxchg8b", "cmpxchg16b"])
@pytest.mark.parametrize("equal", [False, True])
def test_a_wide_compare_and_exchange_changes_zf_alone(bed: Testbed, register: str, equal: bool) -> None:
    """Intel SDM vol. 2, CMPXCHG8B/CMPXCHG16B."""
    bed.memory.write(DATA, bytes(16))
    low = 0 if equal else 5
    flags = flags_of(bed, f"mov eax, {low}\nxor edx, edx\nmov ecx, 1\ncmp ecx, 2\n{register} [{DATA}]")
    assert flags == CF | PF | AF | SF | (ZF if equal else 0)  # of 1 - 2


def test_a_compare_and_exchange_of_registers_that_fails_leaves_the_upper_half(bed: Testbed) -> None:
    run(bed, "mov r10, 0x1122334455667788\nmov eax, 1\ncmpxchg r10d, ecx\npushfq\npop r8\nhlt")
    assert bed.vcpu.regs.r10 == 0x11223344_55667788
    assert bed.vcpu.regs.rax == 0x55667788
    difference = (1 - 0x55667788) % (1 << 32)
    parity = 0 if bin(difference & 0xFF).count("1") % 2 else PF
    assert bed.vcpu.regs.r8 & ALL == CF | parity | AF | (SF if difference >> 31 else 0)


def test_a_compare_and_exchange_of_registers_that_succeeds(bed: Testbed) -> None:
    run(bed, "mov r10, 0x1122334400000001\nmov eax, 1\nmov r9, -1\ncmpxchg r10d, r9d\npushfq\npop r8\nhlt")
    assert bed.vcpu.regs.r10 == 0xFFFF_FFFF
    assert bed.vcpu.regs.r8 & ALL == ZF | PF


def test_lahf_and_sahf_with_rex_are_of_ah(bed: Testbed) -> None:
    """There is no SPL in it (Intel SDM vol. 2, LAHF)."""
    run(bed, f"mov rbx, rsp\n{LEFT}.byte 0x48, 0x9f\nmov edx, eax\nmov ah, 0x01\n.byte 0x48, 0x9e{STORED}")
    regs = bed.vcpu.regs
    assert (regs.rdx >> 8 & 0xFF, regs.r8 & ALL) == (CF | 2 | PF | AF | ZF | SF, CF | OF)
    assert regs.rsp == regs.rbx


@pytest.mark.parametrize("code", ["0xdb, 0xf1", "0xdb, 0xe9", "0xdf, 0xf1", "0xdf, 0xe9"])
def test_a_comparison_of_floating_point_numbers_clears_the_other_flags(bed: Testbed, code: str) -> None:
    """FCOMI, FUCOMI, FCOMIP, FUCOMIP of 1.0 with 1.0: ZF, and OF, SF, AF are 0 (Intel SDM vol. 2, FCOMI)."""
    assert flags_of(bed, f"fninit\nfld1\nfld1\n{LEFT}.byte {code}") == ZF


@pytest.mark.parametrize(
    ("code", "register", "wanted"),
    [
        ("66 f3 48 0f b8 c2", "rax", 64),  # POPCNT rax, rdx: REX.W comes before 66 (Intel SDM vol. 2, 2.2.1.2)
        ("f3 0f b8 c2", "rax", 32),
        ("66 f3 0f b8 c2", "rax", 16),
    ],
)
def test_the_size_of_popcnt(bed: Testbed, code: str, register: str, wanted: int) -> None:
    run(bed, f"mov rdx, -1\nxor eax, eax\n.byte {', '.join('0x' + byte for byte in code.split())}\nhlt")
    assert getattr(bed.vcpu.regs, register) == wanted


def test_smsw_of_a_whole_register(bed: Testbed) -> None:
    """32 and 64 bits get CR0, 16 its lower half (Intel SDM vol. 2, SMSW)."""
    run(bed, "mov rax, -1\nmov rbx, -1\nmov rcx, -1\nsmsw eax\nsmsw rbx\nsmsw cx\nhlt")
    cr0 = bed.vcpu.sregs.cr0
    regs = bed.vcpu.regs
    assert (regs.rax, regs.rbx, regs.rcx) == (cr0, cr0, 0xFFFF_FFFF_FFFF_0000 | cr0 & 0xFFFF)


@pytest.mark.parametrize(
    "code",
    [
        "f0 8b 03",  # LOCK MOV eax, [rbx]
        "f0 01 c0",  # LOCK ADD eax, eax
        "f0 39 03",  # LOCK CMP [rbx], eax
        "f0 90",
        "f0 0f a3 03",  # LOCK BT [rbx], eax
        "c5 f8 58 c0",  # VADDPS xmm0, xmm0, xmm0
        "c5 f9 6e c0",  # VMOVD xmm0, eax
        "c4 e2 78 f2 c0",  # ANDN eax, eax, eax
        "66 c5 f8 58 c0",
    ],
)
def test_what_is_no_instruction(bed: Testbed, code: str) -> None:
    """LOCK stands before what reads and writes one operand in memory; there is no AVX (Intel SDM vol. 2, LOCK; 2.3)."""
    stack = bed.initial_state().regs.rsp
    assert fault(bed, bytes.fromhex(code), rbx=DATA) == (INVALID, 0, stack)


def test_what_may_be_locked(bed: Testbed) -> None:
    bed.memory.write(DATA, (5).to_bytes(8, "little"))
    run(bed, f"mov ebx, {DATA}\nlock inc dword [rbx]\nlock add dword [rbx], 2\nmov eax, 1\nlock xadd [rbx], eax\nhlt")
    assert bed.memory.read_int(DATA, 8) == 9
    assert bed.vcpu.regs.rax == 8


NOT_CANONICAL = 1 << 63


@pytest.mark.parametrize(
    ("code", "at"),
    [("c3", DATA), ("c2 10 00", DATA), ("66 c3", DATA), ("ff e3", None), ("ff d3", None), ("ff 21", None)],
)
def test_a_branch_to_an_address_that_is_not_canonical(bed: Testbed, code: str, at: int | None) -> None:
    """#GP(0) at the branch, with the stack pointer of before (Intel SDM vol. 2, RET, JMP, CALL)."""
    bed.memory.write(DATA, NOT_CANONICAL.to_bytes(8, "little"))
    stack = at or bed.initial_state().regs.rsp
    assert fault(bed, bytes.fromhex(code), rsp=stack, rbx=NOT_CANONICAL, rcx=DATA) == (PROTECTION, 0, stack)


def test_so_it_is_stepped_over(bed: Testbed) -> None:
    bed.memory.write(DATA, NOT_CANONICAL.to_bytes(8, "little"))
    bed.memory.write(CODE, b"\xc3")
    regs = bed.initial_state().regs
    regs.rsp = DATA
    bed.vcpu.regs = regs
    bed.vcpu.step()
    _, rip, _, _, rsp, _ = bed.frame(6)
    assert (rip, rsp) == (CODE, DATA)


@pytest.mark.parametrize(
    ("instruction", "faults"),
    [
        ("movaps xmm0, [rbx]", True),
        ("movaps [rbx], xmm0", True),
        ("movdqa xmm0, [rbx]", True),
        ("movntps [rbx], xmm0", True),
        ("addps xmm0, [rbx]", True),
        ("pshufb xmm0, [rbx]", True),
        ("aesenc xmm0, [rbx]", True),
        ("movups xmm0, [rbx]", False),
        ("movdqu [rbx], xmm0", False),
        ("lddqu xmm0, [rbx]", False),
        ("pcmpistri xmm0, [rbx], 0", False),
        ("movlps xmm0, [rbx]", False),
        ("movq xmm0, [rbx]", False),
        ("addsd xmm0, [rbx]", False),
        ("cvtps2pd xmm0, [rbx]", False),
        ("pmovsxbw xmm0, [rbx]", False),
    ],
)
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_operands_of_16_bytes_are_aligned(bed: Testbed, instruction: str, faults: bool, offset: int) -> None:
    """#GP(0) where they are not, but for those that allow it (Intel SDM vol. 1, 10.4.1.1)."""
    code = assemble(instruction).code
    vector, rip, _ = fault(bed, code, rbx=DATA + offset)
    assert (vector, rip if vector else 0) == (PROTECTION if faults and offset else None, 0)


def test_an_operand_size_means_nothing_for_near_branches(bed: Testbed) -> None:
    """In 64-bit code (Intel SDM vol. 2, CALL, RET)."""
    run(bed, "call t\nmov ebx, eax\nhlt\nt: mov eax, 7\n.byte 0x66, 0xc3")
    assert (bed.vcpu.regs.rbx, bed.vcpu.regs.rsp) == (7, bed.initial_state().regs.rsp)


@pytest.mark.parametrize("predicate", [0, 8, 0xF8])
def test_the_predicate_of_a_comparison_has_three_bits(bed: Testbed, predicate: int) -> None:
    """Without AVX, whose table of predicates is longer (Intel SDM vol. 2, CMPPS)."""
    bed.memory.write(DATA, bytes(16))
    for operand in ("xmm1", f"[{DATA}]", "[rbx + rcx * 4 + 0]"):
        code = assemble(f"cmpps xmm0, {operand}, 0").code[:-1]
        compare = ", ".join(map(str, [*code, predicate]))
        zeros = f"mov ebx, {DATA}\nxor ecx, ecx\npxor xmm1, xmm1\npxor xmm0, xmm0"
        run(bed, f"{zeros}\n.byte {compare}\nmovd eax, xmm0\nhlt")
        assert bed.vcpu.regs.rax == 0xFFFF_FFFF


@pytest.mark.parametrize(
    "instruction", ["adc byte [rbx], 1", "sbb [rbx], eax", "neg dword [rbx]", "rcl dword [rbx], 1", "shl word [rbx], 2"]
)
def test_a_store_that_faults_leaves_the_flags(bed: Testbed, instruction: str) -> None:
    """So that it can be done again behind the page fault, as of a page that is copied when it is written."""
    state = bed.vcpu.state
    state.sregs.cr0 |= 1 << 16  # WP
    bed.vcpu.state = state
    entry = bed.memory.read_int(PT + 8 * (DATA >> 12), 8)
    bed.memory.write(PT + 8 * (DATA >> 12), (entry & ~2).to_bytes(8, "little"))
    bed.memory.write(CODE, assemble(f"{LEFT}{instruction}\nhlt").code)
    regs = bed.initial_state().regs
    regs.rbx = DATA
    bed.vcpu.regs = regs
    bed.go()
    _, _, _, flags, _, _ = bed.frame(6)
    assert flags & ALL == ALL
