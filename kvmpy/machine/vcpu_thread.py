"""The thread of a vCPU. It is kept between runs: making one costs a millisecond."""

from __future__ import annotations

import sys
import threading

from kvmpy.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Job = Callable[[], None]


class VcpuThread:
    """Does one job after another. It knows of a machine only while it has a job, so that a dropped machine can go."""

    def __init__(self, vcpu_id: int) -> None:
        self.idle = True
        self._jobs = Jobs()
        self.name = f"vcpu{vcpu_id}"
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self.name, daemon=True)
        start_thread(self._thread, f"vCPU {vcpu_id}")

    def start(self, job: Job, finished: Callable[[], None]) -> None:
        """Give the idle thread a job, which must not raise; `finished` is called behind it, in the thread."""
        self.idle = False

        def work() -> None:
            try:
                job()
            finally:
                self.idle = True
                finished()

        self._jobs.put(work)

    @property
    def is_current(self) -> bool:
        """True in the thread itself."""
        return self._thread is threading.current_thread()

    def where(self) -> str:
        """Return in which function the thread is, and where that stands."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None:
            return "nowhere"
        code = frame.f_code
        return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"

    def end(self, seconds: float) -> bool:
        """Let the thread end behind its job; return whether it did in time."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()


class Jobs:
    """Hands jobs from one thread to another, one at a time; None is the last. (The module `queue` is slow to load.)"""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._filled = threading.Lock()
        self._filled.acquire()

    def put(self, job: Job | None) -> None:
        """Give the next job; the one before must have been taken."""
        self._job = job
        self._filled.release()

    def get(self) -> Job | None:
        """Wait for a job and take it."""
        self._filled.acquire()
        job, self._job = self._job, None
        return job


def _work(jobs: Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job
