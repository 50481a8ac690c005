"""Does the machine code say what the source says? Keystone can fail without a word, so Capstone reads every result.

Compared are the length, the mnemonic, the registers, the memory operand's width and the literal numbers. Capstone's
own freedom is allowed for: `jz` is `je`, `imul eax, 5` is `imul eax, eax, 5`, string instructions show what is implied.
"""

from __future__ import annotations

import re
from typing import Any

from kvmpy.asm.disassembler import capstone_engine
from kvmpy.asm.expressions import STRING, evaluate, parse_number
from kvmpy.asm.source import REGISTERS
from kvmpy.errors import AssemblyError

PREFIXES = ("rep", "repe", "repz", "repne", "repnz", "lock")
CONDITIONS = {
    "z": "e", "nz": "ne", "c": "b", "nae": "b", "nc": "ae", "nb": "ae", "na": "be", "nbe": "a", "pe": "p", "po": "np",
    "nge": "l", "nl": "ge", "ng": "le", "nle": "g",
}  # fmt: skip
SAME = {
    "movabs": "mov", "sal": "shl", "fwait": "wait", "ljmp": "jmp", "lcall": "call", "loopz": "loope", "loopnz":
    "loopne", "sysretq": "sysret", "sysretl": "sysret", "sysexitq": "sysexit", "pushaw": "pusha", "pushal": "pusha",
    "pushad": "pusha", "popaw": "popa", "popal": "popa", "popad": "popa", "pushfw": "pushf", "pushfd": "pushf",
    "pushfq": "pushf", "popfw": "popf", "popfd": "popf", "popfq": "popf", "iretd": "iret", "iretw": "iret",
    "iretq": "iret", "retfq": "retf", "lret": "retf", "icebp": "int1", "ud2a": "ud2", "xlat": "xlatb",
    "endbr32": "endbr32",
}  # fmt: skip
# Instructions of a fixed width, whose width must be the mode's own unless the mnemonic says another one.
WIDTH_MATTERS = ("iret", "ret", "retf", "call", "pushf", "popf", "lgdt", "lidt", "sgdt", "sidt")
WIDTH_SUFFIX = {"iretd": 32, "iretq": 64, "iretw": 16, "pushfd": 32, "popfd": 32, "pushfw": 16, "popfw": 16}
OPERAND_SIZE = 0x66
TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WIDTH = re.compile(r"(?i)\b(byte|word|dword|qword|xmmword) ptr\b")


def check_instruction(text: str, code: bytes, *, bits: int, address: int) -> None:
    """Compare one instruction's source with its machine code; AssemblyError tells how they differ."""
    if not code:
        raise AssemblyError("the assembler made nothing of it; say the operand's width, as in 'byte ptr [x]'")
    engine = capstone_engine(bits)
    engine.detail = True
    try:
        found = next(engine.disasm(code, address, 1), None)
        if found is None or found.size != len(code) or found.mnemonic == ".byte":
            raise AssemblyError(f"the assembler made {code.hex(' ')} of it, which is no single instruction")
        _compare(text, found, bits)
    finally:
        engine.detail = False


def _compare(text: str, found: Any, bits: int) -> None:
    words = text.split(None, 1)
    while len(words) > 1 and words[0].lower() in PREFIXES:
        words = words[1].split(None, 1)
    mnemonic, operands = words[0].lower(), words[1] if len(words) > 1 else ""
    made = found.mnemonic.split()[-1]
    if _canonical(mnemonic) != _canonical(made) and {mnemonic, made} != {"xchg", "nop"}:
        raise _differs(found, "another instruction")
    if _canonical(mnemonic) in WIDTH_MATTERS:
        _check_width(mnemonic, found, bits)
    if not operands or _canonical(mnemonic).startswith("f"):
        return  # x87 instructions have implied operands in many forms
    if "ptr" not in found.mnemonic and _registers(operands) != _registers(found.op_str) and not _is_string(found):
        raise _differs(found, "other registers")
    width = WIDTH.search(operands)
    if width and "[" in operands and "ptr" in found.op_str and width[0].lower() not in found.op_str:
        raise _differs(found, "another width")
    _check_numbers(operands, found)


def _canonical(mnemonic: str) -> str:
    match = re.fullmatch(r"(j|set|cmov)(\w+)", mnemonic)
    if match and match[2] in CONDITIONS:
        return match[1] + CONDITIONS[match[2]]
    return SAME.get(mnemonic, mnemonic)


def _check_width(mnemonic: str, found: Any, bits: int) -> None:
    has_prefix = OPERAND_SIZE in found.prefix
    wanted = WIDTH_SUFFIX.get(mnemonic, bits)
    made = {16: 32, 32: 16, 64: 16}[bits] if has_prefix else bits
    if bits == 64 and mnemonic == "iret":
        raise AssemblyError("in 64-bit code say iretq or iretd")
    if made != wanted and not (bits == 64 and wanted in (32, 64) and not has_prefix):
        raise AssemblyError(
            f"the assembler made it {made} bits wide ({bytes(found.bytes).hex(' ')}); write it as .byte"
        )


def _is_string(found: Any) -> bool:
    return bool(re.fullmatch(r"(?:rep\w* )?(?:ins|outs|movs|stos|lods|scas|cmps)[bwdq]", found.mnemonic))


def _registers(operands: str) -> set[str]:
    names = {token.lower() for token in TOKEN.findall(STRING.sub("", operands))}
    return {name for name in names if REGISTERS.fullmatch(name)}


def _check_numbers(operands: str, found: Any) -> None:
    """Compare the operands that are nothing but a number."""
    immediates = [op for op in found.operands if op.type == 2]  # X86_OP_IMM
    literals = [parse_number(part) for part in operands.split(",")]
    wanted = [value for value in literals if value is not None]
    for value in wanted:
        if not any(_fits(value, op.size) and (op.imm - value) % (1 << 8 * op.size) == 0 for op in immediates):
            raise _differs(found, f"{value} is not in it")
    memory = re.search(r"\[([^\[\]]*)\]", operands)
    number = _displacement(memory[1]) if memory else None
    space = 1 << 8 * found.addr_size
    if number is not None and not any(op.type == 3 and (op.mem.disp - number) % space == 0 for op in found.operands):
        raise _differs(found, f"{number:#x} is not in it")


def _displacement(expression: str) -> int | None:
    """Return what is added to the registers of a memory operand, None when a label is part of it."""
    without = re.sub(rf"(?i)(?<![\w.])({REGISTERS.pattern})\b(\s*\*\s*[1248])?", "0", expression)
    try:
        return evaluate(without, {})
    except AssemblyError:
        return None


def _fits(value: int, size: int) -> bool:
    return -(1 << 8 * size - 1) <= value < 1 << 8 * size


def _differs(found: Any, what: str) -> AssemblyError:
    made = f"{found.mnemonic} {found.op_str}".rstrip()
    return AssemblyError(f"the assembler made '{made}' ({bytes(found.bytes).hex(' ')}) of it: {what}")
