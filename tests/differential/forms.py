"""The instructions that programs are made of, in the manual's notation (Intel SDM vol. 2, 3.1.1.1), as data.

Of an encoding: two digits are a byte; `+r` puts a register's number into the byte before; `/r` is a ModR/M byte with
any register, `/0` to `/7` one with these in its place; `/m` and `/R` restrict what follows to memory and to registers;
`ib` `iz` `iv` are immediates of 8 bits, the operand size but at most 32, and the operand size; `W` is REX.W.

What CPUID does not announce (BMI1, BMI2, AVX) is not here.

Of the flags (SDM vol. 1, appendix A): `o` OF, `s` SF, `z` ZF, `a` AF, `p` PF, `c` CF. What an instruction leaves
undefined is masked until another writes it, and none that reads it comes before that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from differential.program import AF, CF, OF, PF, SF, ZF, World

LETTERS = {"o": OF, "s": SF, "z": ZF, "a": AF, "p": PF, "c": CF}
ALL = "oszapc"
EVERYWHERE, LEGACY, LONG = (16, 32, 64), (16, 32), (64,)


@dataclass(frozen=True)
class Form:
    """An instruction: its name, encoding, flags written, undefined and read, and the modes that have it.

    `narrow` are the flags that are undefined besides where the operand may have 8 or 16 bits; `plain` takes neither
    a prefix of operand size nor REX.W.
    """

    name: str
    encoding: str
    writes: str = ""
    undefined: str = ""
    reads: str = ""
    modes: tuple[int, ...] = EVERYWHERE
    narrow: str = ""
    plain: bool = False
    lockable: bool = False
    repeats: tuple[int, ...] = ()
    worlds: tuple[World, ...] = tuple(World)


def mask(letters: str) -> int:
    """Return the flags that letters stand for."""
    return sum(LETTERS[letter] for letter in set(letters))


def forms_of(bits: int, world: World = World.USER) -> list[Form]:
    """Return the forms that code of this mode has, in a world."""
    return [form for form in FORMS if bits in form.modes and world in form.worlds]


REP, REPNE = 0xF3, 0xF2
CONDITIONS = "o no b nb z nz be nbe s ns p np l nl le nle".split()
CONDITION_FLAGS = ["o", "c", "z", "cz", "s", "p", "so", "zso"]


def _arithmetic() -> list[Form]:
    made = []
    for number, name in enumerate("add or adc sbb and sub xor cmp".split()):
        flags = {"writes": ALL, "undefined": "a" if name in ("or", "and", "xor") else ""}
        flags |= {"reads": "c"} if name in ("adc", "sbb") else {}
        lockable = name != "cmp"
        for offset, operands in enumerate(("/r", "/r", "/r", "/r", "ib", "iz")):
            opcode = f"{8 * number + offset:02x}"
            made.append(Form(name, f"{opcode} {operands}", lockable=lockable and offset < 2, **flags))
        for opcode, immediate in (("80", "ib"), ("81", "iz"), ("83", "ib")):
            made.append(Form(name, f"{opcode} /{number} {immediate}", lockable=lockable, **flags))
    for opcode, immediate in (("f6", "ib"), ("f7", "iz")):
        made += [
            Form("test", f"{opcode} /0 {immediate}", ALL, "a"),
            Form("not", f"{opcode} /2", lockable=True),
            Form("neg", f"{opcode} /3", ALL, lockable=True),
            Form("mul", f"{opcode} /4", ALL, "szap"),
            Form("imul", f"{opcode} /5", ALL, "szap"),
            Form("div", f"{opcode} /6", ALL, ALL),
            Form("idiv", f"{opcode} /7", ALL, ALL),
        ]
    for opcode in ("fe", "ff"):
        made += [Form(name, f"{opcode} /{n}", "oszap", lockable=True) for n, name in enumerate(("inc", "dec"))]
    made += [Form("imul", "0f af /r", ALL, "szap"), Form("imul", "69 /r iz", ALL, "szap")]
    made += [Form("imul", "6b /r ib", ALL, "szap"), Form("test", "84 /r", ALL, "a"), Form("test", "a9 iz", ALL, "a")]
    made += [Form("inc", "40+r", "oszap", modes=LEGACY), Form("dec", "48+r", "oszap", modes=LEGACY)]
    return made


def _exchanges() -> list[Form]:
    return [
        *(Form("cmpxchg", f"0f {opcode} /r", ALL, lockable=True) for opcode in ("b0", "b1")),
        *(Form("xadd", f"0f {opcode} /r", ALL, lockable=True) for opcode in ("c0", "c1")),
        *(Form("xchg", f"{opcode} /r", lockable=True) for opcode in ("86", "87")),
        Form("cmpxchg8b", "0f c7 /m /1", "z", plain=True, lockable=True),
        Form("cmpxchg16b", "W 0f c7 /m /1", "z", plain=True, lockable=True, modes=LONG),
        Form("xchg", "90+r"),
        Form("bswap", "0f c8+r", plain=True, modes=(32, 64)),
    ]


def _shifts() -> list[Form]:
    made = []
    for number, name in enumerate("rol ror rcl rcr shl shr sal sar".split()):
        rotates = number < 4
        reads = "c" if name in ("rcl", "rcr") else ""
        for opcode, count in (("c0", "ib"), ("c1", "ib"), ("d2", ""), ("d3", "")):
            # Of a count that is 0 all flags stay: what was undefined before still is.
            undefined, narrow = ("o", "") if rotates else ("oa", "c")
            encoding = f"{opcode} /{number} {count}".strip()
            made.append(Form(name, encoding, "", undefined, reads, narrow=narrow))
        for opcode in ("d0", "d1"):
            made.append(Form(name, f"{opcode} /{number}", "oc" if rotates else ALL, "" if rotates else "a", reads))
    for opcode, count in (("a4", "ib"), ("a5", ""), ("ac", "ib"), ("ad", "")):
        name = "shld" if opcode < "ac" else "shrd"
        # Of 16 bits a count above 16 leaves the destination undefined as well: those of 32 and 64 bits only.
        made.append(Form(name, f"0f {opcode} /r {count}".strip(), "", "oa", modes=(32, 64), plain=True))
    return made


def _bits() -> list[Form]:
    made = []
    for number, name in enumerate("bt bts btr btc".split(), 4):
        lockable = name != "bt"
        made.append(Form(name, f"0f ba /{number} ib", "c", "osap", lockable=lockable))
        made.append(Form(name, f"0f {8 * number + 0x83:02x} /r", "c", "osap", lockable=lockable))
    made += [Form(name, f"0f {op} /r", "z", "osapc") for name, op in (("bsf", "bc"), ("bsr", "bd"))]
    made += [Form("lzcnt", "f3 0f bd /r", "zc", "osap"), Form("popcnt", "f3 0f b8 /r", ALL)]
    made += [Form("movbe", f"0f 38 {op} /m /r") for op in ("f0", "f1")]
    made += [Form("crc32", f"f2 0f 38 {op} /r", modes=(32, 64), plain=True) for op in ("f0", "f1")]
    made += [
        Form("adcx", "66 0f 38 f6 /r", "c", "", "c", plain=True),
        Form("adox", "f3 0f 38 f6 /r", "o", "", "o", plain=True),
    ]
    return made


def _by_condition() -> list[Form]:
    made = []
    for number, condition in enumerate(CONDITIONS):
        reads = CONDITION_FLAGS[number // 2]
        made.append(Form(f"set{condition}", f"0f {0x90 + number:x} /r", reads=reads))
        made.append(Form(f"cmov{condition}", f"0f {0x40 + number:x} /r", reads=reads))
        # Over one byte, INT3: taken or not, the program goes on with a NOP or ends.
        made.append(Form(f"j{condition}", f"{0x70 + number:x} 01 90", reads=reads, plain=True))
    made += [Form(name, f"{op} 01 f9", "", "c", "z", plain=True) for op, name in (("e0", "loopne"), ("e1", "loope"))]
    return [*made, Form("loop", "e2 01 f9", "", "c", plain=True), Form("jcxz", "e3 01 f9", "", "c", plain=True)]


def _moves() -> list[Form]:
    made = [Form("mov", f"{op} /r") for op in ("88", "89", "8a", "8b")]
    made += [Form("movzx", f"0f {op} /r") for op in ("b6", "b7")] + [
        Form("movsx", f"0f {op} /r") for op in ("be", "bf")
    ]
    made += [Form("mov", "c6 /0 ib"), Form("mov", "c7 /0 iz"), Form("mov", "b0+r ib"), Form("mov", "b8+r iv")]
    made += [Form("lea", "8d /m /r"), Form("movsxd", "63 /r", modes=LONG), Form("xlat", "d7"), Form("nop", "90")]
    made += [Form("cbw", "98"), Form("cwd", "99"), Form("lahf", "9f", reads="szapc"), Form("sahf", "9e", "szapc")]
    made += [
        Form("cmc", "f5", "c", "", "c"),
        Form("clc", "f8", "c"),
        Form("stc", "f9", "c"),
        Form("cld", "fc"),
        Form("std", "fd"),
    ]
    return made


def _stack() -> list[Form]:
    made = [
        Form("push", "50+r"),
        Form("pop", "58+r"),
        Form("push", "68 iz"),
        Form("push", "6a ib"),
        Form("leave", "c9"),
    ]
    made += [Form("push", "ff /6"), Form("pop", "8f /0"), Form("pushf", "9c", reads=ALL), Form("popf", "9d", ALL)]
    made += [Form("enter", f"c8 08 00 {levels:02x}") for levels in (0, 1, 2, 5, 31)]
    made += [Form("pusha", "60", modes=LEGACY), Form("popa", "61", modes=LEGACY)]
    made += [Form("call", "e8 00 00 00 00", modes=(32, 64), plain=True)]
    # Where these go they may meet anything, also the middle of an instruction: of the flags nothing is known then. In
    # ring 0 it would be what keeps the programs.
    anywhere = (("call", "ff /2"), ("jmp", "ff /4"), ("ret", "c3"), ("ret", "c2 08 00"))
    return made + [Form(name, encoding, "", ALL, worlds=(World.USER,)) for name, encoding in anywhere]


def _strings() -> list[Form]:
    made = []
    for first, name in ((0xA4, "movs"), (0xAA, "stos"), (0xAC, "lods")):
        made += [Form(name, f"{op:x}", repeats=(REP,)) for op in (first, first + 1)]
    for first, name in ((0xA6, "cmps"), (0xAE, "scas")):
        # Repeated no time they write no flag.
        made += [Form(name, f"{op:x}", "", repeats=(REP, REPNE)) for op in (first, first + 1)]
    return made


def _decimal() -> list[Form]:
    made = [Form(name, op, ALL, "o", "ca", LEGACY) for name, op in (("daa", "27"), ("das", "2f"))]
    made += [Form(name, op, ALL, "oszp", "a", LEGACY) for name, op in (("aaa", "37"), ("aas", "3f"))]
    return made + [Form(name, f"{op} ib", ALL, "oac", "", LEGACY) for name, op in (("aam", "d4"), ("aad", "d5"))]


def _exceptions() -> list[Form]:
    """What ring 3 may not do, and what is no instruction."""
    privileged = "f4,fa,fb,0f 06,0f 08,0f 09,0f 30,0f 32,0f 20 c0,0f 22 c0,0f 23 c0,0f 21 f8,0f 01 f0,0f 00 d0,0f 00 d8"
    undefined = "0f 0b,0f ff c0,0f b9 c0,0f aa,0f 24 c0,8e c8,fe f8,ff f8,0f c7 c8,8d c0"
    made = [Form("privileged", text, plain=True, worlds=(World.USER,)) for text in privileged.split(",")]
    made += [Form("undefined", text, plain=True) for text in undefined.split(",")]
    made += [Form("locked", text, plain=True) for text in ("f0 01 c0", "f0 8b 07", "f0 90", "f0 39 07")]
    made += [
        Form("gone", text, plain=True, modes=LONG) for text in ("82 c0 01", "06", "27", "ce", "d6", "60", "9a", "ea")
    ]
    return made + [Form("int", f"cd {vector:02x}", plain=True) for vector in (3, 4, 0x0D, 0x20)]


def _ports() -> list[Form]:
    made = [Form("in", text, plain=True) for text in ("e4 ib", "ec")] + [Form("in", text) for text in ("e5 ib", "ed")]
    made += [Form("out", text, plain=True) for text in ("e6 ib", "ee")] + [Form("out", op) for op in ("e7 ib", "ef")]
    made += [Form("ins", op, repeats=(REP,)) for op in ("6c", "6d")]
    made += [Form("outs", op, repeats=(REP,)) for op in ("6e", "6f")]
    return [replace(form, worlds=(World.DEVICES,)) for form in made]


def _system() -> list[Form]:
    """Segments and what is privileged, in ring 0: elsewhere selectors mean something else on each processor."""
    made = [Form("mov sreg", f"8e /{number}") for number in (0, 2, 3, 4, 5)]
    made += [Form("store sreg", f"8c /{number}") for number in (0, 3)]
    made += [Form("push sreg", op) for op in ("0f a0", "0f a8")] + [Form("pop sreg", op) for op in ("0f a1", "0f a9")]
    made += [Form("push sreg", op, modes=LEGACY) for op in ("06", "0e", "16", "1e")]
    made += [Form("pop sreg", op, modes=LEGACY) for op in ("07", "1f")]
    made += [Form("lds", op, modes=LEGACY) for op in ("c4 /m /r", "c5 /m /r")]
    made += [Form("lss", f"0f {op} /m /r") for op in ("b2", "b4", "b5")]
    made += [Form(name, f"0f 00 /{n}", "z", modes=(32, 64)) for name, n in (("verr", 4), ("verw", 5))]
    made += [Form(name, f"0f {op} /r", "z", modes=(32, 64)) for name, op in (("lar", "02"), ("lsl", "03"))]
    made += [Form(name, f"0f 01 /m /{n}", plain=True) for name, n in (("sgdt", 0), ("sidt", 1))]
    made += [Form("cli", "fa"), Form("sti", "fb"), Form("clts", "0f 06"), Form("smsw", "0f 01 /4", plain=True)]
    made += [Form("mov cr", f"0f 20 {modrm}", plain=True) for modrm in ("c0", "d8", "e0")]
    return [replace(form, worlds=(World.KERNEL, World.DEVICES)) for form in made]


def _vector() -> list[Form]:
    """SSE to SSE4.2 on XMM registers; a memory operand is aligned, or the exception is part of the comparison."""
    packed = (
        "60 61 62 63 64 65 66 67 68 69 6a 6b 6c 6d 74 75 76 d1 d2 d3 d4 d5 d8 d9 da db dc dd de df e0 e1 e2 "
        "e3 e4 e5 e8 e9 ea eb ec ed ee ef f1 f2 f3 f4 f5 f6 f8 f9 fa fb fc fd fe 6f 7f 10 11 28 29 54 55 56 "
        "57 14 15"
    )
    made = [Form(f"66 0f {op}", f"66 0f {op} /r", plain=True) for op in packed.split()]
    further = (
        "00 01 02 03 04 05 06 07 08 09 0a 0b 1c 1d 1e 20 21 22 23 24 25 28 29 2b 30 31 32 33 34 35 37 38 39 "
        "3a 3b 3c 3d 3e 3f 40 41"
    )
    made += [Form(f"66 0f 38 {op}", f"66 0f 38 {op} /r", plain=True) for op in further.split()]
    made += [Form("ptest", "66 0f 38 17 /r", ALL, plain=True)]
    immediate = "0c 0d 0e 0f 42"
    made += [Form(f"66 0f 3a {op}", f"66 0f 3a {op} /r ib", plain=True) for op in immediate.split()]
    made += [Form(f"66 0f {op}", f"66 0f {op} /r ib", plain=True) for op in ("70", "c6")]
    made += [
        Form(name, f"66 0f {op} /R /{n} ib", plain=True) for op, n, name in (("73", 3, "psrldq"), ("73", 7, "pslldq"))
    ]
    return made


def _floats() -> list[Form]:
    """SSE on floating-point numbers: packed and scalar, single and double; MXCSR is compared, too."""
    made = []
    for op in ("51", "58", "59", "5c", "5d", "5e", "5f", "5a"):
        for prefix in ("", "66 ", "f3 ", "f2 "):
            made.append(Form(f"{prefix}0f {op}", f"{prefix}0f {op} /r", plain=True))
    rest = "0f 5b,66 0f 5b,f3 0f 5b,f3 0f e6,f2 0f e6,66 0f e6,f2 0f d0,66 0f d0,f2 0f 7c,66 0f 7c,f2 0f 7d,66 0f 7d"
    rest += ",f3 0f 12,f3 0f 16,f2 0f 12,f3 0f 2c,f2 0f 2c,f3 0f 2d,f2 0f 2d,0f 52,f3 0f 52,0f 53,f3 0f 53"
    made += [Form(name, f"{name} /r", plain=True) for name in rest.split(",")[:-4]]
    made += [Form(name, f"{name} /r", ALL, plain=True) for name in ("0f 2e", "0f 2f", "66 0f 2e", "66 0f 2f")]
    compared = [f"{prefix}0f c2" for prefix in ("", "66 ", "f3 ", "f2 ")]
    made += [Form(name, f"{name} /r ib", plain=True) for name in (*compared, "66 0f 3a 40", "66 0f 3a 41")]
    return made + [Form(f"66 0f 3a {op}", f"66 0f 3a {op} /r ib", plain=True) for op in ("08", "09", "0a", "0b")]


def _x87() -> list[Form]:
    memory = "d9 0,d9 2,d9 3,dd 0,dd 2,dd 3,db 5,db 7,df 0,db 0,df 5,df 2,df 3,db 2,db 3,df 7,df 1,db 1,dd 1"
    made = [Form(f"x87 {op[:2]} /{op[3]}", f"{op[:2]} /m /{op[3]}", plain=True) for op in memory.split(",")]
    numbers = (0, 1, 4, 5, 6, 7)  # FADD, FMUL, FSUB, FSUBR, FDIV, FDIVR
    made += [Form(f"x87 {op} /{n}", f"{op} /m /{n}", plain=True) for op in ("d8", "dc", "da", "de") for n in numbers]
    stack = (
        "d8 c1,d8 c9,d8 e1,d8 e9,d8 f1,d8 f9,de c1,de c9,de e1,de e9,de f1,de f9,d9 e0,d9 e1,d9 fa,d9 fc,d9 e8,d9 ee"
    )
    stack += ",d9 c1,d9 c9,dd d9,dd e1,dd c1,d9 f6,d9 f7,d9 e4,d9 e5,d8 d1,db e3"
    made += [Form(f"x87 {code}", code, plain=True) for code in stack.split(",")]
    return made + [Form(f"x87 {code}", code, "zpc", "osa", plain=True) for code in ("db e9", "db f1", "df e9", "df f1")]


FORMS = [
    *_arithmetic(), *_exchanges(), *_shifts(), *_bits(), *_by_condition(), *_moves(), *_stack(), *_strings(),
    *_decimal(), *_exceptions(), *_ports(), *_system(), *_vector(), *_floats(), *_x87(),
]  # fmt: skip
