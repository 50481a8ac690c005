"""What the launcher starts: `python -I -S main.py VERB …`. It is compiled anew each time, and therefore short."""

import gc
import marshal
import posix
import sys
from _frozen_importlib_external import MAGIC_NUMBER

if __name__ == "__main__":
    gc.disable()  # the process lives for milliseconds
    for fd in (0, 1, 2):  # what the caller has closed must not become something of ours that the container inherits
        try:
            posix.fstat(fd)
        except OSError:
            posix.set_inheritable(posix.open("/dev/null", posix.O_RDWR), True)
    here = __file__.rpartition("/")[0]
    root = here.removesuffix("/kvmpy/container")
    sys.path.insert(0, root)
    try:
        archive = posix.open(f"{here}/native/modules", posix.O_RDONLY | posix.O_CLOEXEC)
        head = posix.read(archive, 16384)
    except OSError:
        head = b""
    if head.startswith(MAGIC_NUMBER):  # else another version of Python made it
        start, loader, modules = marshal.loads(head[len(MAGIC_NUMBER) :])
        names: dict[str, object] = {}
        exec(loader, names)
        names["install"](root, archive, start, modules)  # type: ignore[operator]
    from kvmpy.container.command_line import main

    main(sys.argv[1:])
