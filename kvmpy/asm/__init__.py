"""Between assembly text and machine code: `assemble()` over Keystone, `disassemble()` over Capstone."""

from kvmpy.asm.assembler import Assembly, Line, Span, assemble
from kvmpy.asm.disassembler import Instruction, disassemble, format_address

__all__ = ["Assembly", "Instruction", "Line", "Span", "assemble", "disassemble", "format_address"]
