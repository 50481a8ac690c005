"""What the launcher starts: `python -I -S main.py VERB …`, with nothing imported but this."""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # the process lives for milliseconds
    sys.path.insert(0, __file__.rpartition("/kvmpy/")[0])
    from kvmpy.container.command_line import main

    main(sys.argv[1:])
