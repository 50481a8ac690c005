"""paging: a walk through the page tables, a fault, and what repairs it."""

from __future__ import annotations

from kvmpy.accel import exits
from kvmpy.boot.flat import PAGE_TABLES
from kvmpy.cpu.bits import LARGE, PRESENT, WRITABLE
from kvmpy.cpu.flags import PageFault
from kvmpy.cpu.page_tables import PAGE_2M
from kvmpy.cpu.paging import walk
from kvmpy.demos.scene import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.exits import Exit
    from kvmpy.demos.scene import Scene
    from kvmpy.machine.machine import Machine

CHECK = (
    "kvmpy disasm lessons/paging.bin    the guest, and its handler of #PF",
    "kvmpy boot lessons/paging.bin      without Python's tricks nothing faults",
    "guest/lessons/paging.asm           the source",
)
TARGET, ELSEWHERE = 0x80_0000, 0xA0_0000
DIRECTORY = PAGE_TABLES + 2 * 4096  # PML4, PDPT, then the directory of the first GiB (kvmpy.boot.flat)
ENTRY = DIRECTORY + TARGET // PAGE_2M * 8
FAULT_PORT, RESULT_PORT = 0x0E, 0x50
SECRET = 41
ACCESSED = 1 << 5  # of an entry (Intel SDM vol. 3, table 4-18)


def run(scene: Scene) -> None:
    """Take a page away, let the guest fault, and give it another page."""
    guest = scene.guest("lessons/paging.bin")
    scene.step(f"The guest will read address {TARGET:#x}. This is the way of that address through its page tables.")
    before = explain(scene, guest, PageFault(0))
    scene.claim("It leads to the same physical address: an identity map.", before == TARGET)
    scene.why("Nine bits of the address choose an entry at each level; a page of 2 MiB ends the walk one level early.")

    scene.step("Python clears the last entry of the way, in the guest's own memory, and lets the guest run.")
    guest.memory.write(ENTRY, bytes(8))
    code = fault(scene, guest, scene.next_exit(guest.vcpus[0]))
    explain(scene, guest, PageFault(0))
    scene.claim("#PF came with error code 0: a read by the kernel of a page that is not there.", code == 0)
    scene.why("The processor leaves the address in CR2 and the reason on the stack (Intel SDM vol. 3, 4.7 and 6.15).")

    scene.step(f"Python maps the address again, elsewhere and read-only: to {ELSEWHERE:#x}, where it puts {SECRET}.")
    guest.memory.write(ELSEWHERE, bytes([SECRET]))
    guest.memory.write(ENTRY, (ELSEWHERE | PRESENT | LARGE).to_bytes(8, "little"))
    explain(scene, guest, PageFault(0))
    result = scene.next_exit(guest.vcpus[0])
    scene.saw(f"exit: {shown(result)}")
    scene.claim(
        "The handler returned, the same instruction ran again, and read what lies at the other place.",
        isinstance(result, exits.IoOut) and result.port == RESULT_PORT and result.value == SECRET,
    )
    entry = guest.memory.read_int(ENTRY, 8)
    scene.saw(f"the last entry was written as {ELSEWHERE | PRESENT | LARGE:#x}; it is {entry:#x} now")
    scene.claim("Bit 5 of the entry, Accessed, is set, and nobody's code wrote it.", bool(entry & ACCESSED))
    scene.why(
        "The processor marks each entry that it uses, so 0x07 becomes 0x27 above, too. By that, and by bit 6, Dirty, "
        "a kernel learns which pages are worth keeping (4.8)."
    )

    scene.step("Next the guest writes to that address.")
    code = fault(scene, guest, scene.next_exit(guest.vcpus[0]))
    explain(scene, guest, PageFault.WRITE)
    scene.claim("#PF with error code 3: the page is there (1), but may not be written (2).", code == 3)
    scene.why("Ring 0 may write read-only pages unless CR0.WP is set, as it is here (4.6.1).")

    scene.step("Python sets the writable bit. This is copy-on-write, when a copy is made at this point.")
    guest.memory.write(ENTRY, (ELSEWHERE | PRESENT | WRITABLE | LARGE).to_bytes(8, "little"))
    result = scene.next_exit(guest.vcpus[0])
    scene.saw(f"exit: {shown(result)}", f"at {ELSEWHERE:#x}: {guest.memory.read(ELSEWHERE, 1)[0]}")
    scene.claim(
        f"The write arrived: {SECRET + 1} at the other place, and nothing where the address once led.",
        guest.memory.read(ELSEWHERE, 1)[0] == SECRET + 1 and guest.memory.read(TARGET, 1)[0] == 0,
    )


def explain(scene: Scene, guest: Machine, access: PageFault) -> int | None:
    """Show the walk of TARGET as the processor does it; return where it leads."""
    found = walk(guest.memory.read, guest.vcpus[0].sregs, TARGET, access)
    scene.saw(*found.explain())
    return found.gpa


def fault(scene: Scene, guest: Machine, exit: Exit) -> int:
    """Show a page fault that the guest's handler tells of; return its error code, -1 if it is something else."""
    scene.saw(f"exit: {shown(exit)}")
    if not isinstance(exit, exits.IoOut) or exit.port != FAULT_PORT:
        return -1
    vcpu = guest.vcpus[0]
    code = guest.memory.read_int(vcpu.regs.rsp + 8, 8)  # behind the handler's own PUSH
    scene.saw(f"in the handler: CR2 {vcpu.sregs.cr2:#x}, error code {code:#x}")
    return code if vcpu.sregs.cr2 == TARGET else -1
