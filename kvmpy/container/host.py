"""What the runtime does with files, JSON and processes of the host: the little that modules in C do not give."""

from __future__ import annotations

import posix
from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

PIECE = 1 << 16
_numbers = iter(range(1 << 62))
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Reading:
    """How JSON is read; `json` itself would take 5 ms to import, the parser in C is all it is made of."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012  the name that the scanner wants


_scan = make_scanner(_Reading)  # type: ignore[arg-type]
_encode = make_encoder(None, None, encode_basestring_ascii, None, ":", ",", False, False, False)  # type: ignore[arg-type]
WHITE = " \t\r\n"


def parse_json(text: str) -> object:
    """Return the value of a JSON text; ValueError tells line and column of what is no JSON."""
    try:
        value, end = _scan(text, len(text) - len(text.lstrip(WHITE)))
        good = not text[end:].strip(WHITE)
    except (StopIteration, SystemError):
        good = False
    if good:
        return value
    import json  # slow, but it words what is wrong

    return json.loads(text)


def to_json(value: object) -> str:
    """Return a value as JSON in one line."""
    return "".join(_encode(value, 0))


def read_file(path: str, limit: int = 1 << 26) -> bytes:
    """Return what a file holds; OSError EFBIG when it is more than `limit` bytes."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOCTTY)
    try:
        data = b""
        while piece := posix.read(fd, max(PIECE, len(data))):
            data += piece
            if len(data) > limit:
                raise OSError(27, posix.strerror(27), path)
        return data
    finally:
        posix.close(fd)


def write_file(path: str, data: str | bytes, flags: int = posix.O_WRONLY, mode: int = 0o600) -> None:
    """Write to a file that is there; with more flags, to a new one."""
    data = data.encode() if isinstance(data, str) else data
    fd = posix.open(path, flags | posix.O_CLOEXEC, mode)
    try:
        while data:
            data = data[posix.write(fd, data) :]
    finally:
        posix.close(fd)


def replace_file(path: str, data: str | bytes, mode: int = 0o600) -> None:
    """Write a file so that nobody ever sees a part of it: under another name first."""
    new = f"{path}.{posix.getpid()}.{next(_numbers)}"
    try:
        write_file(new, data, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW, mode)
        posix.rename(new, path)
    except BaseException:
        remove(new)
        raise


def remove(path: str) -> None:
    """Remove a file that may be gone already."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass


def exists(path: str) -> bool:
    """Whether there is anything at a path."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def reason(error: OSError) -> str:
    """Return what the kernel says of a failure, to be put after a colon."""
    return posix.strerror(error.errno or 0).lower()


def is_directory(path: str) -> bool:
    """Whether a path leads to a directory; OSError when there is nothing."""
    return posix.stat(path).st_mode & 0o170000 == 0o040000


def make_directories(path: str, mode: int = 0o700) -> None:
    """Make a directory and what is missing above it; others may be doing the same."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        above = path.rpartition("/")[0]
        if not above or exists(above):
            raise
        make_directories(above, mode)
        make_directories(path, mode)


def absolute(path: str, base: str) -> str:
    """Return a path as seen from a directory, without `.`, `..` and doubled slashes; nothing is looked up."""
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{base}/{path}").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def process_fields(pid: int | str) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third on (proc(5)); the name before them may hold anything."""
    return read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def start_time(pid: int, ended: bool = False) -> int:
    """Return when a process started, in clock ticks since boot (proc(5), stat, field 22); 0 if it has ended.

    With the pid it names a process for good: a pid alone may be another's by now. With `ended` a process that only
    waits for its parent to take note counts too.
    """
    try:
        fields = process_fields(pid)
    except OSError:
        return 0
    return 0 if fields[0] in b"ZX" and not ended else int(fields[19])
