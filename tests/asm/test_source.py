"""What is wrong with a source is told with its line, its column, and what was expected there."""

from __future__ import annotations

import pytest

from kvmpy.asm import assemble
from kvmpy.asm.tokens import number, strip_comments, text_of, tokens_of
from kvmpy.errors import AssemblyError

# A text, the column at which it goes wrong, and a part of what must be said. Most of them made Keystone hang, end the
# process, or take what nobody meant.
WRONG = {
    ".long [rax]": (7, "expected a number, a name or '('"),
    ".word 0xX8": (7, "'0xX8' is no integer"),
    ".byte %rax": (7, "'%' has no meaning here"),
    ".byte 0x1ffffffffffffffff": (7, "more than 64 bits"),
    ".word <<1": (7, "expected a number"),
    ".byte 1,\\": (9, "'\\' has no meaning here"),
    ".byte /1": (7, "expected a number"),
    ".byte *2": (7, "expected a number"),
    ".quad >>1": (7, "expected a number"),
    ".word 0x": (7, "'0x' is no integer"),
    ".byte lab+*4": (11, "expected a number"),
    ".long 1,,2": (9, "expected a number"),
    ".long": (6, "expected a number"),
    ".quad 1e5": (7, "'1e5' is no integer"),
    ".byte 09z": (7, "'09z' is no integer"),
    ".byte 300": (7, "does not fit in 1 byte"),
    ".equ X, 0x3,0000": (12, "expected the end of the line, found ','"),
    ".equ L, 10>0?0": (11, "'>' has no meaning here"),
    ".equ rax, 5": (6, "is a register"),
    ".equ 5, 5": (6, "expected a name"),
    ".equ A, B": (9, "'B' is not defined, or only later"),
    ".equ A, A": (9, "not defined, or only later"),
    ".equ N, 1 << 65": (11, "a shift by 65"),
    ".equ N, 1 / 0": (11, "a division by zero"),
    ".space lab": (8, "this must be known before any address is"),
    ".space 0x7fffffff": (8, "0 to 1048576 bytes"),
    ".fill 1, 2, 3, 4": (7, "expected 3 numbers at most"),
    ".balign 3": (9, "3 is no power of two"),
    ".org -1": (1, "bytes from 0x1000"),
    ".ascii text": (8, "expected a text in double quotes"),
    '.ascii "text': (8, "a text is not closed"),
    '.ascii "a\\q"': (10, "'\\q' is no escape"),
    ".text": (1, "directive .text is not known"),
    '.incbin "/etc/passwd"': (1, "directive .incbin is not known"),
    "[bits 32]": (1, "expected a label, a directive or an instruction"),
    "pr=nt:": (3, "'=' has no meaning here"),
    "mo= cr3, rax": (3, "'=' has no meaning here"),
    "FOO equ 5": (5, "write '.equ NAME, value'"),
    "1b: nop": (1, "expected a label"),
    "jmp 1b": (5, "labels have names"),
    "jmp $": (5, "the current address is '.'"),
    "jmp short lab": (5, "a jump is as short as it can be"),
    "jmp 8:/1": (7, "expected a number"),
    "jmp 8:lab": (1, "64-bit code has no far jump"),
    "ret lab:": (9, "expected a number"),
    "ret 0x123456789": (5, "does not fit in 2 bytes"),
    "push /1": (6, "expected a number"),
    "lock 1.5": (6, "expected an instruction behind 'lock', found '1'"),
    "lock -1": (6, "expected an instruction behind 'lock'"),
    "lock 09": (6, "expected an instruction behind 'lock'"),
    "lock nop": (1, "'nop' cannot be locked"),
    "lock add eax, 1": (1, "cannot be locked"),
    "rep + lab": (5, "expected an instruction behind 'rep'"),
    "rep add eax, 1": (1, "cannot be repeated"),
    "rep rep movsb": (1, "each once"),
    "stosb byte ptr [rsp]": (1, "takes no operands"),
    "mov [r8], ah": (1, "ah cannot be used beside r8"),
    "mov ah, r8b": (1, "ah cannot be used beside r8b"),
    "xchg ah, r8b": (1, "ah cannot be used beside r8b"),
    "movzx rax, ah": (1, "ah cannot be used beside rax"),
    "mov ah, spl": (1, "ah cannot be used beside spl"),
    "mov cr4, eax": (1, "no such instruction in this mode"),
    "movl eax, 5": (1, "there is no such instruction"),
    "mov $5, eax": (5, "'$' has no meaning here"),
    "mov eax, [rel lab]": (11, "write [rip + name]"),
    "mov rax, offset lab": (10, "a name is its address"),
    "mov eax,": (9, "expected a number"),
    "mov eax, 'ab'": (10, "more than one"),
    'mov eax, "x"': (10, "expected a number"),
    "mov eax, 0x1ffffffff": (1, "the number is not in it"),
    "mov al, 256": (1, "the number is not in it"),
    "mov al, lab": (9, "does not fit in 1 byte"),
    "mov eax, [rax": (14, "expected ']'"),
    "mov eax, []": (11, "expected a number"),
    "mov eax, [-rax]": (11, "'rax' cannot be subtracted"),
    "mov eax, [rax*3]": (15, "1, 2, 4 or 8 times"),
    "mov eax, [rax+rbx+rcx]": (19, "two registers at most"),
    "mov eax, [rsp*2]": (1, "the address is not in it"),
    "mov eax, [rip + lab + lab]": (23, "adds up addresses"),
    "mov eax, st(9)": (13, "expected a number from 0 to 7"),
    "pop rip": (1, "rip is not in it"),
    "iret": (1, "in 64-bit code say iretq or iretd"),
    "call rax, rbx": (1, "do not go with"),
    "jmp nowhere": (5, "'nowhere' is not defined"),
    "x: x: nop": (4, "'x' is defined already, in line 1"),
    "rax: nop": (1, "is a register"),
    "byte: nop": (1, "is a register or a size"),
    "eax": (1, "'eax' is no instruction"),
    "nop ; fine\n é": (2, "only printable ASCII"),
    "nop\0": (4, "only printable ASCII"),
    "(" * 60 + "1": (1, "expected a label"),
    ".byte " + "(" * 60 + "1": (57, "more than 50"),
    ".byte " + "-" * 5000 + "1": (57, "more than 50"),
    ".byte " + "9" * 5000: (7, "more than 64 bits"),
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_what_is_wrong_is_told_with_its_place(text: str) -> None:
    column, said = WRONG[text]
    line = 1 + text.count("\n")
    with pytest.raises(AssemblyError) as caught:
        assemble(f"{text}\nlab: nop", bits=64, origin=0x1000)
    message = str(caught.value)
    assert message.startswith(f"line {line}, column {column}: "), message
    assert said in message
    assert len(message) < 500


def test_the_line_is_that_of_the_source_with_comments_in_between() -> None:
    with pytest.raises(AssemblyError, match=r"^line 5, column 3: "):
        assemble("nop /* one\n two\n three */ nop2: nop\n\n  foo eax", bits=64)


def test_errors_that_only_show_once_all_is_placed_have_their_line_too() -> None:
    with pytest.raises(AssemblyError, match=r"^line 2, column 1: the target is 299 bytes away; this reaches"):
        assemble(f"nop\nloop far\n{'nop' + chr(10)}.space 298\nfar: nop", bits=64)


def test_a_source_that_is_too_long_is_refused() -> None:
    with pytest.raises(AssemblyError, match="4194304 is the most"):
        assemble("nop\n" * (1 << 21))


@pytest.mark.parametrize("text", ["", "; nothing", "\n\n", ".equ A, 5", "lab:"])
def test_a_source_without_code_is_refused(text: str) -> None:
    with pytest.raises(AssemblyError, match="no code"):
        assemble(text)


def test_comments_leave_columns_and_lines_where_they_are() -> None:
    text = "a /* b */ c ; d\n\"; text\" # e\n'/' // f\n/* g\nh */ i"
    lines = list(strip_comments(text))
    assert [line.rstrip() for line in lines] == ["a         c", '"; text"', "'/'", "", "     i"]
    assert list(map(len, lines)) == list(map(len, text.split("\n")))


@pytest.mark.parametrize(
    ("text", "value"), [("10", 10), ("0x10", 16), ("10h", 16), ("0b10", 2), ("0ffh", 255), ("0B1", 1), ("007", 7)]
)
def test_numbers(text: str, value: int) -> None:
    assert number(tokens_of(text)[0]) == value


def test_texts_and_their_escapes() -> None:
    r"""\x takes two digits, an octal number three; everything else is UTF-8."""
    assert text_of(tokens_of(r'"a\n\t\\\"\0\x41B\101é"')[0]) == b'a\n\t\\"\0AB' + b"A" + "é".encode()


def test_directives_write_what_they_say() -> None:
    source = (
        '.byte 1, -1, \'a\'\n.word 0x1234\n.long -2\n.quad lab\n.ascii "ab", "c"\n.asciz "d"\n.fill 2, 3, 0x010203\n'
    )
    source += ".space 2, 9\n.zero 1\nlab: .short 5\n.int 6"
    code = assemble(source, origin=0x1000).code
    place = 3 + 2 + 4 + 8 + 3 + 2 + 6 + 2 + 1
    expected = (
        b"\x01\xffa" + b"\x34\x12" + b"\xfe\xff\xff\xff" + (0x1000 + place).to_bytes(8, "little") + b"abc" + b"d\0"
    )
    assert code == expected + b"\x03\x02\x01" * 2 + b"\x09\x09" + b"\0" + b"\x05\0" + b"\x06\0\0\0"
