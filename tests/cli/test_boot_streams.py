"""`kvmpy boot` between a slow reader, a fast writer and signals: it never hangs, and loses nothing."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import time

import pytest
from console import DEADLINE, KVMPY, Console, kvmpy, one_line

IRQCHIP = ("--irqchip", "none")  # a VM without chips is gone sooner
FLOOD = "again: mov al, 'x'\nout 0xe9, al\njmp again"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def test_stdout_closed_at_once(image) -> None:  # type: ignore[no-untyped-def]
    path = image("again: mov al, 'x'\nout 0xe9, al\njmp again")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*KVMPY, "boot", path, *IRQCHIP],
        stdout=write,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE,
    )
    os.close(write)
    assert done.returncode == 74
    one_line(done.stderr)


def test_stdout_not_open(image) -> None:  # type: ignore[no-untyped-def]
    command = " ".join([*KVMPY, "boot", image("mov al, 'x'\nout 0xe9, al\nhlt"), *IRQCHIP])
    done = subprocess.run(
        ["sh", "-c", f"{command} >&-"], capture_output=True, timeout=DEADLINE, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 74
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_other_descriptors_not_open(closed: str) -> None:
    command = " ".join([*KVMPY, "boot", "hello.bin"])
    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, timeout=DEADLINE, stdin=subprocess.DEVNULL
    )
    assert (done.stdout, done.returncode) == (b"Hello from real mode\n", 0)


def test_a_flood_into_a_slow_reader_ends_in_time(image) -> None:  # type: ignore[no-untyped-def]
    path = image("again: mov al, 'x'\nout 0xe9, al\njmp again")
    with Console(*KVMPY, "boot", path, *IRQCHIP, "--timeout", "0.5") as console:
        code = console.process.wait(DEADLINE)  # nobody reads: the pipe is full
        assert code == 124


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("source", ["again: jmp again", "again: mov al, 'x'\nout 0xe9, al\njmp again"])
def test_signals_while_the_guest_runs(image, number: signal.Signals, code: int, source: str) -> None:  # type: ignore[no-untyped-def]
    path = image("mov al, '!'\nout 0xe9, al\nmov al, 10\nout 0xe9, al\n" + source)
    with Console(*KVMPY, "boot", path, *IRQCHIP) as console:
        console.read_until("!")
        console.process.send_signal(number)

        end = time.monotonic() + DEADLINE
        while console._read_some(end - time.monotonic()):
            console.output = b""
        assert console.process.wait(DEADLINE) == code
        assert b"Traceback" not in console.process.stderr.read()


def test_signals_at_any_time_of_the_start() -> None:
    """SIGTERM after different delays: before main, while importing, while making the VM, while running."""
    for i in range(20):
        with Console(*KVMPY, "boot", "guest.bin") as console:
            try:
                console.process.wait(0.006 * i + 0.001)
            except subprocess.TimeoutExpired:
                console.process.terminate()
            code = console.process.wait(DEADLINE)
            assert code in (143, -signal.SIGTERM), i
            errors = console.process.stderr.read()
            assert code == -signal.SIGTERM or b"Traceback" not in errors, errors


# A pipe that nobody empties


class FullPipe:
    """Standard output of a child: a pipe that is full from the beginning, until `empty()`."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.write, False)
        self.filling = os.write(self.write, b"#" * 4096)
        os.set_blocking(self.write, True)

    def empty(self) -> None:
        assert os.read(self.read, self.filling) == b"#" * self.filling

    def close(self) -> None:
        os.close(self.read)
        if self.write >= 0:
            os.close(self.write)


@pytest.fixture
def full_pipe():  # type: ignore[no-untyped-def]
    pipe = FullPipe()
    yield pipe
    pipe.close()


def start(pipe: FullPipe, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*KVMPY, "boot", *arguments], stdin=stdin, stdout=pipe.write, stderr=subprocess.PIPE)


def ends(process: subprocess.Popen[bytes], code: int) -> bytes:
    """Wait for the child, which must not need more than the deadline; return its standard error."""
    try:
        _, errors = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert b"Traceback" not in errors
    return errors


def wait_until_it_writes(process: subprocess.Popen[bytes]) -> None:
    """Wait until the child's writer waits for room: one of its threads is called `output`, and polls."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        for task in os.listdir(f"/proc/{process.pid}/task"):
            with open(f"/proc/{process.pid}/task/{task}/wchan") as wchan:
                where = wchan.read()
            with open(f"/proc/{process.pid}/task/{task}/syscall") as syscall:
                call = syscall.read().split()[0]
            if task != str(process.pid) and ("poll" in where or call == "7"):
                return
        time.sleep(0.005)
    raise TimeoutError("the child never came to write")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_report_into_a_full_pipe_obeys_signals(full_pipe: FullPipe, number: signal.Signals, code: int) -> None:
    process = start(full_pipe, "hello.bin", "--json")
    wait_until_it_writes(process)
    process.send_signal(number)
    ends(process, code)


def test_a_report_into_a_full_pipe_obeys_the_deadline(full_pipe: FullPipe) -> None:
    ends(start(full_pipe, "hello.bin", "--json", "--timeout", "0.5"), 0)


def test_a_report_arrives_when_the_reader_wakes_up(full_pipe: FullPipe) -> None:
    process = start(full_pipe, "hello.bin", "--json")
    wait_until_it_writes(process)
    full_pipe.empty()
    ends(process, 0)
    assert b'"output": "Hello from real mode\\n"' in os.read(full_pipe.read, 65536)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_input_while_nobody_reads_the_output(image, full_pipe: FullPipe, number: signal.Signals, code: int) -> None:  # type: ignore[no-untyped-def]
    """The vCPU waits for room; standard input becomes readable; and a signal still ends it."""
    read, write = os.pipe()
    process = start(full_pipe, image(FLOOD), *IRQCHIP, stdin=read)
    os.close(read)
    wait_until_it_writes(process)
    os.write(write, b"typed into the void\n")
    process.send_signal(number)
    ends(process, code)
    os.close(write)


def test_the_deadline_holds_while_nobody_reads_and_somebody_types(image, full_pipe: FullPipe) -> None:  # type: ignore[no-untyped-def]
    read, write = os.pipe()
    process = start(full_pipe, image(FLOOD), *IRQCHIP, "--timeout", "1", stdin=read)
    os.close(read)
    wait_until_it_writes(process)
    os.write(write, b"x" * 1000)
    ends(process, 124)
    os.close(write)


COUNT = 200_000
LONG = f"mov ecx, {COUNT}\nagain: mov al, cl\nout 0xe9, al\ndec ecx\njnz again\nhlt"


def test_a_slow_reader_gets_everything(image) -> None:  # type: ignore[no-untyped-def]
    path = image(LONG, bits=32, origin=0x100000)
    with Console(*KVMPY, "boot", path, "--mode", "protected", *IRQCHIP) as console:
        process = console.process
        wait_until_it_writes(process)
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.close()
        data = process.stdout.read()
        assert process.wait(DEADLINE) == 0
    assert data == bytes(n & 0xFF for n in range(COUNT, 0, -1))


def test_a_guest_that_does_not_read_does_not_fill_memory(image) -> None:  # type: ignore[no-untyped-def]
    """Far more is piped in than may wait: the rest stays in the pipe."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with Console(*KVMPY, "boot", image("again: jmp again"), *IRQCHIP, "--timeout", "1", stdin=read) as console:
        os.close(read)
        taken = 0
        while console.process.poll() is None:
            if select.select([], [write], [], 0.05)[1]:
                try:
                    taken += os.write(write, bytes(65536))
                except BrokenPipeError:
                    break
        assert console.process.wait(DEADLINE) == 124
    os.close(write)
    assert taken <= 3 * 65536 + 65536  # what waits in kvmpy, and a pipe full


# Images that do not come


def test_a_pipe_without_a_writer_counts_against_the_timeout(tmp_path) -> None:  # type: ignore[no-untyped-def]
    fifo = tmp_path / "image"
    os.mkfifo(fifo)
    done = kvmpy("boot", str(fifo), "--timeout", "0.3")
    assert done.returncode == 124
    assert "allow more time" in one_line(done.stderr)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_pipe_without_a_writer_obeys_signals(tmp_path, number: signal.Signals, code: int) -> None:  # type: ignore[no-untyped-def]
    fifo = tmp_path / "image"
    os.mkfifo(fifo)
    with Console(*KVMPY, "boot", str(fifo)) as console:
        while not any(link(console.process.pid, fd) == str(fifo) for fd in range(3, 20)):
            time.sleep(0.005)
        console.process.send_signal(number)
        assert console.process.wait(DEADLINE) == code


def link(pid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


def test_an_image_that_comes_slowly_counts_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    fifo = tmp_path / "image"
    os.mkfifo(fifo)
    with Console(*KVMPY, "boot", str(fifo), "--timeout", "1") as console, open(fifo, "wb", buffering=0) as image:
        image.write(b"\xf4")  # and then nothing, though the pipe stays open
        assert console.process.wait(DEADLINE) == 124
        assert console.process.stderr
        assert b"1 bytes so far" in console.process.stderr.read()


def test_an_image_in_a_pipe_boots(tmp_path) -> None:  # type: ignore[no-untyped-def]
    fifo = tmp_path / "image"
    os.mkfifo(fifo)
    with Console(*KVMPY, "boot", str(fifo), "--timeout", "20") as console:
        with open(fifo, "wb") as image:
            image.write(b"\xb0\x05\xe6\xf4")  # mov al, 5; out 0xf4, al
        assert console.process.wait(DEADLINE) == 5


# A terminal that hangs up


@pytest.mark.parametrize(("ignored", "codes"), [("", (129,)), ("trap '' HUP; ", (0, 74))])
def test_a_terminal_that_hangs_up(tmp_path, ignored: str, codes: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    """SIGHUP ends it. Started with SIGHUP ignored it meets the end of input, or EIO, and ends in good order too."""
    errors = tmp_path / "errors"
    pid, master = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", f"{ignored}exec {' '.join(KVMPY)} boot guest.bin --timeout 25 2>{errors}"])
    seen = b""
    try:
        while b"\n> " not in seen:
            seen += os.read(master, 4096)
    finally:
        os.close(master)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in codes
    assert b"Traceback" not in errors.read_bytes()
