"""What a machine waits for besides its guest: descriptors, timers, a deadline.

The thread that runs the loop never blocks. It writes nothing, and where callbacks need the VM's lock it tries for two
milliseconds at most, and again later. (A vCPU that exits often has the lock most of the time when another thread of
Python looks, for it waits for the interpreter with it; but it lets go within microseconds.) So a deadline, a signal or
`Machine.stop()` is seen at once, whatever the vCPUs and their devices do.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import threading
import time
from collections import deque
from functools import partial
from itertools import count

from kvmpy.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.kvm.lock import Lock

TRY_SECONDS = 0.002
FIRST_RETRY = 0.001  # seconds until the lock is tried again; doubled up to the last
LAST_RETRY = 0.016


class Flag:
    """Any thread may raise it, and a signal handler too; while it is up, its descriptor is readable.

    After `close()` all calls do nothing: the descriptor's number may belong to somebody else.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: the handler of a signal may interrupt the thread that holds it
        self._closed = False
        try:
            self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise HostError(f"eventfd: {reason}; raise the limit of open files (ulimit -n)") from None

    def up(self) -> None:
        """Raise the flag."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.fd, 1)

    def down(self) -> None:
        """Lower the flag."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.fd)

    def wait(self) -> None:
        """Block until the flag is up."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll()

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.fd)


class Timer:
    """A callback at a moment; see `Events.call_at()`."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Take it back; harmless when it has been called."""
        self.callback = None

    def fire(self) -> None:
        """Call back, unless cancelled."""
        if self.callback:
            self.callback()


class Events:
    """The loop. Its callbacks run in the thread that called `run()`, with the VM's lock held, one at a time.

    Any thread may call `call_at()`, `add_fd()`, `remove_fd()`, `post()` and `wake()`, callbacks and devices too.
    """

    def __init__(self, lock: Lock) -> None:
        self.wakeups = 0
        self._lock = lock
        self._flag = Flag()
        self._poll = select.poll()
        self._poll.register(self._flag.fd, select.POLLIN)
        self._watched: dict[int, Callable[[], object]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()  # keeps the order of timers of the same moment
        self._ready: deque[Callable[[], object]] = deque()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once `time.monotonic()` has reached `when`, in seconds; the loop's grain is a millisecond."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        self._flag.up()
        return timer

    def add_fd(self, fd: int, callback: Callable[[], object]) -> None:
        """Call `callback` whenever there is something to read (or the other end is gone), until it returns False."""
        self._watched[fd] = callback
        self._poll.register(fd, select.POLLIN)
        self._flag.up()

    def remove_fd(self, fd: int) -> None:
        """Watch the descriptor no longer; harmless when it was not watched."""
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def post(self, callback: Callable[[], object]) -> None:
        """Call `callback` soon, with the lock held; if the loop does not run, when it runs next."""
        self._ready.append(callback)
        self._flag.up()

    def wake(self) -> None:
        """Let the loop look again whether it is done."""
        self._flag.up()

    def run(self, done: Callable[[], bool], deadline: float | None = None) -> bool:
        """Run until `done()`; return False when `deadline` (of `time.monotonic()`) came first."""
        retry = FIRST_RETRY
        while not done():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            self._take_timers(now)
            busy = not self._serve()
            retry = min(2 * retry, LAST_RETRY) if busy else FIRST_RETRY
            if not done():
                self._wait(now, deadline, retry if busy else None)
        return True

    def _take_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            self._ready.append(timer.fire)

    def _serve(self) -> bool:
        """Call what is ready; False when the lock was not to be had."""
        if not self._ready:
            return True
        if not self._lock.acquire_within(TRY_SECONDS):
            return False
        try:
            for _ in range(len(self._ready)):  # what they post waits for the next round
                self._ready.popleft()()
        finally:
            self._lock.release()
        return True

    def _wait(self, now: float, deadline: float | None, retry: float | None) -> None:
        moments = [self._timers[0][0]] if self._timers else []
        moments += [deadline] if deadline is not None else []
        moments += [now + retry] if retry is not None else []
        timeout = max(0.0, min(moments) - now) * 1000 if moments else None
        if self._ready and retry is None:
            timeout = 0
        for fd, _ in self._poll.poll(timeout):
            if fd == self._flag.fd:
                self._flag.down()
            elif fd in self._watched:
                self._poll.unregister(fd)  # until it was served: else it would be ready all the time
                self._ready.append(partial(self._serve_fd, fd))
        self.wakeups += 1

    def _serve_fd(self, fd: int) -> None:
        callback = self._watched.get(fd)
        if callback is None:
            return
        if callback() is False:
            self._watched.pop(fd, None)
        elif fd in self._watched:
            self._poll.register(fd, select.POLLIN)

    def close(self) -> None:
        """Forget everything; nothing happens any longer."""
        self._watched.clear()
        self._timers.clear()
        self._ready.clear()
        self._flag.close()


class Gate:
    """Where vCPUs wait, out of the guest, while somebody holds them up. Opened for good when the machine stops."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open = Flag()
        self._open.up()
        self._holders: set[str] = set()

    @property
    def holders(self) -> frozenset[str]:
        """Who holds the vCPUs up."""
        return frozenset(self._holders)

    def hold(self, who: str) -> None:
        """Close the gate. Vcpus that are in the guest must be kicked to come here."""
        with self._lock:
            self._holders.add(who)
            self._open.down()

    def release(self, who: str) -> None:
        """Take one's hold back; the gate opens when nobody else has one."""
        with self._lock:
            self._holders.discard(who)
            if not self._holders:
                self._open.up()

    def open_for_good(self) -> None:
        """Let everybody through: the machine stops. What holds are in force counts again after `shut_again()`."""
        self._open.up()

    def shut_again(self) -> None:
        """Close the gate when there are holders: the machine runs again."""
        with self._lock:
            if self._holders:
                self._open.down()

    def wait(self, lock: Lock, stopping: Callable[[], bool]) -> None:
        """Wait for the gate to open, without `lock`, which the caller has."""
        while self._holders and not stopping():
            lock.release()
            try:
                self._open.wait()
            finally:
                lock.acquire()

    def close(self) -> None:
        """Release the descriptor."""
        self._open.close()
