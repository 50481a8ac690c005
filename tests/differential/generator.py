"""Random programs, as Hypothesis' strategies: what fails is made smaller, and its seed is printed."""

from __future__ import annotations

import re
from random import Random

from differential.errata import Erratum, Made, is_left_out
from differential.forms import Form, forms_of, mask
from differential.program import ARITHMETIC, DATA, DEVICE, DF, PAGE, STACK, Program, World
from hypothesis import strategies as st

MANDATORY = ("66", "f2", "f3")  # prefixes that are part of an opcode
LOCK, OPERAND_SIZE, ADDRESS_SIZE = 0xF0, 0x66, 0x67
SEGMENTS = (0x26, 0x2E, 0x36, 0x3E)  # ES, CS, SS, DS; in 64-bit code they mean nothing
PREFIXES = {LOCK: "lock", 0xF2: "repeated", 0xF3: "repeated"}
REX_W, REX_R, REX_X, REX_B = 8, 4, 2, 1
LONGEST = 60  # bytes of a program
INTERRUPTS_ON = 0x202  # RFLAGS that every program of Linux has
# Where operands lie: at the begin of the data, in its middle, at its end over ROM, in ROM, at ROM's end over nothing.
OFFSETS = (0, 1, 8, 64, 1000, PAGE - 8, PAGE - 1, PAGE, PAGE + 512, 2 * PAGE - 3, 2 * PAGE)
DEVICES = (2 * PAGE + 1, 2 * PAGE + 512, 3 * PAGE - 3)  # in a device, and at its end over nothing
EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LONG_EDGES = (*EDGES, 1 << 63, (1 << 63) - 1, (1 << 64) - 1)
SELECTORS = (0, 8, 0x10, 0x18, 0x23, 0x2B, 0x33)  # kvmpy/accel/testbed.py
COUNTS = (0, 1, 2, 3, 5, 8, 17, 31, 32, 33, 63, 64, 200)
FPU = bytes.fromhex("7f03") + bytes(22) + (0x1F80).to_bytes(4, "little") + bytes(512 - 28)
XMM = slice(160, 160 + 16 * 8)


class Instruction:
    """One instruction as it is put together."""

    def __init__(self, draw: st.DrawFn, form: Form, bits: int, world: World) -> None:
        self.draw, self.form, self.bits = draw, form, bits
        self.offsets = OFFSETS + DEVICES if world is World.DEVICES else OFFSETS
        self.legacy: list[int] = []  # prefixes before REX
        self.rex = 0
        self.is_memory = False
        self.traits: set[str] = set()

    @property
    def made(self) -> Made:
        """What errata ask about, once it is encoded."""
        return Made(self.form.name, frozenset(self.traits))

    def encode(self) -> bytes:
        """Return its bytes."""
        self._choose_prefixes()
        words = self.form.encoding.split()
        mandatory = [int(word, 16) for word in words[:1] if word in MANDATORY]
        words = words[len(mandatory) :]
        if words[0] == "W":
            self.rex |= REX_W
            words = words[1:]
        body = self._body(words)
        if self.is_memory and self.form.lockable and self.draw(st.booleans()):
            self.legacy.append(LOCK)
        self.traits |= {PREFIXES.get(prefix, f"{prefix:x}") for prefix in self.legacy}
        self.traits |= {"rex"} if self.rex & REX_W else set()
        prefixes = bytes([*dict.fromkeys([*self.legacy, *mandatory])])
        return prefixes + (bytes([0x40 | self.rex]) if self.rex else b"") + body

    def _choose_prefixes(self) -> None:
        chance = self.draw(st.integers(0, 15))
        if not self.form.plain:
            if chance & 3 == 1:
                self.legacy.append(OPERAND_SIZE)
            if self.bits == 64 and chance & 3 == 2:
                self.rex |= REX_W
        if self.form.repeats and chance & 4:
            self.legacy.append(self.draw(st.sampled_from(self.form.repeats)))
        if chance >> 3 and not self.form.plain:
            self.legacy.append(self.draw(st.sampled_from(SEGMENTS)))

    @property
    def operand_size(self) -> int:
        """In bytes, of what has no size of its own."""
        if self.rex & REX_W:
            return 8
        return 2 if (self.bits == 16) != (OPERAND_SIZE in self.legacy) else 4

    def _body(self, words: list[str]) -> bytes:
        made, kind = b"", None
        for word in words:
            if word in ("/m", "/R"):
                kind = word == "/m"
            elif word.startswith("/"):
                made += self._modrm(None if word == "/r" else int(word[1:]), kind)
            elif word.endswith("+r"):
                register = self._register()
                self.rex |= REX_B if register > 7 else 0
                made += bytes([int(word[:2], 16) + register % 8])
            elif word.startswith("i") and word in ("ib", "iz", "iv"):
                size = {"ib": 1, "iz": min(4, self.operand_size), "iv": self.operand_size}[word]
                made += self.draw(_number(size)).to_bytes(size, "little")
            else:
                made += bytes([int(word, 16)])
        return made

    def _register(self) -> int:
        return self.draw(st.integers(0, 15 if self.bits == 64 else 7))

    def _modrm(self, middle: int | None, memory: bool | None) -> bytes:
        register = self._register() if middle is None else middle
        self.rex |= REX_R if register > 7 else 0
        self.is_memory = self.draw(st.booleans()) if memory is None else memory
        reg = register % 8 << 3
        self.traits.add("memory" if self.is_memory else "register")
        if not self.is_memory:
            rm = self._register()
            self.traits |= {"same"} if rm == register else set()
            self.rex |= REX_B if rm > 7 else 0
            return bytes([0xC0 | reg | rm % 8])
        return self._address16(reg) if self.bits == 16 else self._address32(reg)

    def _address16(self, reg: int) -> bytes:
        """Absolute, or by BX, SI, DI and BP with what is added (SDM vol. 2, table 2-1)."""
        if self.draw(st.booleans()):
            return bytes([reg | 6]) + self._absolute(0).to_bytes(2, "little")
        self.traits.add("unaligned")
        return bytes([0x40 | reg | self.draw(st.integers(0, 7)), self.draw(st.integers(0, 255))])

    def _address32(self, reg: int) -> bytes:
        """Absolute, by a register and 8 bits, or by SIB and 32 bits (table 2-2, 2-3)."""
        shape = self.draw(st.integers(0, 3))
        if shape < 2:
            where = self._absolute(DATA).to_bytes(4, "little")
            return bytes([reg | 4, 0x25]) + where if self.bits == 64 else bytes([reg | 5]) + where
        self.traits.add("unaligned")  # it may be
        base = self.draw(st.sampled_from((3, 5, 6, 7)))  # those that point into the data
        if shape == 2:
            return bytes([0x40 | reg | base, self.draw(st.integers(0, 255))])
        scale, index = self.draw(st.integers(0, 3)), self.draw(st.sampled_from((4, 1)))
        displacement = self.draw(st.sampled_from((0, 8, 64, 0xFFFF_FFF0)))
        return bytes([0x80 | reg | 4, scale << 6 | index << 3 | base]) + displacement.to_bytes(4, "little")

    def _absolute(self, base: int) -> int:
        address = base + self.draw(st.sampled_from(self.offsets))
        self.traits.add("unaligned" if address % 16 else "aligned")
        return address


def _number(size: int) -> st.SearchStrategy[int]:
    limit = 1 << 8 * size
    return st.sampled_from([edge for edge in LONG_EDGES if edge < limit]) | st.integers(0, limit - 1)


@st.composite
def programs(draw: st.DrawFn, bits: int, world: World = World.USER, erratum: Erratum | None = None) -> Program:
    """Return a program of one to three instructions that no flag undefined by the manual has a part in.

    Without what errata leave out; with an erratum, all that can be an instance of it.
    """
    forms = [form for form in forms_of(bits, world) if erratum is None or re.fullmatch(erratum.forms, form.name)]
    code, undefined, ever, instructions = b"", 0, 0, []
    for _ in range(draw(st.integers(1, 3))):
        form = draw(st.sampled_from(forms))
        instruction = Instruction(draw, form, bits, world)
        made = instruction.encode()
        if (
            mask(form.reads) & undefined
            or len(code) + len(made) > LONGEST
            or (erratum is None and is_left_out(instruction.made, bits))
        ):
            continue
        code += made
        instructions.append(instruction.made)
        undefined = undefined & ~mask(form.writes) | mask(form.undefined) | mask(form.narrow)
        ever |= undefined
    flags = INTERRUPTS_ON | draw(st.integers(0, ARITHMETIC)) & ARITHMETIC | draw(st.sampled_from((0, 0, 0, DF)))
    pages = Random(draw(st.integers(0, 1 << 16)))
    fpu = bytearray(FPU)
    for number in range(4):  # some that are numbers: sign, exponent, significand (Intel SDM vol. 1, 4.2.2)
        exponent = pages.choice((0x3FFF, 0x4000, 0x3FFE, 0x401E, pages.randrange(0x7FFF)))
        significand = pages.choice((1 << 63, 3 << 62, 1 << 63 | pages.getrandbits(63)))
        fpu[32 + 16 * number : 42 + 16 * number] = (pages.getrandbits(1) << 79 | exponent << 64 | significand).to_bytes(
            10, "little"
        )
    fpu[4] = 0xF  # FTW: these four are valid
    fpu[XMM] = pages.randbytes(XMM.stop - XMM.start)
    data, rom, stack = (pages.randbytes(PAGE) for _ in range(3))
    return Program(
        bits, code, _registers(draw, bits, world), flags, bytes(fpu), data, rom, stack, undefined, ever,
        tuple(instructions), world,
    )  # fmt: skip


def _registers(draw: st.DrawFn, bits: int, world: World) -> tuple[int, ...]:
    """Any values, but that RBX, RSI, RDI and RBP lie in the data and RSP in the stack; RCX is often a count.

    In ring 0 RAX and RDX are often selectors, and beside devices the stack may be one, or what is around it.
    """
    size = 8 if bits == 64 else 4
    values = [draw(_number(size)) for _ in range(4)] + [0] * 4
    base, stack = (0, 0) if bits == 16 else (DATA, STACK)
    offsets = OFFSETS + DEVICES if world is World.DEVICES else OFFSETS
    if world is not World.USER:
        values[0], values[2] = (draw(st.sampled_from(SELECTORS) | st.just(value)) for value in (values[0], values[2]))
    values[1] = draw(st.sampled_from(COUNTS)) if draw(st.booleans()) else values[1]
    values[3], values[5], values[6], values[7] = (base + draw(st.sampled_from(offsets)) for _ in range(4))
    stacks = [stack + offset for offset in (2048, 2050, 1024, 3001)]
    if world is World.DEVICES and bits != 16:
        stacks += [DEVICE + 64, DEVICE + 2, DEVICE - PAGE + 2]
    values[4] = draw(st.sampled_from(stacks))
    return (*values, *((draw(_number(8)) for _ in range(8)) if bits == 64 else [0] * 8))
