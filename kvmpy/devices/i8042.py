"""The keyboard controller 8042 at ports 0x60 and 0x64, without a keyboard: guests use it to reset the machine.

Commands after the IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
"""

from __future__ import annotations

from kvmpy.devices.base import Register, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STATUS_OUTPUT_FULL, STATUS_SYSTEM_FLAG, STATUS_COMMAND, STATUS_UNLOCKED = 1 << 0, 1 << 2, 1 << 3, 1 << 4

READ_COMMAND_BYTE, WRITE_COMMAND_BYTE = 0x20, 0x60
SELF_TEST, TEST_KEYBOARD = 0xAA, 0xAB
READ_OUTPUT_PORT, WRITE_OUTPUT_PORT = 0xD0, 0xD1
PULSE_FIRST = 0xF0  # 0xF0-0xFF pulse those lines of the output port low whose bit is 0
RESET_LINE = 1 << 0  # bit 0 of the output port; low resets the processor

ANSWERS = {SELF_TEST: 0x55, TEST_KEYBOARD: 0x00}
WITH_OPERAND = {WRITE_COMMAND_BYTE: "command_byte", WRITE_OUTPUT_PORT: "output_port"}


class I8042(RegisterDevice):
    """Answers the controller's own commands; pulling the reset line low calls `reset`. A20 is always on."""

    name = "i8042"
    REGISTERS = (
        Register(0, "data"),
        Register(4, "status", STATUS_SYSTEM_FLAG | STATUS_UNLOCKED),
    )

    def __init__(self, reset: Callable[[], None]) -> None:
        super().__init__()
        # Not reachable by an address: what commands read and write, and the command that waits for its operand.
        self.registers |= {"command_byte": 0x05, "output_port": 0xCF, "waiting": 0}
        self._reset = reset

    def read_data(self) -> int:
        """Take the answer; the output buffer is empty then."""
        self.registers["status"] &= ~STATUS_OUTPUT_FULL
        return self.registers["data"]

    def write_data(self, value: int) -> None:
        """Take a command's operand. What would go to the keyboard meets none."""
        command, self.registers["waiting"] = self.registers["waiting"], 0
        self.registers["status"] &= ~STATUS_COMMAND
        if command in WITH_OPERAND:
            self.registers[WITH_OPERAND[command]] = value
        if command == WRITE_OUTPUT_PORT and not value & RESET_LINE:
            self._reset()

    def write_status(self, command: int) -> None:
        """Obey a command to the controller."""
        self.registers["status"] |= STATUS_COMMAND
        self.registers["waiting"] = command if command in WITH_OPERAND else 0
        if command in ANSWERS:
            self._answer(ANSWERS[command])
        elif command == READ_COMMAND_BYTE:
            self._answer(self.registers["command_byte"])
        elif command == READ_OUTPUT_PORT:
            self._answer(self.registers["output_port"])
        elif command >= PULSE_FIRST and not command & RESET_LINE:
            self._reset()

    def _answer(self, value: int) -> None:
        self.registers["data"] = value
        self.registers["status"] |= STATUS_OUTPUT_FULL
