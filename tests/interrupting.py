"""Ctrl-C at a moment that a test chooses."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from console import DEADLINE

READ, POLL, SELECT = "0", "7", "270"  # <asm/unistd_64.h>; the C library's select(2) is pselect6


@contextmanager
def interrupted_in(call: str, is_so: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Interrupt this thread once it is blocked in a system call (proc(5), syscall) and something is so.

    A signal just before the call would set Python's mark, and the call would wait all the same.
    """
    blocked = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    ident, done = threading.get_ident(), threading.Event()

    def watch() -> None:
        end = time.monotonic() + DEADLINE
        while not done.is_set():
            if (is_so() and blocked.read_text().split()[0] == call) or time.monotonic() > end:
                signal.pthread_kill(ident, signal.SIGINT)
                return
            os.sched_yield()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
