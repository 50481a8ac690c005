"""Lock: the mutual exclusion that a vCPU thread gives up while its guest runs."""

from __future__ import annotations

from kvmpy.kvm.binding import ffi, lib


class Lock:
    """A pthread mutex, held by every vCPU thread except inside the guest; see `VcpuFd.share()`.

    Not recursive. A thread that waits for it does so without the GIL.
    """

    def __init__(self) -> None:
        self.mutex = ffi.new("pthread_mutex_t *")
        lib.pthread_mutex_init(self.mutex, ffi.NULL)

    @property
    def address(self) -> int:
        """Where the mutex lies: other compiled modules take it by address."""
        address: int = int(ffi.cast("uintptr_t", self.mutex))
        return address

    def acquire(self) -> None:
        """Take the lock."""
        lib.pthread_mutex_lock(self.mutex)

    def acquire_within(self, seconds: float) -> bool:
        """Take the lock; return False when that was not possible in time."""
        return not lib.kvmpy_lock_within(self.mutex, int(seconds * 1e9))

    def release(self) -> None:
        """Give the lock back; only the thread that took it may."""
        lib.pthread_mutex_unlock(self.mutex)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
