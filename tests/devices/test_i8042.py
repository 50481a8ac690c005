"""The keyboard controller's commands (IBM PS/2 Hardware Interface Technical Reference)."""

from __future__ import annotations

import pytest

from kvmpy.devices.i8042 import I8042

DATA, STATUS = 0, 4
OUTPUT_FULL = 1


@pytest.fixture
def resets() -> list[str]:
    return []


@pytest.fixture
def controller(resets: list[str]) -> I8042:
    return I8042(lambda: resets.append("reset"))


def ask(controller: I8042, command: int) -> int:
    controller.write(STATUS, 1, command)
    assert controller.read(STATUS, 1) & OUTPUT_FULL
    answer = controller.read(DATA, 1)
    assert not controller.read(STATUS, 1) & OUTPUT_FULL
    return answer


def test_it_tests_itself(controller: I8042) -> None:
    assert (ask(controller, 0xAA), ask(controller, 0xAB)) == (0x55, 0x00)


def test_the_command_byte_can_be_written_and_read(controller: I8042) -> None:
    controller.write(STATUS, 1, 0x60)
    controller.write(DATA, 1, 0x47)
    assert ask(controller, 0x20) == 0x47


def test_what_goes_to_the_keyboard_is_no_operand(controller: I8042) -> None:
    before = ask(controller, 0x20)
    controller.write(DATA, 1, 0xED)
    assert ask(controller, 0x20) == before


@pytest.mark.parametrize(("command", "operand"), [(0xFE, None), (0xF0, None), (0xD1, 0xDE)])
def test_the_reset_line(controller: I8042, resets: list[str], command: int, operand: int | None) -> None:
    controller.write(STATUS, 1, command)
    if operand is not None:
        controller.write(DATA, 1, operand)
    assert resets == ["reset"]


@pytest.mark.parametrize(("command", "operand"), [(0xFF, None), (0xF1, None), (0xD1, 0xDF), (0x60, 0x00)])
def test_what_leaves_the_reset_line_alone(
    controller: I8042, resets: list[str], command: int, operand: int | None
) -> None:
    controller.write(STATUS, 1, command)
    if operand is not None:
        controller.write(DATA, 1, operand)
    assert resets == []
