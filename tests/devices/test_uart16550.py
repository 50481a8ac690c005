"""The UART against a small model of the 16550A, written from the data sheet (PC16550D, section 8)."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvmpy.devices.base import IrqLine
from kvmpy.devices.uart16550 import Uart16550

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)


def make() -> tuple[Uart16550, bytearray, list[int]]:
    """Return a UART, what it sent, and the levels of its line."""
    sent, levels = bytearray(), [0]
    return Uart16550(IrqLine(4, lambda _gsi, level: levels.append(level)), sent.extend), sent, levels


class Against(RuleBasedStateMachine):
    """Does the same to the device and to a model that knows one thing at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.uart, self.sent, self.levels = make()
        self.fifo: list[int] = []
        self.expected = bytearray()
        self.ier = self.scratch = self.mcr = 0
        self.divisor, self.dlab, self.fifos, self.trigger = 12, False, False, 1
        self.empty_event = self.overrun = False
        self.uart.read(LSR, 1)  # the guest listens

    @property
    def loop(self) -> bool:
        return bool(self.mcr & 0x10)

    def cause(self) -> int:
        """Table 4: line status, data, time-out, THR empty, in this order."""
        if self.ier & 4 and self.overrun:
            return 0x06
        if self.ier & 1 and self.fifo:
            return 0x04 if not self.fifos or len(self.fifo) >= self.trigger else 0x0C
        if self.ier & 2 and self.empty_event:
            return 0x02
        return 0x00 if self.ier & 8 and self.uart.registers["msr"] & 0x0F else 0x01

    @rule(byte=st.integers(0, 255))
    def send(self, byte: int) -> None:
        self.uart.write(RBR, 1, byte)
        if self.dlab:
            self.divisor = self.divisor & 0xFF00 | byte
            return
        if self.loop:
            if len(self.fifo) < (16 if self.fifos else 1):
                self.fifo.append(byte)
            else:
                self.overrun = True
        else:
            self.expected.append(byte)
        self.empty_event = True

    @rule(data=st.binary(min_size=1, max_size=20))
    def receive(self, data: bytes) -> None:
        room = 0 if self.loop else (16 if self.fifos else 1) - len(self.fifo)
        assert self.uart.room == room
        assert self.uart.receive(data) == min(room, len(data))
        self.fifo += data[:room]

    @rule()
    def read(self) -> None:
        value = self.uart.read(RBR, 1)
        if self.dlab:
            assert value == self.divisor & 0xFF
        else:
            assert value == (self.fifo.pop(0) if self.fifo else 0)

    @rule(value=st.integers(0, 255))
    def enable(self, value: int) -> None:
        self.uart.write(IER, 1, value)
        if self.dlab:
            self.divisor = self.divisor & 0xFF | value << 8
            return
        if value & 2 and not self.ier & 2:
            self.empty_event = True  # 8.6: enabling THRE while THR is empty interrupts at once
        self.ier = value & 0x0F

    @rule(value=st.sampled_from([0, 1, 3, 0x41, 0x81, 0xC1, 0xC7]))
    def fifo_control(self, value: int) -> None:
        self.uart.write(IIR, 1, value)
        if bool(value & 1) != self.fifos or value & 2:
            self.fifo.clear()
        self.fifos = bool(value & 1)
        self.trigger = (1, 4, 8, 14)[value >> 6] if self.fifos else 1

    @rule(on=st.booleans())
    def latch(self, on: bool) -> None:
        self.uart.write(LCR, 1, 0x83 if on else 3)
        self.dlab = on

    @rule(value=st.integers(0, 31))
    def modem_control(self, value: int) -> None:
        self.uart.write(MCR, 1, value)
        self.mcr = value

    @rule(value=st.integers(0, 255))
    def scribble(self, value: int) -> None:
        self.uart.write(SCR, 1, value)
        self.scratch = value

    @rule()
    def identify(self) -> None:
        cause = self.cause()
        assert self.uart.read(IIR, 1) == cause | (0xC0 if self.fifos else 0)
        if cause == 0x02:
            self.empty_event = False

    @rule()
    def line_status(self) -> None:
        assert self.uart.read(LSR, 1) == 0x60 | bool(self.fifo) | (2 if self.overrun else 0)
        self.overrun = False

    @rule()
    def modem_status(self) -> None:
        """8.8: in loopback the lines are MCR's own: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD."""
        mcr = self.mcr
        looped = (mcr >> 1 & 1) << 4 | (mcr & 1) << 5 | (mcr >> 2 & 1) << 6 | (mcr >> 3 & 1) << 7
        assert self.uart.read(MSR, 1) & 0xF0 == (looped if self.loop else 0xB0)
        assert self.uart.read(MSR, 1) & 0x0F == 0  # the changes have been read

    @invariant()
    def the_rest_agrees(self) -> None:
        assert self.sent == self.expected
        assert self.uart.read(SCR, 1) == self.scratch
        assert self.uart.read(LCR, 1) == (0x83 if self.dlab else (3 if self.uart.registers["lcr"] else 0))
        wanted = self.cause() != 1 and bool(self.mcr & 8) and not self.loop  # OUT2 opens the line on a PC
        assert bool(self.levels[-1]) == wanted or self.loop


TestAgainstTheModel = Against.TestCase
TestAgainstTheModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_each_byte_sent_is_an_edge_of_the_line() -> None:
    """Writing THR takes back its interrupt, and the byte that leaves raises it again (data sheet, 8.6.2)."""
    uart, _, levels = make()
    uart.write(MCR, 1, 0x08)  # OUT2
    uart.write(IER, 1, 0x02)
    assert levels[-1] == 1
    before = len(levels)
    uart.write(RBR, 1, 0x41)
    assert levels[before:] == [0, 1]


def test_nothing_is_received_before_the_guest_listens() -> None:
    """Kept with the host, so that a guest that sets its port up late loses nothing."""
    uart, _, _ = make()
    assert (uart.room, uart.receive(b"x")) == (0, 0)
    uart.write(IER, 1, 1)
    assert (uart.room, uart.receive(b"xy")) == (1, 1)


@pytest.mark.parametrize(("mcr", "msr"), [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1F, 0xF0)])
def test_each_line_in_loopback(mcr: int, msr: int) -> None:
    uart, _, _ = make()
    uart.write(MCR, 1, mcr)
    assert uart.read(MSR, 1) & 0xF0 == msr


def test_changes_of_lines_are_told_once() -> None:
    """8.8: bits 3:0 say what changed since the last read; RI only when it falls."""
    uart, _, _ = make()
    uart.write(MCR, 1, 0x10)
    assert uart.read(MSR, 1) == 0x0B  # CTS, DSR and DCD fell
    uart.write(MCR, 1, 0x14)
    assert uart.read(MSR, 1) == 0x40  # RI rose: no change that counts
    uart.write(MCR, 1, 0x10)
    assert uart.read(MSR, 1) == 0x04


def test_its_state_goes_round() -> None:
    uart, _, _ = make()
    uart.read(LSR, 1)
    uart.write(IIR, 1, 0xC1)
    uart.receive(b"abc")
    uart.write(SCR, 1, 0x5A)
    other, _, _ = make()
    other.restore(uart.state())
    assert [other.read(RBR, 1) for _ in "abc"] == list(b"abc")
    assert other.read(SCR, 1) == 0x5A
