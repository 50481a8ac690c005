"""The compiled module and the engine behind it: libunicorn, of exactly the version whose inside the C part knows."""

from __future__ import annotations

import functools
import os

from kvmpy.errors import HostError, NoAcceleratorError, UnsupportedError

try:
    from kvmpy.softcpu._softcpu import ffi as ffi
    from kvmpy.softcpu._softcpu import lib as lib
except ImportError as error:
    raise UnsupportedError(
        f"kvmpy's software CPU cannot be loaded ({error}); build it with 'pip install -e .' in the checkout"
    ) from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    CData = Any

WANTED = (2, 1, 4)
ADVICE = f"install it with 'pip install unicorn=={'.'.join(map(str, WANTED))}'"
LIBRARY = os.path.join("lib", "libunicorn.so.2")


@functools.cache
def load_engine() -> None:
    """Load libunicorn; NoAcceleratorError when it is missing or of another version than the one wanted."""
    from importlib.util import find_spec

    wanted = ".".join(map(str, WANTED))
    spec = find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise NoAcceleratorError(f"the software CPU needs unicorn {wanted}, which is not installed; {ADVICE}")
    path = os.path.join(spec.submodule_search_locations[0], LIBRARY)
    if not lib.soft_load_unicorn(path.encode()):
        raise NoAcceleratorError(f"the software CPU needs unicorn {wanted}: its library cannot be loaded; {ADVICE}")
    version = tuple(lib.soft_unicorn_version().to_bytes(4, "big")[:3])
    if version != WANTED:
        found = ".".join(map(str, version))
        raise NoAcceleratorError(f"the software CPU needs unicorn {wanted}, and {found} is installed; {ADVICE}")


def check(what: str, error: int) -> None:
    """Raise HostError when a call of the engine failed."""
    if error:
        reason = ffi.string(lib.soft_strerror(error)).decode() if error > 0 else "its state is not where it should be"
        raise HostError(f"{what} of the software CPU: {reason}; {ADVICE}")
