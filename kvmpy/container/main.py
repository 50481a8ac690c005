"""What the launcher starts: `python -I -S main.py VERB …`, or the same out of an archive (archive.py)."""

import gc
import posix
import sys


def main() -> None:
    """Run the command line of this process, and end it."""
    for fd in (0, 1, 2):  # what the caller has closed must not become something of ours that the container inherits
        try:
            posix.fstat(fd)
        except OSError:
            posix.set_inheritable(posix.open("/dev/null", posix.O_RDWR), True)
    from kvmpy.container.command_line import main

    main(sys.argv[1:])


if __name__ == "__main__":
    gc.disable()  # the process lives for milliseconds
    sys.path.insert(0, __file__.removesuffix("/kvmpy/container/main.py"))
    main()
