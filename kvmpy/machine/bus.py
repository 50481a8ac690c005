"""Where devices sit: ports and MMIO as sorted ranges."""

from __future__ import annotations

from bisect import bisect_right

from kvmpy.errors import BusError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.devices.base import Device

PORT_LIMIT = 1 << 16
MMIO_LIMIT = 1 << 52
UNCLAIMED_LIMIT = 4096


def no_number(device: str, value: object) -> ConfigError:
    """Return the error of a device that answered a read with something else than a number."""
    return ConfigError(f"{device} answered a read with {value!r}: a device's read() must return an integer")


class AddressSpace:
    """One space of addresses, ports or MMIO, with the devices in it. What no device claims reads as all ones."""

    def __init__(
        self, name: str, limit: int, *, strict: bool = False, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self._changed = changed
        self.limit = limit
        self.strict = strict
        self.unclaimed: dict[tuple[str, int, int], int] = {}
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, Device, int]] = []

    def add(self, device: Device, start: int, size: int, *, offset: int = 0) -> None:
        """Place a device, its registers from `offset` on; ConfigError outside the space or over another device."""
        if start < 0 or size <= 0 or start + size > self.limit:
            raise ConfigError(f"{device.name} at {self.name} {start:#x}+{size:#x}: outside the address space")
        for other_start, other_end, other, _ in self._ranges:
            if start < other_end and other_start < start + size:
                raise ConfigError(f"{device.name} at {self.name} {start:#x}+{size:#x}: overlaps {other.name}")
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._ranges.insert(at, (start, start + size, device, start - offset))
        self._changed()

    def replace(self, start: int, device: Device) -> None:
        """Put another device in the place of the one whose range begins at `start`; ConfigError when there is none."""
        at = bisect_right(self._starts, start) - 1
        if at < 0 or self._starts[at] != start:
            raise ConfigError(f"{device.name} at {self.name} {start:#x}: no range begins there that it could replace")
        self._ranges[at] = (start, self._ranges[at][1], device, start)
        self._changed()

    def remove(self, start: int) -> Device:
        """Take away the range that begins at `start` and return its device; ConfigError when there is none."""
        at = bisect_right(self._starts, start) - 1
        if at < 0 or self._starts[at] != start:
            raise ConfigError(f"{self.name} {start:#x}: no range begins there that could be removed")
        del self._starts[at]
        _, _, device, _ = self._ranges.pop(at)
        self._changed()
        return device

    def devices(self) -> list[tuple[int, int, Device]]:
        """Return (start, end, device) of every range, in order; the end is exclusive."""
        return [(start, end, device) for start, end, device, _ in self._ranges]

    def find(self, address: int, size: int) -> tuple[Device, int] | None:
        """Return the device that claims the whole access, and its offset there."""
        i = bisect_right(self._starts, address) - 1
        if i < 0 or address + size > self._ranges[i][1]:
            return None
        _, _, device, base = self._ranges[i]
        return device, address - base

    def read(self, address: int, size: int) -> int:
        """Answer a read of `size` bytes."""
        found = self.find(address, size)
        if found:
            device, offset = found
            value = device.read(offset, size)
            if not isinstance(value, int):
                raise no_number(device.name, value)
            return value & (1 << 8 * size) - 1
        if size > 1 and self._touches(address, size):
            parts = (self.read(address + i, 1) << 8 * i for i in range(size))
            return sum(parts)
        self._miss("read", address, size)
        return (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """Take a write of `size` bytes."""
        found = self.find(address, size)
        if found:
            device, offset = found
            device.write(offset, size, value)
        elif size > 1 and self._touches(address, size):
            for i in range(size):
                self.write(address + i, 1, value >> 8 * i & 0xFF)
        else:
            self._miss("write", address, size)

    def write_many(self, address: int, size: int, data: bytes) -> None:
        """Take several writes to one address, in order."""
        found = self.find(address, size)
        if found:
            device, offset = found
            device.write_many(offset, size, data)
            return
        for i in range(0, len(data), size):
            self.write(address, size, int.from_bytes(data[i : i + size], "little"))

    def read_many(self, address: int, size: int, count: int) -> bytes:
        """Answer several reads of one address."""
        return b"".join(self.read(address, size).to_bytes(size, "little") for _ in range(count))

    def _touches(self, address: int, size: int) -> bool:
        """True when only a part of the access is claimed: the bus then splits it into bytes, as ISA did."""
        return any(self.find(address + i, 1) for i in range(size))

    def _miss(self, kind: str, address: int, size: int) -> None:
        if self.strict:
            raise BusError(
                f"{kind} of {size} bytes at {self.name} {address:#x}: no device; a bus that is not strict ignores it"
            )
        key = (kind, address, size)
        if key in self.unclaimed or len(self.unclaimed) < UNCLAIMED_LIMIT:
            self.unclaimed[key] = self.unclaimed.get(key, 0) + 1


class Bus:
    """Both address spaces of a machine. `changed` is called when a device was added, replaced or removed."""

    def __init__(self, *, strict: bool = False, changed: Callable[[], None] = lambda: None) -> None:
        self.ports = AddressSpace("port", PORT_LIMIT, strict=strict, changed=changed)
        self.mmio = AddressSpace("address", MMIO_LIMIT, strict=strict, changed=changed)

    def devices(self) -> dict[str, Device]:
        """Return every device by its name; further ones of the same name are NAME#2, NAME#3 …"""
        found: dict[str, Device] = {}
        for space in (self.ports, self.mmio):
            for _, _, device in space.devices():
                if device not in found.values():
                    same = sum(other.name == device.name for other in found.values())
                    found[f"{device.name}#{same + 1}" if same else device.name] = device
        return found
