"""The machine's events: timers, descriptors, the deadline; and the gate where vCPUs wait."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from machines import loaded

from kvmpy.accel.base import Accelerator
from kvmpy.kvm.lock import Lock
from kvmpy.machine.events import Events, Flag, Gate
from kvmpy.machine.stop import StopKind


@pytest.fixture
def lock() -> Lock:
    return Lock()


@pytest.fixture
def events(lock: Lock) -> Iterator[Events]:
    loop = Events(lock)
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        os.close(fd)


def in_time() -> float:
    return time.monotonic() + 10


def test_timers_fire_in_their_order_and_not_before_their_time(events: Events) -> None:
    start = time.monotonic()
    fired: list[tuple[str, float]] = []
    for name, after in (("late", 0.03), ("soon", 0.01), ("at once", 0.0), ("late too", 0.03)):
        events.call_at(start + after, lambda name=name: fired.append((name, time.monotonic())))  # type: ignore[misc]
    assert events.run(lambda: len(fired) == 4, in_time())
    assert [name for name, _ in fired] == ["at once", "soon", "late", "late too"]
    assert fired[1][1] >= start + 0.01
    assert fired[2][1] >= start + 0.03


def test_a_cancelled_timer_does_not_fire(events: Events) -> None:
    fired: list[str] = []
    timer = events.call_at(time.monotonic() + 0.005, lambda: fired.append("cancelled"))
    events.call_at(time.monotonic() + 0.01, lambda: fired.append("kept"))
    timer.cancel()
    assert events.run(lambda: bool(fired), in_time())
    assert fired == ["kept"]


def test_the_deadline_ends_it(events: Events) -> None:
    start = time.monotonic()
    assert not events.run(lambda: False, start + 0.05)
    assert time.monotonic() >= start + 0.05


def test_a_descriptor_is_watched_until_its_callback_says_no(events: Events, pipe: tuple[int, int]) -> None:
    read, write = pipe
    got: list[bytes] = []

    def ready() -> bool:
        got.append(os.read(read, 1))
        return len(got) < 3

    events.add_fd(read, ready)
    os.write(write, b"abcd")
    assert not events.run(lambda: len(got) > 3, time.monotonic() + 0.05)
    assert got == [b"a", b"b", b"c"]


def test_a_descriptor_can_be_given_back(events: Events, pipe: tuple[int, int]) -> None:
    events.add_fd(pipe[0], lambda: pytest.fail("not watched any longer"))
    events.remove_fd(pipe[0])
    events.remove_fd(pipe[0])
    os.write(pipe[1], b"x")
    assert not events.run(lambda: False, time.monotonic() + 0.02)


def test_another_thread_can_post_and_wake(events: Events) -> None:
    done: list[int] = []
    threads = [threading.Thread(target=events.post, args=(lambda i=i: done.append(i),)) for i in range(5)]
    for thread in threads:
        thread.start()
    assert events.run(lambda: len(done) == 5, in_time())
    for thread in threads:
        thread.join()


def test_callbacks_have_the_lock(events: Events, lock: Lock) -> None:
    seen: list[bool] = []
    events.post(lambda: seen.append(lock.acquire_within(0)))
    assert events.run(lambda: bool(seen), in_time())
    assert seen == [False]
    assert lock.acquire_within(0)
    lock.release()


def test_a_lock_that_is_never_free_does_not_hold_the_deadline_up_and_nothing_spins(
    events: Events, lock: Lock, pipe: tuple[int, int]
) -> None:
    called: list[str] = []
    events.add_fd(pipe[0], lambda: called.append("readable"))
    events.call_at(time.monotonic(), lambda: called.append("timer"))
    os.write(pipe[1], b"x")
    start = time.monotonic()
    with lock:
        assert not events.run(lambda: False, start + 0.3)
    assert time.monotonic() - start < 5
    assert events.wakeups < 60
    assert not called
    assert events.run(lambda: len(called) >= 2, in_time())


def test_an_exception_comes_out_and_the_rest_is_served_later(events: Events) -> None:
    served: list[int] = []
    events.post(lambda: 1 // 0)
    events.post(lambda: served.append(1))
    with pytest.raises(ZeroDivisionError):
        events.run(lambda: False, in_time())
    assert events.run(lambda: bool(served), in_time())


def test_a_closed_loop_does_nothing() -> None:
    events = Events(Lock())
    events.close()
    events.close()
    events.wake()
    events.post(lambda: None)


def test_a_closed_flag_does_not_touch_its_old_number() -> None:
    flag = Flag()
    number = flag.fd
    flag.close()
    reused = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert reused == number
        flag.up()
        flag.down()
        flag.close()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(reused)
    finally:
        os.close(reused)


def test_the_gate_lets_go_when_nobody_holds(lock: Lock) -> None:
    gate = Gate()
    gate.hold("one")
    gate.hold("two")
    passed = threading.Event()

    def pass_through() -> None:
        with lock:
            gate.wait(lock, lambda: False)
        passed.set()

    waiter = threading.Thread(target=pass_through)
    waiter.start()
    gate.release("one")
    assert not passed.wait(0.02)
    with lock:  # who waits at the gate does not have it
        pass
    gate.release("two")
    assert passed.wait(10)
    waiter.join()
    gate.close()


def test_a_held_machine_can_be_stopped_and_goes_on_when_it_is_released(accelerator: Accelerator) -> None:
    with loaded(accelerator, "mov al, 5\nout 0xf4, al") as machine:
        machine.hold("test")
        assert machine.run(timeout=0.1).kind == StopKind.TIMEOUT
        assert machine.run(timeout=0.1).kind == StopKind.TIMEOUT
        machine.events.call_at(time.monotonic() + 0.05, lambda: machine.gate.release("test"))
        assert machine.run(timeout=10).code == 5


def test_a_callback_of_the_loop_may_stop_or_break_the_run(accelerator: Accelerator) -> None:
    with loaded(accelerator, "again: jmp again") as machine:
        machine.events.call_at(time.monotonic() + 0.02, lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            machine.run(timeout=10)
        assert machine.run(timeout=0.05).kind == StopKind.TIMEOUT
