"""What the host writes, the software CPU executes: page by page it forgets what it has translated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy import SoftAccelerator
from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import Hlt, IoOut, MmioWrite
from kvmpy.accel.testbed import CODE, PT, Testbed
from kvmpy.asm import assemble
from kvmpy.cpu.modes import protected_mode
from kvmpy.memory import GuestMemory

NX = 1 << 63
FAR = 0x30_0000


@pytest.fixture(scope="module")
def soft() -> Iterator[SoftAccelerator]:
    with SoftAccelerator() as accelerator:
        yield accelerator


def returns(value: int) -> bytes:
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"  # mov eax, value; ret


@pytest.mark.parametrize("at", [CODE + 0x100, CODE + 0xFFD, 0x20000], ids=["same page", "two pages", "another page"])
def test_code_that_ran_and_was_written_over(soft: SoftAccelerator, at: int) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble(f"again: mov rbx, {at}\ncall rbx\nout 0x80, al\njmp again", origin=CODE).code)
        for value in (1, 2, 3, 250):
            bed.memory.write(at, returns(value))
            assert bed.go() == IoOut(0x80, 1, bytes([value]))


@pytest.mark.parametrize("says", [lambda m, at: m.changed(at, 6), lambda m, _: m.changed()], ids=["where", "anything"])
def test_code_written_by_a_view(soft: SoftAccelerator, says: object) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("again: mov rbx, 0x20000\ncall rbx\nout 0x80, al\njmp again", origin=CODE).code)
        view = bed.memory.view(0x20000, 6)
        for value in (1, 2, 3):
            view[:] = returns(value)
            says(bed.memory, 0x20000)  # type: ignore[operator]
            assert bed.go() == IoOut(0x80, 1, bytes([value]))
        view.release()


def test_many_pages_at_once(soft: SoftAccelerator) -> None:
    """More than are remembered one by one."""
    pages = 200
    calls = "\n".join(f"mov rbx, {0x20000 + 0x1000 * n}\ncall rbx\nadd edi, eax" for n in range(pages))
    with Testbed(soft, 64) as bed:
        bed.load(b"")
        bed.memory.write(0x100000, assemble(f"again: xor edi, edi\n{calls}\nhlt\njmp again", origin=0x100000).code)
        regs = bed.vcpu.regs
        regs.rip = 0x100000
        bed.vcpu.regs = regs
        for value in (1, 2):
            for n in range(pages):
                bed.memory.write(0x20000 + 0x1000 * n, returns(value))
            assert bed.go() == Hlt()
            assert bed.vcpu.regs.rdi == value * pages


def test_code_in_rom_that_the_host_writes_over(soft: SoftAccelerator) -> None:
    memory = GuestMemory(0x40000)
    memory.add(0x40000, 0x1000, readonly=True, name="rom")
    with Testbed(soft, 32, memory=memory) as bed:
        bed.load(
            assemble("again: mov ebx, 0x40000\ncall ebx\nout 0x80, al\nmov [ebx + 1], al\njmp again", bits=32).code
        )
        for value in (1, 2):
            memory.write(0x40000, returns(value))
            assert bed.go() == IoOut(0x80, 1, bytes([value]))
            assert bed.go() == MmioWrite(0x40001, 1, value)


def test_page_tables_that_the_host_writes(soft: SoftAccelerator) -> None:
    with Testbed(soft, 64) as bed:
        bed.load(assemble("again: mov al, [0x1f0000]\nout 0x80, al\njmp again", origin=CODE).code)
        for value in (1, 2):
            bed.memory.write(0x20000 * value, bytes([value]))
            bed.memory.write_int(PT + 0x1F0 * 8, 8, 0x20000 * value | 7)
            assert bed.go() == IoOut(0x80, 1, bytes([value]))


@pytest.mark.parametrize("flags", [0, NX], ids=["executable", "not executable"])
def test_code_that_the_guest_writes_by_another_address(soft: SoftAccelerator, flags: int) -> None:
    """Linux maps its text so: its own code at one address, all of memory, not executable, at another."""
    source = """
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x800               ; EFER.NXE
        wrmsr
        mov rbp, 0x1f0000           ; 0x10000 by its other address
        mov dword ptr [rbp + 0x800], 1
        mov rbx, 0x10100
        call rbx
        mov r8, rax
        mov byte ptr [rbp + 0x101], 11
        call rbx
        mov r9, rax
        mov byte ptr [rbp + 0x101], 111
        call rbx
        hlt
    """
    with Testbed(soft, 64) as bed:
        bed.load(assemble(source, origin=CODE).code)
        bed.memory.write_int(PT + 0x1F0 * 8, 8, 0x10000 | 7 | flags)
        bed.memory.write(0x10100, returns(1))
        assert bed.go() == Hlt()
        regs = bed.vcpu.regs
        assert (regs.r8, regs.r9, regs.rax) == (1, 11, 111)


def test_memory_that_is_added_later(accelerator: Accelerator) -> None:
    """Where a device was there is memory then; what was there stays as it is."""
    with GuestMemory(0x20000) as first, GuestMemory(0) as second, accelerator.create_vm() as vm:
        vm.add_memory(first)
        vcpu = vm.create_vcpu()
        first.write(
            0xC000, assemble(f"again: inc ebx\nmov [{FAR:#x}], ebx\nhlt\njmp again", bits=32, origin=0xC000).code
        )
        state = protected_mode(0xC000, 0x8000, gdt=0x800)
        vcpu.regs, vcpu.sregs = state.regs, state.sregs
        assert vcpu.run() == MmioWrite(FAR, 4, 1)
        assert vcpu.run() == Hlt()
        second.add(FAR, 0x1000)
        vm.add_memory(second)
        assert vcpu.run() == Hlt()
        assert second.read_int(FAR, 4) == 2
        vm.close()
