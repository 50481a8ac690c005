"""device: hardware in twenty lines of Python."""

from __future__ import annotations

from inspect import getsource

from kvmpy.devices.base import Register, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.demos.scene import Scene

CHECK = (
    "kvmpy disasm lessons/device.bin          the guest: two OUT, one IN, and a division by ten",
    "kvmpy boot lessons/device.bin --debug    without the device the ports read as all ones",
    "kvmpy boot lessons/device.bin --strict   or are a crash, if you want",
)
PORT = 0x500
DEADLINE = 10.0


class Multiplier(RegisterDevice):
    """Two factors and their product."""

    name = "multiplier"
    REGISTERS = (
        Register(0, "left", size=2),
        Register(2, "right", size=2),
        Register(4, "product", size=2, writable=0),
    )

    def __init__(self) -> None:
        super().__init__()
        self.uses = 0

    def read_product(self) -> int:
        """Multiply when the product is asked for."""
        self.uses += 1
        return self.registers["left"] * self.registers["right"]


def run(scene: Scene) -> None:
    """Plug the multiplier in, and run a guest that needs it."""
    scene.step("This is the whole device. Registers are declared; only what is special about one is written.")
    scene.saw(*getsource(Multiplier).splitlines())
    count = len(getsource(Multiplier).splitlines())
    scene.claim(f"It has {count} lines, no more than twenty.", count <= 20)

    printed = bytearray()
    guest = scene.guest("lessons/device.bin", output=printed.extend)
    multiplier = Multiplier()
    guest.bus.ports.add(multiplier, PORT, 6)
    scene.step(f"It is plugged in at port {PORT:#x}, and the guest, which multiplies 6 by 7 with it, runs.")
    stop = guest.run(timeout=DEADLINE)
    scene.saw(f"the guest printed {bytes(printed)!r}; {stop.detail}", f"the device: {multiplier.state()}")
    scene.claim("The guest printed 42, and asked the device once.", printed == b"42\n" and multiplier.uses == 1)
    scene.why("The guest knows nothing of Python: it saw three registers at three ports, as a data sheet has them.")

    printed.clear()
    again = scene.guest("lessons/device.bin", output=printed.extend)
    scene.step("The same guest without the device.")
    again.run(timeout=DEADLINE)
    unclaimed = [f"{kind} {port:#x}, {size} bytes" for kind, port, size in sorted(again.bus.ports.unclaimed)]
    scene.saw(f"the guest printed {bytes(printed)!r}", f"accesses that no device claimed: {'; '.join(unclaimed)}")
    scene.claim(
        "Nothing answered: the port read as all ones, and 42 is not what came of it.",
        printed != b"42\n" and ("read", PORT + 4, 2) in again.bus.ports.unclaimed,
    )
