"""Standard output and error as they are: perhaps closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

# What a write to standard output answers when it cannot be done; whatever else commands do turns into a KvmpyError.
UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT)


def open_standard_descriptors() -> None:
    """Keep 0, 1 and 2 from being given to something else where the caller has closed them.

    Each is opened the wrong way round, so that reading standard input and writing standard output fail as before.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stdout is None:  # so that what is printed fails, and is not lost without a word
        sys.stdout = _writer(1)
    if sys.stderr is None:  # else print() and argparse would take standard output in its place
        sys.stderr = _writer(2)


# What stands for a character in a terminal or file that has no more than ASCII.
PLAIN = {
    "✓": "+", "✗": "x", "…": "...", "±": "+-", "µ": "u", "≤": "<=", "≥": ">=", "─": "-", "→": "->", "•": "*", "│": "|",
    "━": "-", "╸": "-", "⠋": "*",
}  # fmt: skip


def say_it_plainly() -> None:
    """Write characters that standard output has no code for (LC_ALL=C) as others, and never fail over one."""
    if sys.stdout is not None and sys.stdout.encoding.lower().replace("-", "") != "utf8":
        codecs.register_error("kvmpy-plain", _plain)
        sys.stdout.reconfigure(errors="kvmpy-plain")  # type: ignore[union-attr]


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


def _writer(fd: int) -> TextIO:
    return open(fd, "w", closefd=False)


def complain(text: str) -> None:
    """Write a line to standard error; where nobody can read it there is nobody to tell."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def forget_stdout() -> None:
    """Keep the interpreter from complaining at exit that it cannot flush standard output."""
    _forget(1)


def settle_stderr() -> None:
    """Write out what standard error still holds; where it takes nothing, forget it.

    What could not be written stays in Python's buffer. The interpreter tries once more when it ends, and makes its own
    exit code, 120, of the failure (Py_FinalizeEx): ours would be lost.
    """
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _forget(2)


def _forget(fd: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
