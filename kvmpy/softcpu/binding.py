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

WANTED = "2.1.4"
ADVICE = f"install it with 'pip install unicorn=={WANTED}'"
LIBRARY = os.path.join("lib", "libunicorn.so.2")


@functools.cache
def load_engine() -> None:
    """Load libunicorn; NoAcceleratorError when it is missing or of another build than the one wanted."""
    from importlib.util import find_spec

    spec = find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise NoAcceleratorError(f"the software CPU needs unicorn {WANTED}, which is not installed; {ADVICE}")
    path = os.path.join(spec.submodule_search_locations[0], LIBRARY)
    loaded = lib.soft_load_unicorn(path.encode())
    if loaded == lib.SOFT_NOT_LOADED:
        raise NoAcceleratorError(f"the software CPU needs unicorn {WANTED}: its library cannot be loaded; {ADVICE}")
    if loaded != lib.SOFT_LOADED:
        raise NoAcceleratorError(
            f"the software CPU needs unicorn {WANTED} as PyPI has it for Linux on x86-64, and another build is "
            f"installed; remove it with 'pip uninstall unicorn', then {ADVICE}"
        )


def check(what: str, error: int) -> None:
    """Raise HostError when a call of the engine failed."""
    if error:
        reason = ffi.string(lib.soft_strerror(error)).decode() if error > 0 else "there is no memory"
        raise HostError(f"{what} of the software CPU: {reason}")
