"""This machine's own processor, executing programs of ring 3: what it does is right."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from types import TracebackType

from differential.program import PAGE, Outcome, Program

SOURCE = Path(__file__).with_name("native.c")
PROGRAM = struct.Struct(f"<Q16QQ512s{PAGE}s{PAGE}s{PAGE}s{PAGE}s")
OUTCOME = struct.Struct(f"<QQQ16QQQ512s{PAGE}s{PAGE}s")


class Native:
    """A process that executes what it is sent; a context manager."""

    def __init__(self, folder: Path) -> None:
        binary = folder / "native"
        command = ["gcc", "-O1", "-static-pie", "-fno-stack-protector", "-o", str(binary), str(SOURCE)]
        subprocess.run(command, check=True)
        self._process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Native:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, program: Program) -> Outcome:
        """Execute a program to its first exception."""
        p = program
        sent = PROGRAM.pack(p.bits, *p.registers, p.flags, p.fpu, p.page, p.data, p.rom, p.stack)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(sent)
        self._process.stdin.flush()
        vector, error, cr2, *rest = OUTCOME.unpack(self._process.stdout.read(OUTCOME.size))
        rip, flags, fpu, data, stack = rest[16:]
        return Outcome(vector, error, cr2, tuple(rest[:16]), rip, flags, fpu, data, stack)
