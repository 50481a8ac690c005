"""interrupts: a device raises a line, and the guest's handler runs."""

from __future__ import annotations

from kvmpy.devices.base import Device, IrqLine
from kvmpy.devices.pic8259 import Pic8259
from kvmpy.machine.stop import StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.demos.scene import Scene
    from kvmpy.machine.machine import Machine

CHECK = (
    "kvmpy disasm lessons/interrupts.bin    the guest: set-up first, the handler last",
    "guest/lessons/interrupts.asm           its source, with the data sheet's words",
    "kvmpy/devices/pic8259.py               the interrupt controller",
)
PORT, IRQ = 0x500, 5
VECTOR = 0x20 + IRQ
DEADLINE = 10.0


class Bell(Device):
    """Rings when it is written to, and notes what the interrupt controller and the vCPU are at each access."""

    name = "bell"

    def __init__(self, guest: Machine) -> None:
        self.line = IrqLine(IRQ, guest.chips.set_line)
        self.guest = guest
        self.notes: list[dict[str, int]] = []

    def note(self) -> None:
        """Keep what there is to see now."""
        pic, vcpu = self.guest.devices["pic8259 master"], self.guest.vcpus[0]
        assert isinstance(pic, Pic8259)
        at = {"ip": vcpu.sregs.cs.base + vcpu.regs.rip}
        self.notes.append(at | {name: pic.registers[name] for name in ("irr", "isr", "imr")})

    def write(self, offset: int, size: int, value: int) -> None:
        """Ring at the first write; the second comes from the handler."""
        if not self.notes:
            self.line.set(True)
        self.note()

    def read(self, offset: int, size: int) -> int:
        """Say ding, and stop ringing."""
        self.note()
        self.line.set(False)
        return ord("!")


def run(scene: Scene) -> None:
    """Follow one interrupt all the way."""
    printed = bytearray()
    guest = scene.guest("lessons/interrupts.bin", irqchip="python", output=printed.extend)
    bell = Bell(guest)
    guest.bus.ports.add(bell, PORT, 1)
    scene.step("The guest starts a device, allows interrupts, and halts. The device raises its line, IRQ 5.")
    stop = guest.run(timeout=DEADLINE)
    if len(bell.notes) != 3:
        scene.claim("The device was used three times.", False)
        return
    raised, in_handler, behind = bell.notes
    vector_table = guest.memory.read_int(VECTOR * 4, 2)

    show(scene, "the line rises", raised)
    scene.claim("The 8259A remembers the request: bit 5 of IRR.", bool(raised["irr"] >> IRQ & 1))
    scene.why("Its mask, IMR, lets only line 5 through. RFLAGS.IF is still clear, so the processor hears nothing yet.")

    scene.step("STI allows interrupts; the processor asks the controller for a vector, and looks it up in its table.")
    scene.saw(f"IRQ {IRQ} became vector {VECTOR:#x}; the table's entry, at {VECTOR * 4:#x}, says {vector_table:#x}")
    show(scene, "the handler reads the device", in_handler)
    scene.claim("The code that runs is the one the table names.", 0 <= in_handler["ip"] - vector_table < 16)
    scene.claim(
        "The request has moved from IRR to ISR: in service, and nothing of its own or lower priority may interrupt.",
        in_handler["isr"] == 1 << IRQ and not in_handler["irr"] >> IRQ & 1,
    )
    scene.why("Reading the device lowers its line: else it would interrupt again at once.")

    scene.step("The handler writes the end of interrupt (EOI) to the controller, and returns.")
    show(scene, "behind EOI", behind)
    scene.claim("ISR is empty again: the next interrupt may come.", behind["isr"] == 0)
    scene.saw(f"the guest printed {bytes(printed)!r} and ended: {stop.kind}, code {stop.code}")
    scene.claim("HLT was left, and the program behind it ended.", stop.kind == StopKind.EXIT and printed == b"!")


def show(scene: Scene, when: str, note: dict[str, int]) -> None:
    """Show one of the bell's notes."""
    scene.saw(f"{when}: IRR {note['irr']:#04x}  ISR {note['isr']:#04x}  IMR {note['imr']:#04x}  at {note['ip']:#x}")
