"""A guest's output on its way to a descriptor that may be slow, full or closed.

The vCPUs only queue it; a thread of its own writes. A queue that is full holds the vCPUs up until there is room again,
so nothing is lost; and as they wait out of the guest and without the VM's lock, the machine can still be stopped.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time

from kvmpy.errors import HostError
from kvmpy.machine.events import Flag
from kvmpy.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_LIMIT = 64 << 10
CHUNK = 4096  # a pipe that polls as writable takes this much without blocking (POSIX, PIPE_BUF)
LINE_SECONDS = 0.02  # how long the beginning of a line waits for the rest, where nobody watches each key
GRACE_SECONDS = 0.1  # how long a reader may pause when the guest's time is over
LOOK_SECONDS = 0.02
WHO = "output"


class OutputWriter:
    """Queues bytes with `write()` and writes them to `fd` in the background; use it as a context manager.

    `hold` and `release` are called with a name when the queue is full and when it has room again, `closed` when the
    descriptor takes nothing more (`broken` is true then, `why` says why). To a terminal bytes go at once, else by line.
    """

    def __init__(
        self, fd: int, *, hold: Callable[[str], None], release: Callable[[str], None], closed: Callable[[], None]
    ) -> None:
        self.broken = False
        self.why = ""
        self._fd = fd
        self._hold, self._release, self._closed = hold, release, closed
        self._eager = os.isatty(fd)
        self._lock = threading.Lock()
        self._queue = bytearray()
        self._full = False
        self._some = threading.Event()  # there is something
        self._due = threading.Event()  # a line has ended, or there is enough for a chunk
        self._empty = threading.Event()
        self._empty.set()
        self._ending = False
        self._abandoned = Flag()
        self._thread = threading.Thread(target=self._work, name="output", daemon=True)
        try:
            start_thread(self._thread, "output")
        except HostError:
            self._abandoned.close()
            raise

    def write(self, data: bytes) -> None:
        """Queue bytes; never blocks. A vCPU's thread calls it, with the VM's lock held."""
        with self._lock:
            if self.broken or self._ending:
                return
            self._queue += data
            self._empty.clear()
            if not self._full and len(self._queue) >= QUEUE_LIMIT:
                self._full = True
                self._hold(WHO)
            if len(self._queue) >= CHUNK or b"\n" in data:
                self._due.set()
        self._some.set()

    def finish(self, give_up: Callable[[], bool]) -> None:
        """Write what is queued, until it is empty or the descriptor closed; or the reader pauses and `give_up()`."""
        self._due.set()
        left, since = -1, time.monotonic()
        while not self._empty.wait(LOOK_SECONDS):
            now = time.monotonic()
            if len(self._queue) != left:
                left, since = len(self._queue), now
            elif give_up() and now - since > GRACE_SECONDS:
                return

    def close(self) -> None:
        """End the thread; what is still queued is lost."""
        self._ending = True
        self._abandoned.up()
        self._due.set()
        self._some.set()
        self._thread.join(GRACE_SECONDS)
        if not self._thread.is_alive():  # else it is inside a write to a pipe that another process filled
            self._abandoned.close()

    def __enter__(self) -> OutputWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while not self._ending:
            self._some.wait()
            if not self._eager:
                self._due.wait(LINE_SECONDS)
            self._some.clear()
            self._due.clear()
            while self._queue and not self._ending:
                self._write_chunk()

    def _write_chunk(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.register(self._abandoned.fd, select.POLLIN)
        poll.poll()
        if self._ending:
            return
        try:
            count = os.write(self._fd, self._queue[:CHUNK])
        except BlockingIOError:
            return
        except OSError as error:
            self._break(error)
            return
        with self._lock:
            del self._queue[:count]
            if not self._queue:
                self._empty.set()
            if self._full and len(self._queue) <= QUEUE_LIMIT // 2:
                self._full = False
                self._release(WHO)

    def _break(self, error: OSError) -> None:
        self.why = "closed" if error.errno in (errno.EPIPE, errno.EBADF) else os.strerror(error.errno or 0).lower()
        self._closed()
        with self._lock:
            self.broken = True
            self._queue.clear()
            self._empty.set()
            if self._full:
                self._release(WHO)
