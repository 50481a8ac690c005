"""What was filled into an exit, checked before it reaches the guest."""

from __future__ import annotations

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.exits import Exit


def whole_answer(exit: Exit, value: object) -> int:
    """Return an answer that must be an integer; ConfigError when it is not."""
    if not isinstance(value, int):
        raise ConfigError(f"answer to {exit!r}: it must be an integer")
    return value


def bytes_answer(exit: Exit, value: object) -> bytes:
    """Return an answer that must be bytes; ConfigError when it is not."""
    if not isinstance(value, (bytes, bytearray)):
        raise ConfigError(f"answer to {exit!r}: data must be bytes")
    return bytes(value)
