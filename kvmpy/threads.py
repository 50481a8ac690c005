"""Start a thread, or say in one line that the host gives none."""

from __future__ import annotations

from kvmpy.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading


def start_thread(thread: threading.Thread, what: str) -> None:
    """Start a thread that `what` needs; HostError when the host's limits allow no more."""
    try:
        thread.start()
    except RuntimeError:
        raise HostError(
            f"{what}: the host gives no thread for it; raise the limit of this user's processes (ulimit -u)"
        ) from None
