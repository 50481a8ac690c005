"""Instructions that Keystone gets wrong, said in another way: a table of patterns.

Some come out in another size than they say (a 16-bit CALL as a 32-bit one), some are not known in this form (far jumps
to `selector:offset`). What is not in the table and still comes out wrong, `kvmpy.asm.check` refuses.
"""

from __future__ import annotations

import re

from kvmpy.asm.expressions import STRING, parse_number
from kvmpy.errors import AssemblyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = r"(?P<prefix>(?:(?:rep|repe|repz|repne|repnz|lock)\s+)?)"
FAR_OPCODE = {"jmp": 0xEA, "ljmp": 0xEA, "call": 0x9A, "lcall": 0x9A}
TABLE_GROUP = {"sgdt": 0, "sidt": 1, "lgdt": 2, "lidt": 3}
BASES = {"eax": 0, "ecx": 1, "edx": 2, "ebx": 3, "esi": 6, "edi": 7}
SEGMENT_STACK = {
    "push es": "0x06", "push cs": "0x0e", "push ss": "0x16", "push ds": "0x1e", "pop es": "0x07", "pop ss": "0x17",
    "pop ds": "0x1f", "push fs": "0x0f, 0xa0", "push gs": "0x0f, 0xa8", "pop fs": "0x0f, 0xa1", "pop gs": "0x0f, 0xa9",
}  # fmt: skip


def rewrite(text: str, bits: int) -> str:
    """Return what Keystone has to be told so that `text` comes out as it is meant in `bits`-bit code."""
    plain = " ".join(STRING.sub(lambda m: m[0].replace(" ", "\0"), text).split()).replace("\0", " ")
    for modes, pattern, change in REWRITES:
        if bits in modes and (match := pattern.fullmatch(plain)):
            return change(match, bits)
    return text


def _far(match: re.Match[str], bits: int) -> str:
    mnemonic, width, selector, offset = match.group("op", "width", "selector", "offset")
    if bits == 64:
        raise AssemblyError("64-bit code has no far jump or call to an immediate address; push both and use retfq")
    wide = width.strip() == "dword" if width else bits == 32
    prefix = "0x66, " if wide != (bits == 32) else ""
    return f".byte {prefix}{FAR_OPCODE[mnemonic.lower()]:#x}\n{'.long' if wide else '.word'} {offset}\n.word {selector}"


def _bytes(code: str) -> Callable[[re.Match[str], int], str]:
    return lambda _match, _bits: f".byte {code}"


def _say(code: str) -> Callable[[re.Match[str], int], str]:
    return lambda _match, _bits: code


def _table(match: re.Match[str], _bits: int) -> str:
    """LGDT and its like in 32-bit code, which Keystone makes 16-bit ones that load 24 bits of the base."""
    group, operand = TABLE_GROUP[match["op"].lower()] << 3, match["operand"].strip().lower()
    if operand in BASES:
        return f".byte 0x0f, 0x01, {group | BASES[operand]:#x}"
    if re.search(r"\b(e?[abcd]x|e?[sd]i|e?[sb]p)\b", operand):
        raise AssemblyError("here the operand can be [label] or one of [eax] [ebx] [ecx] [edx] [esi] [edi]")
    return f".byte 0x0f, 0x01, {group | 5:#x}\n.long {match['operand']}"


def _push16(match: re.Match[str], _bits: int) -> str:
    value = parse_number(match["value"])
    if value is not None and not -0x8000 <= value < 0x10000:
        raise AssemblyError(f"{match['value']} does not fit in 16 bits; write 'push dword ptr {match['value']}'")
    return f".byte 0x68\n.word {match['value']}"


def _movs(match: re.Match[str], bits: int) -> str:
    prefix = "0xf3, " if match["prefix"] else ""
    return f".byte {'0x66, ' if bits == 16 else ''}{prefix}0xa5"


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


OPERAND = r"(?!\w+ ptr\b|\[|(?:e|r)?[abcd]x$|[abcd][lh]$|e?[sd]i$|e?[sb]p$|[cdefgs]s$)"
REWRITES: tuple[tuple[tuple[int, ...], re.Pattern[str], Callable[[re.Match[str], int], str]], ...] = (
    (
        (16, 32, 64),
        _compile(r"(?P<op>l?jmp|l?call) (?P<width>d?word )?(?P<selector>[^:\[\]]+):(?P<offset>[^:\[\]]+)"),
        _far,
    ),
    ((16,), _compile(rf"call {OPERAND}(?P<target>[^\[\]]+)"), lambda m, _: f".byte 0xe8\n.word {m['target']} - . - 2"),
    ((16,), _compile(r"ret"), _bytes("0xc3")),
    ((16,), _compile(r"ret (?P<count>.+)"), lambda m, _: f".byte 0xc2\n.word {m['count']}"),
    ((16,), _compile(r"retf"), _bytes("0xcb")),
    ((16,), _compile(rf"push (?:word (?:ptr )?)?{OPERAND}(?P<value>[^\[\]]+)"), _push16),
    ((16,), _compile(r"push dword (?:ptr )?(?P<value>[^\[\]]+)"), lambda m, _: f".byte 0x66, 0x68\n.long {m['value']}"),
    ((16,), _compile(r"iretw"), _bytes("0xcf")),
    ((16, 32), _compile(PREFIX + r"movsd"), _movs),
    ((32,), _compile(r"iret"), _say("iretd")),
    ((32,), _compile(r"pushf"), _say("pushfd")),
    ((32,), _compile(r"popf"), _say("popfd")),
    ((32,), _compile(r"(?P<op>[ls][gi]dt) \[(?P<operand>[^\]]+)\]"), _table),
    ((32,), _compile("|".join(SEGMENT_STACK)), lambda m, _: f".byte {SEGMENT_STACK[m[0].lower()]}"),
    ((64,), _compile(r"sysretq"), _say("sysret")),
    ((64,), _compile(r"sysretl"), _bytes("0x0f, 0x07")),
    ((64,), _compile(r"sysexitq"), _say("sysexit")),
    ((64,), _compile(r"pushf"), _say("pushfq")),
    ((64,), _compile(r"popf"), _say("popfq")),
    ((64,), _compile(r"endbr64"), _bytes("0xf3, 0x0f, 0x1e, 0xfa")),
    ((16, 32), _compile(r"endbr32"), _bytes("0xf3, 0x0f, 0x1e, 0xfb")),
)
