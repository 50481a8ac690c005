"""A child process with a console: its output is read up to a text, with a deadline, and commands are sent to it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import Self

DEADLINE = 30.0
KVMPY = (sys.executable, "-m", "kvmpy")
NOBODY = 65534
# An ordinary user, who may read what root has installed for itself.
AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip


class Console:
    """Use as a context manager: the child is gone afterwards."""

    def __init__(self, *command: str, stdin: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.output = b""

    def send(self, text: str) -> None:
        """Write to the child's standard input."""
        assert self.process.stdin
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def read_until(self, text: str) -> bytes:
        """Return the output up to and with `text`; TimeoutError with what came when it does not appear."""
        wanted = text.encode()
        end = time.monotonic() + DEADLINE
        while wanted not in self.output:
            if not self._read_some(end - time.monotonic()):
                raise TimeoutError(f"no {text!r} in the output: {self.output!r}")
        found, _, self.output = self.output.partition(wanted)
        return found + wanted

    def _read_some(self, seconds: float) -> bool:
        assert self.process.stdout
        fd = self.process.stdout.fileno()
        if seconds <= 0 or not select.select([fd], [], [], seconds)[0]:
            return False
        data = os.read(fd, 65536)
        self.output += data
        return bool(data)

    def finish(self) -> tuple[bytes, bytes, int]:
        """Close standard input, wait for the end; return the rest of the output, standard error, and the exit code."""
        rest, errors = self.process.communicate(timeout=DEADLINE)
        return self.output + rest, errors, self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        self.process.wait()


def kvmpy(*arguments: str, input: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command line to its end."""
    return subprocess.run([*KVMPY, *arguments], input=input, capture_output=True, timeout=DEADLINE, **options)  # type: ignore[call-overload,no-any-return]


def one_line(errors: bytes) -> str:
    """Return standard error, which must be one clear line."""
    text = errors.decode()
    assert text.startswith("kvmpy: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text
