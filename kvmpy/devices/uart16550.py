"""The serial port: a 16550A UART as PCs have it at 0x3F8 (National Semiconductor PC16550D data sheet, section 8).

Output leaves at once, so the transmitter is always empty; input waits in the FIFO until the guest reads it.
"""

from __future__ import annotations

from collections import deque

from kvmpy.devices.base import IrqLine, Register, RegisterDevice
from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IER_RECEIVE, IER_TRANSMIT, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_TRANSMIT, IIR_RECEIVE, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVE = 1, 2
TRIGGER_LEVELS = (1, 4, 8, 14)  # of FCR bits 7:6
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_DATA_READY, LSR_OVERRUN, LSR_TRANSMITTER_EMPTY = 0x01, 0x02, 0x60
MSR_DELTA, MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x0F, 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD
LOOPED = {MCR_RTS: MSR_CTS, MCR_DTR: MSR_DSR, MCR_OUT1: MSR_RI, MCR_OUT2: MSR_DCD}
FIFO_SIZE = 16


class Uart16550(RegisterDevice):
    """A 16550A. Bytes sent go to `output`; `receive()` gives it input.

    `on_room` is called when the receiver has room again, `on_coalescible_change` when `coalescible` changes.
    """

    name = "uart16550"
    REGISTERS = (
        Register(0, "data"),  # RBR and THR; DLL while LCR.DLAB is set
        Register(1, "ier", writable=0x0F),  # DLM while LCR.DLAB is set
        Register(2, "iir"),  # FCR when written
        Register(3, "lcr"),
        Register(4, "mcr", writable=0x1F),
        Register(5, "lsr", writable=0),
        Register(6, "msr", MSR_CONNECTED, writable=0),
        Register(7, "scr"),
    )

    def __init__(
        self,
        irq: IrqLine,
        output: Callable[[bytes], None],
        *,
        on_room: Callable[[], None] = lambda: None,
        on_coalescible_change: Callable[[bool], None] = lambda _on: None,
    ) -> None:
        super().__init__()
        self.registers |= {
            "fcr": 0,
            "dll": 12,
            "dlm": 0,
            "transmit_event": 0,
            "listening": 0,
        }  # 115200 / 12 = 9600 baud
        self.fifo: deque[int] = deque()
        self._irq = irq
        self._output = output
        self._on_room = on_room
        self._on_coalescible_change = on_coalescible_change

    # The host's side

    @property
    def room(self) -> int:
        """How many bytes `receive()` would take now: none in loopback, which cuts the line.

        And none before the guest listens, that is, reads LSR or enables the receiver's interrupt: piped input would be
        there before the guest has set its port up, and be lost when it clears the FIFO.
        """
        if self.registers["mcr"] & MCR_LOOP or not self.registers["listening"]:
            return 0
        return self._capacity - len(self.fifo)

    def receive(self, data: bytes) -> int:
        """Give the guest input; return how many bytes there was room for."""
        taken = data[: self.room]
        self.fifo.extend(taken)
        self._update_irq()
        return len(taken)

    @property
    def coalescible(self) -> bool:
        """True while nothing but output comes of a write to THR: no interrupt, no divisor latch, no loopback."""
        r = self.registers
        return not (r["ier"] & IER_TRANSMIT or r["lcr"] & LCR_DLAB or r["mcr"] & MCR_LOOP)

    # Registers

    def write(self, offset: int, size: int, value: int) -> None:
        """Write registers; tell when that changed whether writes to THR may be collected."""
        before = self.coalescible
        super().write(offset, size, value)
        if self.coalescible != before:
            self._on_coalescible_change(not before)

    def write_many(self, offset: int, size: int, data: bytes) -> None:
        """Send a run of bytes at once."""
        if offset == 0 and size == 1 and self.coalescible:
            self._output(data)
        else:
            super().write_many(offset, size, data)

    def read_data(self) -> int:
        """RBR: the oldest byte received."""
        if self.registers["lcr"] & LCR_DLAB:
            return self.registers["dll"]
        value = self.fifo.popleft() if self.fifo else 0
        self._on_room()
        self._update_irq()
        return value

    def write_data(self, value: int) -> None:
        """THR: send a byte. That takes back its interrupt; the byte leaves at once, and so THR is empty anew."""
        if self.registers["lcr"] & LCR_DLAB:
            self.registers["dll"] = value
            return
        if self.registers["transmit_event"]:
            self.registers["transmit_event"] = 0
            self._update_irq()
        if self.registers["mcr"] & MCR_LOOP:
            self._loop_back(value)
        else:
            self._output(bytes((value,)))
        self.registers["transmit_event"] = 1
        self._update_irq()

    def _loop_back(self, value: int) -> None:
        if len(self.fifo) < self._capacity:
            self.fifo.append(value)
        else:
            self.registers["lsr"] |= LSR_OVERRUN

    def read_ier(self) -> int:
        """Interrupt enables."""
        return self.registers["dlm" if self.registers["lcr"] & LCR_DLAB else "ier"]

    def write_ier(self, value: int) -> None:
        """Enable interrupts. Enabling the transmitter's while THR is empty raises it (data sheet, 8.6.2)."""
        if self.registers["lcr"] & LCR_DLAB:
            self.registers["dlm"] = value
            return
        if value & ~self.registers["ier"] & IER_TRANSMIT:
            self.registers["transmit_event"] = 1
        self.registers["ier"] = value & 0x0F
        if value & IER_RECEIVE:
            self._listen()
        self._update_irq()

    def read_iir(self) -> int:
        """What interrupts; reading it takes back the transmitter's interrupt."""
        cause = self._cause()
        if cause == IIR_TRANSMIT:
            self.registers["transmit_event"] = 0
            self._update_irq()
        return cause | (IIR_FIFO_ENABLED if self._has_fifo else 0)

    def write_iir(self, value: int) -> None:
        """FCR: switch and clear the FIFOs, set the receiver's trigger level."""
        if (value ^ self.registers["fcr"]) & FCR_ENABLE or value & FCR_CLEAR_RECEIVE:
            self.fifo.clear()
        self.registers["fcr"] = value & 0xC9 if value & FCR_ENABLE else 0
        self._on_room()
        self._update_irq()

    def write_mcr(self, value: int) -> None:
        """Modem control: loopback, and OUT2, which opens the interrupt line on a PC."""
        self.registers["mcr"] = value & 0x1F
        self._set_modem_lines()
        self._on_room()
        self._update_irq()

    def read_lsr(self) -> int:
        """Line status; reading it clears the error bits."""
        self._listen()
        errors, self.registers["lsr"] = self.registers["lsr"], 0
        if errors:
            self._update_irq()
        return errors | LSR_TRANSMITTER_EMPTY | (LSR_DATA_READY if self.fifo else 0)

    def _listen(self) -> None:
        if not self.registers["listening"]:
            self.registers["listening"] = 1
            self._on_room()

    def read_msr(self) -> int:
        """Modem status; reading it clears the delta bits."""
        value = self.registers["msr"]
        self.registers["msr"] &= ~MSR_DELTA
        self._update_irq()
        return value

    def _set_modem_lines(self) -> None:
        """Set MSR's lines and note which changed. RI's delta bit marks its trailing edge only (data sheet, 8.8)."""
        mcr, before = self.registers["mcr"], self.registers["msr"]
        lines = MSR_CONNECTED
        if mcr & MCR_LOOP:
            lines = sum(line for bit, line in LOOPED.items() if mcr & bit)
        changed = (lines ^ before) & 0xF0 & ~(MSR_RI & lines)
        self.registers["msr"] = lines | before & MSR_DELTA | changed >> 4

    # Interrupts

    @property
    def _has_fifo(self) -> bool:
        return bool(self.registers["fcr"] & FCR_ENABLE)

    @property
    def _capacity(self) -> int:
        return FIFO_SIZE if self._has_fifo else 1

    def _cause(self) -> int:
        """Return the pending interrupt of highest priority (data sheet, table IV).

        Below the trigger level the FIFO's time-out is reported: four character times have always passed.
        """
        r, enabled = self.registers, self.registers["ier"]
        if enabled & IER_LINE and r["lsr"]:
            return IIR_LINE
        if enabled & IER_RECEIVE and self.fifo:
            below = self._has_fifo and len(self.fifo) < TRIGGER_LEVELS[r["fcr"] >> 6]
            return IIR_TIMEOUT if below else IIR_RECEIVE
        if enabled & IER_TRANSMIT and r["transmit_event"]:
            return IIR_TRANSMIT
        if enabled & IER_MODEM and r["msr"] & MSR_DELTA:
            return IIR_MODEM
        return IIR_NONE

    def _update_irq(self) -> None:
        """Drive the line; loopback disconnects OUT2 and with it the line."""
        is_open = self.registers["mcr"] & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        self._irq.set(is_open and self._cause() != IIR_NONE)

    # State

    def state(self) -> dict[str, object]:
        """Return registers and the bytes that wait."""
        return {**super().state(), "fifo": list(self.fifo)}

    def restore(self, state: dict[str, object]) -> None:
        """Take registers and bytes back, and drive the interrupt line."""
        waiting = state.get("fifo")
        if not isinstance(waiting, list) or not all(isinstance(b, int) and 0 <= b <= 0xFF for b in waiting):
            raise ConfigError(f"state of {self.name}: 'fifo' cannot be {waiting!r}; it was not saved by this device")
        before = self.coalescible
        super().restore(state)
        self.fifo = deque(waiting[: self._capacity])
        if self.coalescible != before:
            self._on_coalescible_change(not before)
        self._update_irq()
