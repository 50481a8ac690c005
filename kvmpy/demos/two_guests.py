"""two-guests: two systems at once on one host."""

from __future__ import annotations

import contextlib
import threading

from kvmpy.devices.base import Register, RegisterDevice
from kvmpy.errors import ClosedError
from kvmpy.machine.stop import StopKind
from kvmpy.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.demos.scene import Scene
    from kvmpy.machine.stop import Stop

CHECK = (
    "kvmpy boot guest.bin                     the second guest alone: try 'peek 0x300000'",
    "kvmpy disasm lessons/two-guests.bin      the first",
    "kvmpy boot guest.bin --memory 16M        in another terminal, as often as you like",
)
PORT = 0x510
FIRST_MEMORY, SECOND_MEMORY = 32 << 20, 16 << 20
FIRST_PAGE, PAGE = 2 << 20, 4096
ROW, PLACE = 0x30_0000, 0x30_0008  # what the second guest shows, a row of 16 bytes, and where in it the mark lies
MARK = 0x4B56_4D32
DEADLINE = 8.0
TRANSLATED = {
    "kvm": "KVM leads them on, by tables that only the host can write (nested or shadow page tables): none leads to "
    "the host or to another guest.",
    "soft": "The software CPU looks each one up in this guest's own memory, and knows no other.",
}


class Questions(RegisterDevice):
    """What the first guest asks and tells (guest/lessons/two-guests.asm); it searches until `enough` is set."""

    name = "questions"
    REGISTERS = (
        Register(0, "size", size=4, reset=FIRST_MEMORY, writable=0),
        Register(4, "mark", size=4, reset=MARK, writable=0),
        Register(8, "filled", size=4),
        Register(12, "found", size=4),
        Register(16, "beyond", size=4),
    )

    def __init__(self, searched: Callable[[], None]) -> None:
        super().__init__()
        self.enough = threading.Event()
        self.found: list[int] = []
        self.searched = searched

    def write_found(self, value: int) -> None:
        """Keep the result of a search; the first is told at once."""
        self.found.append(value)
        if len(self.found) == 1:
            self.searched()

    def read_found(self) -> int:
        """Tell whether that was the last one."""
        return int(self.enough.is_set())


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def run(scene: Scene) -> None:
    """Run both until the second ends, and ask each what it saw."""
    printed = bytearray()
    second = scene.guest("guest.bin", memory=SECOND_MEMORY, output=printed.extend)
    first = scene.guest("lessons/two-guests.bin", memory=FIRST_MEMORY)
    questions = Questions(searched=lambda: second.send(b"halt 7\n"))
    first.bus.ports.add(questions, PORT, 20)
    second.memory.write(PLACE, MARK.to_bytes(4, "little"))

    scene.step("Two guests on one host: a search program with 32 MiB, and a small kernel with tasks and 16 MiB.")
    scene.saw(f"The host writes a mark, {MARK:#x}, into the second one's memory at {PLACE:#x}.")
    ends: dict[str, Stop] = {}

    def search() -> None:
        with contextlib.suppress(ClosedError):  # the demo was interrupted
            ends["first"] = first.run(timeout=2 * DEADLINE)

    searcher = threading.Thread(target=search)
    try:
        start_thread(searcher, "the first guest")
        second.send(f"peek {ROW:#x}\nmem\n".encode())
        ends["second"] = second.run(timeout=DEADLINE)
        searches = len(questions.found)
    finally:
        questions.enough.set()
        if searcher.is_alive():
            searcher.join()
    scene.saw(f"the first had searched its memory {_times(searches)} when the second ended")
    scene.saw(*[line for line in printed.decode(errors="replace").splitlines() if line.startswith((">", "0x", "mem"))])

    scene.step("Did each get the memory that it was promised?")
    pages = questions.registers["filled"]
    scene.saw(f"the first filled and read back {pages} pages: {(pages * PAGE + FIRST_PAGE) >> 20} MiB with its own")
    scene.claim("The first has its 32 MiB, whatever the second does.", pages == (FIRST_MEMORY - FIRST_PAGE) // PAGE)
    scene.claim("The second has its 16 MiB.", b"memory   16384 KiB" in printed)

    scene.step("Did the first find anything of the second?")
    row = f"{ROW:#x}: {bytes(8).hex(' ')} {MARK.to_bytes(4, 'little').hex(' ')}".encode()
    scene.claim(f"At its own {PLACE:#x} the second sees the mark.", row in printed)
    scene.claim(
        f"In {len(questions.found)} searches of all its memory the first never found it.",
        searches > 0 and not any(questions.found),
    )
    scene.saw(f"behind the end of its memory it read {questions.registers['beyond']:#x}")
    scene.claim("Behind its memory there is nothing: all ones.", questions.registers["beyond"] == 0xFFFF_FFFF)
    scene.why(f"A guest's physical addresses are numbers of its own. {TRANSLATED[scene.accelerator.name]}")
    scene.claim(
        "Both ended as they wanted: one halted, the other switched off with code 7.",
        ends["first"].kind == StopKind.HALT and (ends["second"].kind, ends["second"].code) == (StopKind.EXIT, 7),
    )
