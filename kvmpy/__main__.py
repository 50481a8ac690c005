"""`python -m kvmpy`."""

import sys

try:
    from kvmpy.cli import main

    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
