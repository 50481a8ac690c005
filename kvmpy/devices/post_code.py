"""Port 0x80: the POST code display, which guests also write for a short delay."""

from __future__ import annotations

from kvmpy.devices.base import Register, RegisterDevice


class PostCode(RegisterDevice):
    """Keeps the last byte written."""

    name = "POST code"
    REGISTERS = (Register(0, "code", 0xFF),)
