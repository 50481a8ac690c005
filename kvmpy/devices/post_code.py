"""Port 0x80: the POST code display, which guests also write for a short delay."""

from __future__ import annotations

from kvmpy.devices.base import Device


class PostCode(Device):
    """Keeps the last byte written."""

    name = "POST code"

    def __init__(self) -> None:
        self.code = 0xFF

    def read(self, offset: int, size: int) -> int:
        """Return the code on display."""
        return self.code

    def write(self, offset: int, size: int, value: int) -> None:
        """Show a new code."""
        self.code = value & 0xFF

    def state(self) -> dict[str, object]:
        """Return the code."""
        return {"code": self.code}

    def restore(self, state: dict[str, object]) -> None:
        """Take the code back."""
        self.code = int(str(state["code"])) & 0xFF
