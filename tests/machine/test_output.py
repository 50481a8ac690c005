"""Output to descriptors that are slow, full, closed or somebody else's, and input from callbacks."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from machines import loaded

from kvmpy.accel.base import Accelerator
from kvmpy.machine.machine import Machine
from kvmpy.machine.output import QUEUE_LIMIT, OutputWriter
from kvmpy.machine.stop import Stop, StopKind

FLOOD = "again: mov al, 'x'\nout 0xe9, al\njmp again"
COUNT = 3 * QUEUE_LIMIT
COUNTED_FLOOD = f"mov ecx, {COUNT}\nagain: mov al, cl\nout 0xe9, al\ndec ecx\njnz again\nhlt"
COUNTED = bytes(n & 0xFF for n in range(COUNT, 0, -1))


class Pipe:
    """A pipe of one page whose reader may be slow."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, 4096)

    def close_reader(self) -> None:
        os.close(self.read)
        self.read = -1

    def close(self) -> None:
        for fd in (self.read, self.write):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def writer_of(machine: Machine, fd: int) -> OutputWriter:
    def closed() -> None:
        machine.stop(Stop(StopKind.OUTPUT_CLOSED, "closed"))

    writer = OutputWriter(fd, hold=machine.hold, release=machine.gate.release, closed=closed)
    machine.output = writer.write
    return writer


def read_all(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += os.read(fd, 65536)
    return bytes(data)


def when_full(machine: Machine, action: Callable[[], None]) -> None:
    """Look every 10 ms whether the vCPU waits for room in the output; then call `action`, and stop the machine."""
    if machine.gate.holders:
        action()
        machine.stop(Stop(StopKind.QUIT, "full"))
    else:
        machine.events.call_at(time.monotonic() + 0.01, lambda: when_full(machine, action))


def test_a_full_pipe_holds_the_guest_up_and_nothing_is_lost(accelerator: Accelerator, pipe: Pipe) -> None:
    """The deadline comes while the vCPU waits for room; then somebody reads, and the guest goes on where it was."""
    with loaded(accelerator, COUNTED_FLOOD, mode="protected") as machine, writer_of(machine, pipe.write) as writer:
        when_full(machine, lambda: None)
        assert machine.run(timeout=30).detail == "full"
        assert machine.gate.holders == {"output"}
        entries = machine.vcpus[0].entries
        assert machine.run(timeout=0.2).kind == StopKind.TIMEOUT
        assert machine.vcpus[0].entries - entries <= 2  # it never was in the guest
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_all(pipe.read, COUNT)))
        reader.start()
        assert machine.run(timeout=60).kind == StopKind.HALT
        writer.finish(lambda: False)
        reader.join()
    assert got == [COUNTED]


def test_a_stop_wakes_a_vcpu_that_waits_for_room(accelerator: Accelerator, pipe: Pipe) -> None:
    with loaded(accelerator, FLOOD) as machine, writer_of(machine, pipe.write):
        when_full(machine, lambda: None)
        assert machine.run(timeout=30).detail == "full"


def test_input_arrives_while_a_vcpu_waits_for_room(accelerator: Accelerator, pipe: Pipe) -> None:
    """Nobody reads what the guest says, and still the loop takes what is sent to it."""
    with loaded(accelerator, FLOOD) as machine, writer_of(machine, pipe.write):
        when_full(machine, lambda: machine.send(b"hello"))
        assert machine.run(timeout=30).detail == "full"
        assert machine.board.waiting == 5


def test_a_reader_that_went_away_stops_the_machine(accelerator: Accelerator, pipe: Pipe) -> None:
    with loaded(accelerator, FLOOD) as machine, writer_of(machine, pipe.write) as writer:
        machine.events.call_at(time.monotonic() + 0.2, pipe.close_reader)
        assert machine.run(timeout=30).kind == StopKind.OUTPUT_CLOSED
        writer.finish(lambda: False)
        assert writer.broken
        assert not machine.gate.holders


def idle_writer(fd: int) -> OutputWriter:
    return OutputWriter(fd, hold=lambda _who: None, release=lambda _who: None, closed=lambda: None)


def test_finish_waits_for_a_slow_reader_until_told_otherwise(pipe: Pipe) -> None:
    with idle_writer(pipe.write) as writer:
        writer.write(b"x" * 20_000)
        asked: list[bool] = []

        def give_up() -> bool:
            asked.append(True)
            return len(asked) > 5

        writer.finish(give_up)
        assert len(asked) > 5


def test_finish_goes_on_while_the_reader_reads_though_the_time_is_over(pipe: Pipe) -> None:
    with idle_writer(pipe.write) as writer:
        writer.write(b"y" * 50_000)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_all(pipe.read, 50_000)))
        reader.start()
        writer.finish(lambda: True)
        reader.join(20)
    assert [len(data) for data in got] == [50_000]


def test_a_descriptor_that_somebody_made_nonblocking_is_written_all_the_same(pipe: Pipe) -> None:
    os.set_blocking(pipe.write, False)
    with idle_writer(pipe.write) as writer:
        writer.write(b"z" * 30_000)
        assert read_all(pipe.read, 30_000) == b"z" * 30_000
        writer.finish(lambda: False)
        assert not writer.broken
    assert not os.get_blocking(pipe.write)  # the flag is not ours to change


def test_a_line_without_an_end_comes_out_soon(pipe: Pipe) -> None:
    with idle_writer(pipe.write) as writer:
        writer.write(b"> ")
        assert os.read(pipe.read, 10) == b"> "


def test_a_closed_descriptor_is_told_once() -> None:
    told: list[bool] = []
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    with OutputWriter(write, hold=lambda _w: None, release=lambda _w: None, closed=lambda: told.append(True)) as writer:
        writer.write(b"x\n")
        writer.finish(lambda: False)
        writer.write(b"y\n")
        writer.finish(lambda: False)
    assert told == [True]


def test_a_writer_that_is_stuck_can_be_left(pipe: Pipe) -> None:
    before = threading.active_count()
    with idle_writer(pipe.write) as writer:
        writer.write(b"x" * 100_000)
    assert threading.active_count() == before


def test_an_output_callback_may_send_input(accelerator: Accelerator) -> None:
    """Each byte that the guest prints is sent back to it, until it has seen three."""
    source = """
        mov cl, 3
        mov al, 'a'
    next: mov dx, 0x3f8
        out dx, al
    wait: mov dx, 0x3fd
        in al, dx
        test al, 1
        jz wait
        mov dx, 0x3f8
        in al, dx
        inc al
        dec cl
        jnz next
        out 0xf4, al
    """
    with loaded(accelerator, source) as machine:
        machine.output = machine.send
        assert machine.run(timeout=10).code == ord("d")


def test_output_callbacks_may_stop_or_close(accelerator: Accelerator) -> None:
    with loaded(accelerator, FLOOD, coalesce=False) as machine:
        machine.output = lambda _data: machine.stop(Stop(StopKind.QUIT, "enough"))
        assert machine.run(timeout=10).detail == "enough"
        machine.output = lambda _data: machine.close()
        assert machine.run(timeout=10).detail == "the machine was closed"
