"""The small guests print what they promise."""

from __future__ import annotations

import pytest
from console import KVMPY, Console, kvmpy

pytestmark = pytest.mark.usefixtures("each_accelerator")


@pytest.mark.parametrize(
    ("guest", "output"),
    [
        ("hello.bin", b"Hello from real mode\n"),
        ("hello32.bin", b"Hello from protected mode\n"),
        ("hello64.bin", b"Hello from long mode\n"),
    ],
)
def test_hello(guest: str, output: bytes) -> None:
    done = kvmpy("boot", guest, "--timeout", "20")
    assert (done.stdout, done.stderr, done.returncode) == (output, b"", 0)


def test_compute_counts_the_primes() -> None:
    primes = [n for n in range(2, 100_000) if all(n % d for d in range(2, int(n**0.5) + 1))]
    done = kvmpy("boot", "compute.bin", "--timeout", "20")
    assert done.stdout == f"primes below 100000: {len(primes)}\n".encode()


def test_echo_sends_back_what_comes_and_ends_with_its_input() -> None:
    text = bytes(range(5, 256)) + b"a longer line\n" * 50
    done = kvmpy("boot", "echo.bin", "--timeout", "20", input=text)
    assert (done.stdout, done.returncode) == (text, 0)


def test_echo_answers_at_once() -> None:
    with Console(*KVMPY, "boot", "echo.bin", "--timeout", "20") as console:
        console.send("ping\n")
        assert console.read_until("\n") == b"ping\n"
        console.send("pong\n")
        assert console.read_until("\n") == b"pong\n"
