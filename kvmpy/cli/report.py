"""The JSON object that tells how something ran, the same for a virtual machine, a container and a process."""

from __future__ import annotations

from kvmpy.machine.stop import StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.stop import Stop

OUTPUT_LIMIT = 64 << 20


class Recorder:
    """Keeps the output for the report."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._truncated = False

    def write(self, data: bytes) -> None:
        """Take bytes of the guest or program."""
        room = OUTPUT_LIMIT - len(self._data)
        self._data += data[:room]
        self._truncated |= len(data) > room

    def report(self, stop: Stop, seconds: float, exit_code: int, **more: object) -> str:
        """Return the JSON object of a finished run; `code` is the program's own, if it ended with one."""
        import json

        return json.dumps(
            {
                "stop": stop.kind,
                "detail": stop.detail,
                "code": stop.code if stop.kind == StopKind.EXIT else None,
                "exit_code": exit_code,
                "seconds": round(seconds, 6),
                "output": self._data.decode(errors="replace"),
                "output_truncated": self._truncated,
                **more,
            }
        )
