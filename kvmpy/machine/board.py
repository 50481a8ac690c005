"""The board: which devices a PC has, and where."""

from __future__ import annotations

import sys
from collections import deque

from kvmpy.devices.acpi_pm import AcpiPm
from kvmpy.devices.base import IrqLine
from kvmpy.devices.cmos_rtc import CmosRtc
from kvmpy.devices.debug_exit import DebugExit
from kvmpy.devices.debugcon import DebugConsole
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.post_code import PostCode
from kvmpy.devices.reset_control import ResetControl
from kvmpy.devices.uart16550 import Uart16550
from kvmpy.machine.stop import Stop, StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.machine import Machine

COM1_PORT, COM1_IRQ = 0x3F8, 4
DEBUGCON_PORT = 0xE9
# A VM that ever coalesced takes 14 ms to close on some hosts, as long as this many bytes take one by one.
COALESCE_AFTER = 1000


class Board:
    """The devices of a machine, wired to its bus and to its stop button."""

    def __init__(self, machine: Machine) -> None:
        self._vm = machine.vm
        self._stop = machine.stop
        self._machine = machine
        self._coalescible: set[int] = set()  # ports whose writes may be collected now
        self._left_single = COALESCE_AFTER if machine.coalesce else sys.maxsize
        self._post = machine.events.post
        self._input: deque[bytes] = deque()
        self.uart = Uart16550(
            IrqLine(COM1_IRQ, machine.chips.set_line),
            self._print,
            on_room=self._feed,
            on_coalescible_change=lambda on: self._set_coalescing(COM1_PORT, on),
        )
        ports = machine.bus.ports
        ports.add(self.uart, COM1_PORT, 8)
        ports.add(DebugConsole(self._print), DEBUGCON_PORT, 1)
        ports.add(DebugExit(self._exit), 0xF4, 4)
        ports.add(PostCode(), 0x80, 1)
        ports.add(CmosRtc(machine.memory.size, cpus=len(machine.vcpus)), 0x70, 2)
        i8042 = I8042(reset=lambda: self._reset("the keyboard controller's reset line"))
        ports.add(i8042, 0x60, 1)
        ports.add(i8042, 0x64, 1, offset=4)
        ports.add(ResetControl(reset=lambda: self._reset("the reset control register")), 0xCF8, 4)
        ports.add(AcpiPm(power_off=self._power_off), 0x600, 6)
        self._set_coalescing(DEBUGCON_PORT, True)
        self._set_coalescing(COM1_PORT, self.uart.coalescible)

    def send(self, data: bytes) -> None:
        """Queue serial input. Any thread may call it: the UART gets it from the machine's own."""
        self._input.append(bytes(data))
        self._post(self._feed)

    @property
    def waiting(self) -> int:
        """How many bytes of serial input the guest has not taken yet."""
        return sum(map(len, self._input))

    def _feed(self) -> None:
        while self._input and self.uart.room:
            data = self._input.popleft()
            taken = self.uart.receive(data)
            if taken < len(data):
                self._input.appendleft(data[taken:])

    def _print(self, data: bytes) -> None:
        self._machine.output(data)
        if self._left_single > 0:
            self._left_single -= len(data)
            if self._left_single <= 0:
                for port in self._coalescible:
                    self._vm.coalesce(port, True)

    def _set_coalescing(self, port: int, on: bool) -> None:
        if on:
            self._coalescible.add(port)
        else:
            self._coalescible.discard(port)
        if self._left_single <= 0:
            self._vm.coalesce(port, on)

    def _exit(self, code: int) -> None:
        self._stop(Stop(StopKind.EXIT, f"the guest wrote {code} to the debug-exit port", code=code))

    def _reset(self, cause: str) -> None:
        self._stop(Stop(StopKind.RESET, f"the guest reset the machine by {cause}"))

    def _power_off(self) -> None:
        self._stop(Stop(StopKind.POWER_OFF, "the guest switched the machine off by ACPI"))
