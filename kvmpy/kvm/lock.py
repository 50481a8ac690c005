"""Lock: the mutual exclusion that a vCPU thread gives up while its guest runs."""

from __future__ import annotations

from kvmpy.kvm.binding import ffi, lib


class Lock:
    """A pthread mutex, held by every vCPU thread except inside the guest; see `VcpuFd.exits()`.

    Not recursive. A thread that waits for it does so without the GIL.
    """

    def __init__(self) -> None:
        self.mutex = ffi.new("pthread_mutex_t *")
        lib.pthread_mutex_init(self.mutex, ffi.NULL)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take the lock; without `blocking` return False when another thread has it."""
        take = lib.pthread_mutex_lock if blocking else lib.pthread_mutex_trylock
        return not take(self.mutex)

    def release(self) -> None:
        """Give the lock back; only the thread that took it may."""
        lib.pthread_mutex_unlock(self.mutex)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
