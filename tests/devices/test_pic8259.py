"""The 8259A pair, after its data sheet: initialization, priorities, ends of interrupt, modes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmpy.devices.pic8259 import PicPair

MASTER_BASE, SLAVE_BASE = 0x20, 0x28
NON_SPECIFIC_EOI, SPECIFIC_EOI, ROTATE_ON_EOI = 0x20, 0x60, 0xA0


class Pc:
    """A pair set up as a PC's firmware does, and how often it asked for the processor."""

    def __init__(self, *, icw4: int = 0x01) -> None:
        self.asked = 0
        self.pics = PicPair(self._ask)
        for chip, base, wiring in ((self.pics.master, MASTER_BASE, 4), (self.pics.slave, SLAVE_BASE, 2)):
            chip.write(0, 1, 0x11)
            for value in (base, wiring, icw4):
                chip.write(1, 1, value)

    def _ask(self) -> None:
        self.asked += 1

    def pulse(self, *irqs: int) -> None:
        for irq in irqs:
            self.pics.set_line(irq, 1)
            self.pics.set_line(irq, 0)

    def eoi(self, irq: int, command: int = NON_SPECIFIC_EOI) -> None:
        if irq & 8:
            self.pics.slave.write(0, 1, command)
        self.pics.master.write(0, 1, command)


@pytest.fixture
def pc() -> Pc:
    return Pc()


@pytest.mark.parametrize("irq", [n for n in range(16) if n != 2])
def test_each_line_has_its_vector(pc: Pc, irq: int) -> None:
    pc.pulse(irq)
    assert pc.pics.requests
    assert pc.asked == 1
    assert pc.pics.acknowledge() == MASTER_BASE + irq
    assert not pc.pics.requests


def test_the_lowest_number_comes_first_and_the_slave_s_between_1_and_3(pc: Pc) -> None:
    pc.pulse(7, 3, 12, 8, 1)
    order = []
    for _ in range(5):
        vector = pc.pics.acknowledge()
        order.append(vector - MASTER_BASE)
        pc.eoi(order[-1])
    assert order == [1, 8, 12, 3, 7]


def test_a_request_of_lower_priority_waits_for_the_end_of_the_one_in_service(pc: Pc) -> None:
    pc.pulse(3)
    pc.pics.acknowledge()
    pc.pulse(5)
    assert not pc.pics.requests
    pc.pulse(1)
    assert pc.pics.acknowledge() == MASTER_BASE + 1
    pc.eoi(1)
    assert not pc.pics.requests
    pc.eoi(3)
    assert pc.pics.acknowledge() == MASTER_BASE + 5


def test_the_mask_holds_a_request_back_and_keeps_it(pc: Pc) -> None:
    pc.pics.master.write(1, 1, 0x10)
    pc.pulse(4)
    assert not pc.pics.requests
    assert pc.pics.master.read(1, 1) == 0x10
    pc.pics.master.write(1, 1, 0)
    assert pc.pics.requests
    assert pc.pics.acknowledge() == MASTER_BASE + 4


def test_irr_and_isr_can_be_read(pc: Pc) -> None:
    pc.pulse(6)
    assert pc.pics.master.read(0, 1) == 0x40
    pc.pics.acknowledge()
    assert pc.pics.master.read(0, 1) == 0
    pc.pics.master.write(0, 1, 0x0B)  # OCW3: read ISR
    assert pc.pics.master.read(0, 1) == 0x40


def test_a_specific_eoi_ends_the_one_it_names(pc: Pc) -> None:
    pc.pulse(5)
    pc.pics.acknowledge()
    pc.pulse(2 + 1)
    pc.pics.acknowledge()
    pc.pics.master.write(0, 1, SPECIFIC_EOI | 5)
    pc.pics.master.write(0, 1, 0x0B)
    assert pc.pics.master.read(0, 1) == 1 << 3


def test_a_request_that_goes_away_is_spurious(pc: Pc) -> None:
    """Masked between request and INTA: the chip answers with input 7, and nothing is in service."""
    pc.pulse(4)
    pc.pics.master.registers["irr"] = 0
    assert pc.pics.acknowledge() == MASTER_BASE + 7
    pc.pics.master.write(0, 1, 0x0B)
    assert pc.pics.master.read(0, 1) == 0


def test_automatic_end_of_interrupt() -> None:
    pc = Pc(icw4=0x03)
    pc.pulse(3)
    pc.pics.acknowledge()
    pc.pulse(5)
    assert pc.pics.acknowledge() == MASTER_BASE + 5


def test_rotation_makes_the_served_one_the_lowest(pc: Pc) -> None:
    pc.pulse(0)
    pc.pics.acknowledge()
    pc.eoi(0, ROTATE_ON_EOI)
    pc.pulse(0, 4)
    assert pc.pics.acknowledge() == MASTER_BASE + 4


def test_the_lowest_priority_can_be_set(pc: Pc) -> None:
    pc.pics.master.write(0, 1, 0xC0 | 4)  # OCW2: set priority, 4 is the lowest
    pc.pulse(1, 5)
    assert pc.pics.acknowledge() == MASTER_BASE + 5


def test_special_mask_mode_lets_the_others_through(pc: Pc) -> None:
    pc.pulse(3)
    pc.pics.acknowledge()
    pc.pics.master.write(1, 1, 1 << 3)
    pc.pics.master.write(0, 1, 0x68)
    pc.pulse(6)
    assert pc.pics.acknowledge() == MASTER_BASE + 6


def test_poll_accepts_by_a_read(pc: Pc) -> None:
    pc.pulse(5)
    pc.pics.master.write(0, 1, 0x0C)
    assert pc.pics.master.read(0, 1) == 0x85
    assert not pc.pics.requests
    pc.pics.master.write(0, 1, 0x0C)
    assert pc.pics.master.read(0, 1) & 0x80 == 0


def test_an_edge_counts_once_a_level_as_long_as_it_is_there(pc: Pc) -> None:
    pc.pics.set_line(5, 1)
    pc.pics.acknowledge()
    pc.eoi(5)
    assert not pc.pics.requests  # an edge, and the line is still high
    pc.pics.set_line(5, 0)
    pc.pics.elcr.write(0, 1, 1 << 5)
    pc.pics.set_line(5, 1)
    pc.pics.acknowledge()
    pc.eoi(5)
    assert pc.pics.requests
    pc.pics.set_line(5, 0)
    assert not pc.pics.requests


def test_some_lines_are_edge_triggered_for_ever(pc: Pc) -> None:
    pc.pics.elcr.write(0, 2, 0xFFFF)
    assert pc.pics.elcr.read(0, 2) == 0xDEF8  # 0, 1, 2, 8 and 13


def test_initialization_clears_mask_and_requests(pc: Pc) -> None:
    pc.pics.master.write(1, 1, 0xFF)
    pc.pulse(3)
    pc.pics.master.write(0, 1, 0x11)
    for value in (0x40, 4, 1):
        pc.pics.master.write(1, 1, value)
    assert pc.pics.master.read(1, 1) == 0
    assert not pc.pics.requests
    pc.pulse(3)
    assert pc.pics.acknowledge() == 0x43


def test_a_request_that_waits_is_there_elsewhere(pc: Pc) -> None:
    """And whoever takes it is woken."""
    pc.pics.set_line(4, 1)
    other = Pc()
    other.pics.slave.restore(pc.pics.slave.state())
    other.pics.master.restore(pc.pics.master.state())
    assert other.pics.requests
    assert other.asked == 1
    assert other.pics.acknowledge() == pc.pics.acknowledge()


def test_state_goes_on_elsewhere(pc: Pc) -> None:
    pc.pulse(9, 4)
    other = Pc()
    other.pics.master.restore(pc.pics.master.state())
    other.pics.slave.restore(pc.pics.slave.state())
    assert [pics.acknowledge() for pics in (pc.pics, other.pics)] == [SLAVE_BASE + 1] * 2


@pytest.mark.parametrize("attack", [lambda v: v, lambda v: 0xFF - v, lambda v: (v * 37) & 0xFF])
def test_any_bytes_do_no_harm(pc: Pc, attack: Callable[[int], int]) -> None:
    for value in range(256):
        for chip in (pc.pics.master, pc.pics.slave):
            chip.write(value & 1, 1, attack(value))
            assert 0 <= chip.read(0, 1) <= 0xFF
            assert 0 <= chip.read(1, 1) <= 0xFF
        pc.pulse(value & 15)
        if pc.pics.requests:
            assert 0 <= pc.pics.acknowledge() <= 0xFF
