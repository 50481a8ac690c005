"""`python -m kvmpy`, and the script `kvmpy`."""

from __future__ import annotations

import _signal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

INTERRUPTED = 128 + _signal.SIGINT


def start() -> NoReturn:
    """Run the command line.

    Ctrl-C while modules are still imported ends the process at once. Python's own exception would come out as a
    traceback, or not at all: what is raised while the import system is called back is ignored.
    """
    usual = _signal.getsignal(_signal.SIGINT)
    if usual == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from kvmpy.cli import main

    sys.exit(main(imported=lambda: _signal.signal(_signal.SIGINT, usual)))


if __name__ == "__main__":
    start()
