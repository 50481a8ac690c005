"""A user namespace only for its map of ids: what an idmapped mount shows its owners by (mount_setattr(2))."""

from __future__ import annotations

import posix

from kvmpy.container import operations as ops
from kvmpy.container.host import reason, write_file
from kvmpy.container.launch import Launch
from kvmpy.container.tape import Descriptors
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    IdMap = list[tuple[int, int, int]]


def open_user_namespace(uids: IdMap, gids: IdMap, where: str) -> int:
    """Return a descriptor of a new user namespace; the process that it was made by is gone.

    Raises:
        ContainerError: the kernel refuses the map; the message names the field `where`.
    """
    plan = [ops.Fork(["user"], 0), ops.TellReady()]
    with Launch(plan, Descriptors()) as launch:
        launch.start({})
        try:
            for name, ids in (("uid_map", uids), ("gid_map", gids)):
                write_file(f"/proc/{launch.pid}/{name}", "".join(f"{c} {h} {size}\n" for c, h, size in ids))
            return posix.open(f"/proc/{launch.pid}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError as error:
            raise ContainerError(f"{where}: the map of ids is refused: {reason(error)}") from None
        finally:
            launch.kill()
