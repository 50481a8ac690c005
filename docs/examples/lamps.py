"""A device of your own: eight lamps at port 0x500, and beside it how many are lit."""

import kvmpy

GUEST = """
    mov dx, 0x500
    mov al, 1
next:
    out dx, al          # one lamp more
    stc
    rcl al, 1
    jnc next
    inc dx
    in al, dx           # how many?
    out 0xf4, al        # the exit code
"""


class Lamps(kvmpy.RegisterDevice):
    """Two registers of a byte: `lit` can be written, `count` is what the lamps say."""

    name = "lamps"
    REGISTERS = (kvmpy.Register(0, "lit"), kvmpy.Register(1, "count", writable=0))

    def write_lit(self, value: int) -> None:
        """Show the lamps."""
        self.registers["lit"] = value
        print(f"{value:08b}".replace("0", ".").replace("1", "*"))

    def read_count(self) -> int:
        """Count the lamps that are lit."""
        return self.registers["lit"].bit_count()


with kvmpy.open_accelerator() as accelerator, kvmpy.Machine(accelerator, memory=1 << 20) as machine:
    machine.bus.ports.add(Lamps(), 0x500, 2)
    code = kvmpy.assemble(GUEST, bits=16, origin=0x7C00).code
    machine.load(kvmpy.plan_code(code, memory=machine.memory.size))
    stop = machine.run(timeout=5)
    print(f"{stop.kind}, code {stop.code}")
