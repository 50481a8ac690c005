"""What the demos of containers need of Linux that Python 3.11 lacks: unshare(2), and a child apart."""

from __future__ import annotations

import ctypes
import json
import os
import signal

from kvmpy.container.kernel import NAMESPACES
from kvmpy.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # <linux/mount.h>
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # <linux/prctl.h>
IN_NEW_PROCESSES = ("pid", "time")  # namespaces that only the children of who makes them are in (unshare(2))
_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library by name; OSError when it fails."""
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number).lower()}")
    return result


def unshare(*kinds: str) -> None:
    """Put this process, or for some kinds its future children, into new namespaces."""
    flags = 0
    for kind in kinds:
        flags |= NAMESPACES[kind]
    call("unshare", flags)


def become_root_inside(uid: int, gid: int) -> None:
    """In a new user namespace, map root's ids to those of who made it (user_namespaces(7))."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def apart(look: Callable[[], Any], *kinds: str, before: Callable[[], None] = lambda: None) -> Any:
    """Return what `look` sees in a child process that has new namespaces of these kinds.

    Without root a user namespace comes with them, which gives the right to make the others. `before` runs when they
    are made, in the child itself; `look` in the namespaces, where nothing it does is seen outside.

    Raises:
        HostError: the kernel refuses, and the message says what.
    """
    good, value = in_child(lambda: _look_apart(look, kinds, before))
    if not good:
        raise HostError(f"a new {' and '.join(kinds)} namespace: {value}" if kinds else str(value))
    return value


def _look_apart(look: Callable[[], Any], kinds: tuple[str, ...], before: Callable[[], None]) -> Any:
    uid, gid = os.geteuid(), os.getegid()
    with_user = bool(kinds) and uid != 0 and "user" not in kinds
    unshare(*(("user", *kinds) if with_user else kinds))
    if with_user or "user" in kinds:
        become_root_inside(uid, gid)
    if "mount" in kinds:
        call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)  # else the host would see what is mounted here
    before()
    if not any(kind in IN_NEW_PROCESSES for kind in kinds):
        return look()
    good, value = in_child(look)
    if not good:
        raise HostError(value)
    return value


def in_child(look: Callable[[], Any]) -> tuple[bool, Any]:
    """Return whether a function went well in a child process, and what it returned, or the reason."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.write(writer, json.dumps((True, look())).encode())
        except BaseException as error:
            os.write(writer, json.dumps((False, str(error))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        try:
            text = answers.read()
        except BaseException:  # Ctrl-C
            os.kill(pid, signal.SIGKILL)
            answers.read()  # to its end, which comes when nobody is left who does something
            raise
        finally:
            os.waitpid(pid, 0)
    good, value = json.loads(text) if text else (False, "the process was killed")
    return good, value
