"""The two interrupt controllers of a PC: a master and a slave 8259A (Intel 8259A data sheet, order number 231468).

The slave's output is the master's input 2. `acknowledge()` is the processor's INTA cycle: it gives the vector.
"""

from __future__ import annotations

from kvmpy.devices.base import Register, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ICW1, ICW1_ICW4, ICW1_SINGLE = 0x10, 0x01, 0x02
ICW4_AUTO_EOI, ICW4_FULLY_NESTED = 0x02, 0x10
OCW3, OCW3_POLL, OCW3_READ, OCW3_READ_ISR, OCW3_MASK, OCW3_SPECIAL_MASK = 0x08, 0x04, 0x02, 0x01, 0x40, 0x20
EOI, SPECIFIC, ROTATE = 1, 2, 4  # of the three bits R, SL, EOI of OCW2, shifted down
NONE = -1
CASCADE, SPURIOUS = 2, 7
EXPECT_OCW, EXPECT_ICW2, EXPECT_ICW3, EXPECT_ICW4 = 0, 2, 3, 4
ISA_EDGE_ONLY = {"master": 0x07, "slave": 0x21}  # timer, keyboard, cascade; RTC, FPU: ELCR cannot make them level


class Pic8259(RegisterDevice):
    """One 8259A, at two addresses. Its state is in `registers`, by the data sheet's names."""

    REGISTERS = (Register(0, "command"), Register(1, "data"))

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        super().__init__()
        self.name = f"pic8259 {name}"
        self._changed = changed
        self.registers |= {
            "irr": 0, "imr": 0, "isr": 0, "lines": 0, "elcr": 0, "base": 0, "lowest": 7, "expects": EXPECT_OCW,
            "icw4": 0, "single": 0, "auto_eoi": 0, "rotate_auto": 0, "fully_nested": 0, "special_mask": 0,
            "read_isr": 0, "poll": 0,
        }  # fmt: skip

    # Inputs and the output

    def set_line(self, irq: int, level: int) -> None:
        """Drive an input. An edge is remembered in IRR; a level only as long as it is there."""
        r, bit = self.registers, 1 << irq
        if level and (r["elcr"] & bit or not r["lines"] & bit):
            r["irr"] |= bit
        if not level and r["elcr"] & bit:
            r["irr"] &= ~bit
        r["lines"] = r["lines"] | bit if level else r["lines"] & ~bit

    def requested(self) -> int:
        """Return the input that is to interrupt now, NONE when none has a higher priority than those in service."""
        r = self.registers
        in_service = r["isr"]
        if r["special_mask"]:
            in_service &= ~r["imr"]
        if r["fully_nested"]:
            in_service &= ~(1 << CASCADE)
        for i in range(8):
            irq = (r["lowest"] + 1 + i) & 7
            if in_service >> irq & 1:
                return NONE
            if (r["irr"] & ~r["imr"]) >> irq & 1:
                return irq
        return NONE

    def accept(self, irq: int) -> None:
        """Take a request into service (the first INTA)."""
        r, bit = self.registers, 1 << irq
        if not r["elcr"] & bit:
            r["irr"] &= ~bit
        if not r["auto_eoi"]:
            r["isr"] |= bit
        elif r["rotate_auto"]:
            r["lowest"] = irq

    # Registers

    def write_command(self, value: int) -> None:
        """ICW1, OCW2 or OCW3, told apart by bits 4 and 3."""
        if value & ICW1:
            self._begin(value)
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)
        self._changed()

    def _begin(self, value: int) -> None:
        """ICW1: the initialization sequence begins (data sheet, figure 6)."""
        r = self.registers
        kept = {name: r[name] for name in ("lines", "elcr")}
        for name in r:
            r[name] = 0
        r |= kept
        r |= {"lowest": 7, "irr": r["lines"] & r["elcr"], "expects": EXPECT_ICW2}
        r |= {"icw4": value & ICW1_ICW4, "single": value & ICW1_SINGLE}

    def _write_ocw3(self, value: int) -> None:
        r = self.registers
        if value & OCW3_POLL:
            r["poll"] = 1
        if value & OCW3_READ:
            r["read_isr"] = value & OCW3_READ_ISR
        if value & OCW3_MASK:
            r["special_mask"] = int(bool(value & OCW3_SPECIAL_MASK))

    def _write_ocw2(self, value: int) -> None:
        r, command, irq = self.registers, value >> 5, value & 7
        if command & EOI:
            if not command & SPECIFIC:
                irq = self._highest_in_service()
            if irq != NONE:
                r["isr"] &= ~(1 << irq)
                if command & ROTATE:
                    r["lowest"] = irq
        elif command == ROTATE | SPECIFIC:
            r["lowest"] = irq
        elif not command & SPECIFIC:
            r["rotate_auto"] = int(bool(command & ROTATE))

    def _highest_in_service(self) -> int:
        order = ((self.registers["lowest"] + 1 + i) & 7 for i in range(8))
        return next((irq for irq in order if self.registers["isr"] >> irq & 1), NONE)

    def write_data(self, value: int) -> None:
        """The rest of the initialization sequence, else OCW1: the mask."""
        r = self.registers
        expected = r["expects"]
        if expected == EXPECT_ICW2:
            r["base"] = value & 0xF8
            r["expects"] = EXPECT_ICW3
            if r["single"]:
                r["expects"] = EXPECT_ICW4 if r["icw4"] else EXPECT_OCW
        elif expected == EXPECT_ICW3:
            r["expects"] = EXPECT_ICW4 if r["icw4"] else EXPECT_OCW
        elif expected == EXPECT_ICW4:
            r["auto_eoi"] = int(bool(value & ICW4_AUTO_EOI))
            r["fully_nested"] = int(bool(value & ICW4_FULLY_NESTED))
            r["expects"] = EXPECT_OCW
        else:
            r["imr"] = value
        self._changed()

    def read_command(self) -> int:
        """IRR or ISR, as OCW3 chose; after a poll command, the request that is accepted by this read."""
        r = self.registers
        if not r["poll"]:
            return r["isr"] if r["read_isr"] else r["irr"]
        r["poll"] = 0
        irq = self.requested()
        if irq == NONE:
            return 0
        self.accept(irq)
        self._changed()
        return 0x80 | irq

    def read_data(self) -> int:
        """The mask."""
        return self.registers["imr"]

    def restore(self, state: dict[str, object]) -> None:
        """Take the registers back; what was requested is again."""
        super().restore(state)
        self._changed()


class EdgeLevelControl(RegisterDevice):
    """ELCR, ports 0x4D0 and 0x4D1: which inputs are level-triggered (Intel 82371AB data sheet, 4.2.5)."""

    name = "elcr"
    REGISTERS = (Register(0, "master"), Register(1, "slave"))

    def __init__(self, pics: PicPair) -> None:
        super().__init__()
        self._chips = {"master": pics.master, "slave": pics.slave}

    def _set(self, name: str, value: int) -> None:
        self._chips[name].registers["elcr"] = value & ~ISA_EDGE_ONLY[name]

    def write_master(self, value: int) -> None:
        """Choose for inputs 3 to 7."""
        self._set("master", value)

    def write_slave(self, value: int) -> None:
        """Choose for inputs 9 to 12, 14 and 15."""
        self._set("slave", value)

    def read_master(self) -> int:
        """Inputs 0 to 7."""
        return self._chips["master"].registers["elcr"]

    def read_slave(self) -> int:
        """Inputs 8 to 15."""
        return self._chips["slave"].registers["elcr"]


class PicPair:
    """Both chips as a PC wires them. `on_request` is called when the output to the processor rises."""

    def __init__(self, on_request: Callable[[], None]) -> None:
        self._on_request = on_request
        self.requests = False
        self.master = Pic8259("master", self._update)
        self.slave = Pic8259("slave", self._update)
        self.elcr = EdgeLevelControl(self)

    def set_line(self, irq: int, level: int) -> None:
        """Drive one of the sixteen inputs."""
        chip = self.slave if irq & 8 else self.master
        chip.set_line(irq & 7, level)
        self._update()

    def _update(self) -> None:
        self.master.set_line(CASCADE, int(self.slave.requested() != NONE))
        before, self.requests = self.requests, self.master.requested() != NONE
        if self.requests and not before:
            self._on_request()

    def acknowledge(self) -> int:
        """Accept the request and return its vector. One that went away meanwhile is input 7, the spurious one."""
        vector = self._accept(self.master)
        if vector == self.master.registers["base"] + CASCADE:
            vector = self._accept(self.slave)
        self.requests = False  # so that what is still requested rises anew
        self._update()
        return vector

    @staticmethod
    def _accept(chip: Pic8259) -> int:
        irq = chip.requested()
        if irq == NONE:
            return chip.registers["base"] + SPURIOUS
        chip.accept(irq)
        return chip.registers["base"] + irq
