"""Measure kvmpy against C peers and the bare interpreter, side by side in one run.

    python tools/bench/run.py            print them
    python tools/bench/run.py --write    write it to docs/benchmarks.md too

Containers have a script of their own, containers.py.

Every figure is the median over rounds in which kvmpy and its peer take turns: these machines are shared and noisy, so
ratios from one run count and absolute times do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from figures import Figure, listing, write_section

from kvmpy.accel.exits import IoOut
from kvmpy.accel.kvm import KvmAccelerator
from kvmpy.accel.soft import SoftAccelerator
from kvmpy.accel.soft_vcpu import SoftVcpu
from kvmpy.accel.testbed import HANDLERS, Testbed
from kvmpy.boot.flat import plan_code
from kvmpy.compare.holding import DESCRIPTORS, allow_descriptors, hold
from kvmpy.compare.measures import timed
from kvmpy.compare.subjects import Virtual
from kvmpy.cpu.modes import protected_mode, real_mode
from kvmpy.devices.base import Device
from kvmpy.machine.machine import Machine
from kvmpy.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
MEMORY = 16 << 20
EXITS = 20_000
WARM_UP = 2_000
CONSOLE_SECONDS = 0.5
MANY = 1000
LOOP_ROUNDS = 300_000_000

OUT_FOREVER = bytes.fromhex("e6e9 ebfc")  # again: out 0xe9, al; jmp again
# mov dx, 0x3f8; again: mov al, 'x'; out dx, al; jmp again
THR_FOREVER = bytes.fromhex("baf803 b078 ee ebfb")
# again: mov dx, 0x3fd; wait: in al, dx; test al, 0x20; jz wait; mov dl, 0xf8; mov al, 'x'; out dx, al; jmp again
POLLED_FOREVER = bytes.fromhex("bafd03 ec a820 74fb b2f8 b078 ee ebf1")
# mov rcx, rounds; mov eax, 1; mov ebx, 3; out 0x10, al; again: imul rax, rbx; add rax, rcx; dec rcx; jnz again; out
# 0x11, al
# again: mov eax, [0xd0000000]; jmp again, and mov [0xd0000000], eax
DEVICE = 0xD000_0000
DEVICE_LOOPS = (bytes.fromhex("a1000000d0 ebf9"), bytes.fromhex("a3000000d0 ebf9"))
# again: mov eax, [0x9000]; and eax, 1; cmp eax, esi; je mine; pause; jmp again; mine: inc dword ptr [0x9000]; dec ecx;
# jnz again; hlt
PING_PONG = bytes.fromhex("a100900000 83e001 39f0 7404 f390 ebf0 ff0500900000 49 75e7 f4")
RING3_LOOP = bytes.fromhex("48b9") + LOOP_ROUNDS.to_bytes(8, "little") + bytes.fromhex(
    "b801000000 bb03000000 e610 480fafc3 4801c8 48ffc9 75f4 e611"
)  # fmt: skip


# mov rcx, rounds; again: dec rcx; jnz again; out 0x11, al
SOFT_LOOP = bytes.fromhex("48b9") + LOOP_ROUNDS.to_bytes(8, "little") + bytes.fromhex("48ffc9 75fb e611")
# mov ecx, exits; again: int3; dec ecx; jnz again; out 0x11, al
INT3_LOOP = bytes.fromhex("b9") + EXITS.to_bytes(4, "little") + bytes.fromhex("cc ffc9 75fb e611")
IRETQ, BREAKPOINT = bytes.fromhex("48cf"), 3
# mov ecx, 256; mov edi, 0x200000; again: mov [edi], ecx; add edi, 0x1000; dec ecx; jnz again; hlt
TOUCH_1_MIB = bytes.fromhex("b900010000 bf00002000 890f 81c700100000 49 75f5 f4")

ACCELERATOR = KvmAccelerator()


class Sink(Device):
    """The Python handler of the exit benchmark: adds up what it gets, like its C peer."""

    name = "sink"

    def __init__(self) -> None:
        self.sum = 0

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Add the value."""
        self.sum += value


class FirstExit(Sink):
    """Notes when the guest wrote last."""

    at = 0.0

    def write(self, offset: int, size: int, value: int) -> None:
        """Look at the clock."""
        self.at = time.perf_counter()


def main() -> int:
    """Run all benchmarks; the exit code tells whether every limit holds."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="write docs/figures.json, and from it docs/benchmarks.md")
    options.add_argument("--rounds", type=int, default=7, help="rounds of each pair (default 7)")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        peers = compile_peers(Path(folder))
        with ACCELERATOR:
            figures = [figure for benchmark in BENCHMARKS for figure in benchmark(peers, chosen.rounds)]
    print(listing(figures))
    if chosen.write:
        write_section("Virtual machines", figures, load)
    return 0 if all(figure.holds for figure in figures) else 1


def compile_peers(folder: Path) -> dict[str, Path]:
    """Compile every C peer."""
    peers = {}
    for source in sorted(HERE.glob("*.c")):
        peers[source.stem] = folder / source.stem
        subprocess.run(["gcc", "-O2", "-o", peers[source.stem], source], check=True)
    return peers


def output_of(*command: str | Path) -> list[float]:
    """Run a peer and return the numbers it prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def port_exit(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """One port-I/O exit: the machine's run loop with a Python device, against the same loop in C."""
    pairs = [(python_exits(), output_of(peers["exits"], str(EXITS))[0]) for _ in range(3 * rounds)]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    detail = (
        f"{statistics.median(p[0] for p in pairs):.2f} µs against {statistics.median(p[1] for p in pairs):.2f} µs in C"
    )
    return [Figure("a port-I/O exit served by a Python device / by C", ratio, 1.10, "x", detail=detail)]


def python_exits() -> float:
    """Return microseconds per exit; the first exits, which find device and thread, are not counted, as in C."""
    with flat_machine(OUT_FOREVER, coalesce=False) as machine:
        machine.bus.ports.replace(0xE9, Sink())
        machine.run(max_exits=WARM_UP, timeout=60)
        start = time.perf_counter()
        machine.run(max_exits=EXITS, timeout=60)
        return (time.perf_counter() - start) / EXITS * 1e6


def machines(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """A machine with chips, made; and one that ran before, until its first exit."""
    made, again = [], []
    with KvmAccelerator() as accelerator:
        for _ in range(5 * rounds):
            start = time.perf_counter()
            machine = Machine(accelerator, memory=MEMORY)
            made.append((time.perf_counter() - start) * 1e3)
            machine.close()
        with flat_machine(OUT_FOREVER, coalesce=False) as machine:
            first = FirstExit()
            machine.bus.ports.replace(0xE9, first)
            for _ in range(20 * rounds):
                start = time.perf_counter()
                machine.run(max_exits=1, timeout=60)
                again.append((first.at - start) * 1e3)
    return [
        Figure("`Machine()` with in-kernel chips, 16 MiB", statistics.median(made), 1.5, "ms"),
        Figure("first exit of a `run()` that is not the machine's first", statistics.median(again[1:]), 0.5, "ms"),
    ]


def flat_machine(code: bytes, *, coalesce: bool, output: Callable[[bytes], None] = lambda _data: None) -> Machine:
    """Return a machine about to run real-mode code."""
    machine = Machine(ACCELERATOR, memory=MEMORY, irqchip="none", coalesce=coalesce, output=output)
    machine.load(plan_code(code, memory=MEMORY))
    return machine


def console(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """Bytes a second to the console, coalesced against not."""
    figures = []
    for name, code in (("debug console", OUT_FOREVER), ("COM1", THR_FOREVER), ("COM1, LSR polled", POLLED_FOREVER)):
        pairs = [(console_rate(code, coalesce=True), console_rate(code, coalesce=False)) for _ in range(rounds)]
        ratio = statistics.median(on / off for on, off in pairs)
        rate = statistics.median(on for on, _ in pairs)
        limit = 1.0 if "polled" in name else 2.0
        figures.append(
            Figure(
                f"{name}: bytes/s coalesced / uncoalesced", ratio, limit, "x", True, f"{rate / 1e3:.0f} kB/s coalesced"
            )
        )
    return figures


def console_rate(code: bytes, *, coalesce: bool) -> float:
    """Return bytes per second."""
    count = 0

    def take(data: bytes) -> None:
        nonlocal count
        count += len(data)

    with flat_machine(code, coalesce=coalesce, output=take) as machine:
        start = time.perf_counter()
        machine.run(timeout=CONSOLE_SECONDS)
        return count / (time.perf_counter() - start)


def processes(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """Whole processes: booting hello.bin and importing kvmpy, against a bare interpreter."""
    commands = {
        "bare": ["-c", "pass"],
        "import": ["-c", "import kvmpy"],
        "boot": ["-m", "kvmpy", "boot", "--memory", "16M", "hello.bin"],
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(3 * rounds):
        for name, arguments in commands.items():
            results[name].append(process(peers["spawn"], arguments))
    extra = {
        name: statistics.median(r[0] - b[0] for r, b in zip(runs, results["bare"], strict=True)) * 1e3
        for name, runs in results.items()
    }
    memory = statistics.median(r[1] - b[1] for r, b in zip(results["boot"], results["bare"], strict=True)) / 1024
    bare = f"python -c pass: {statistics.median(r[0] for r in results['bare']) * 1e3:.1f} ms"
    return [
        Figure("`kvmpy boot hello.bin` above a bare interpreter", extra["boot"], 25, "ms", detail=bare),
        Figure("`import kvmpy` above a bare interpreter", extra["import"], 25, "ms", detail=bare),
        Figure("resident memory of that boot (16 MiB guest) above a bare interpreter", memory, 20, "MiB"),
    ]


def process(spawn: Path, arguments: list[str]) -> tuple[float, float]:
    """Run the interpreter; return its seconds and its peak resident KiB.

    A small C program starts it: the peak of a child includes what it was forked from, and this process is large.
    """
    done = subprocess.run(
        [spawn, sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment()
    )
    seconds, peak = done.stderr.split()[-2:]
    return float(seconds), float(peak)


def environment() -> dict[str, str]:
    """Return an environment in which Python may keep its bytecode, as an installed program's does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def ready_to_run(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """VM, memory and vCPU ready to run, against the same ioctls in C."""
    pairs = []
    with KvmAccelerator() as accelerator:
        set_up(accelerator)  # asks for the host's CPUID, once, as the peer does
        for _ in range(rounds):
            ours = statistics.median(set_up(accelerator) for _ in range(20))
            pairs.append((ours, statistics.median(output_of(peers["setup"], "20"))))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    detail = (
        f"{statistics.median(p[0] for p in pairs):.0f} µs against {statistics.median(p[1] for p in pairs):.0f} µs in C"
    )
    return [Figure("VM, vCPU and memory ready to run / the same ioctls in C", ratio, 1.5, "x", detail=detail)]


def set_up(accelerator: KvmAccelerator) -> float:
    """Return microseconds until a guest could run."""
    start = time.perf_counter()
    vm = accelerator.create_vm()
    memory = GuestMemory(MEMORY)
    vm.add_memory(memory)
    memory.write(0x7C00, b"\xf4")
    vcpu = vm.create_vcpu()
    state = real_mode(0x7C00)
    vcpu.sregs, vcpu.regs = state.sregs, state.regs
    seconds = time.perf_counter() - start
    vm.close()
    memory.close()
    return seconds * 1e6


def ring3(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """An arithmetic loop in the guest's ring 3, against the same instructions in a process."""
    ratios = []
    for _ in range(rounds):
        native = output_of(peers["native"], str(LOOP_ROUNDS))[0]
        ratios.append(native / ring3_loop())
    return [Figure("ring-3 guest code / native speed", statistics.median(ratios), 0.95, "x", True)]


def ring3_loop() -> float:
    """Return nanoseconds per round of the loop in ring 3."""
    with Testbed(ACCELERATOR, 64) as bed:
        assert isinstance(bed.run(RING3_LOOP, ring=3), IoOut)
        start = time.perf_counter()
        end = bed.go()
        seconds = time.perf_counter() - start
        assert isinstance(end, IoOut), end
        assert end.port == 0x11
        return seconds / LOOP_ROUNDS * 1e9


def software(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """The software CPU: its speed against the bare engine, exits, exceptions, starting, memory."""
    with SoftAccelerator() as soft:
        pairs = [(soft_loop(soft), bare_loop()) for _ in range(rounds)]
        exits = statistics.median(soft_exits(soft) for _ in range(rounds))
        exceptions = statistics.median(soft_exceptions(soft) for _ in range(rounds))
        first = statistics.median(soft_start(soft) for _ in range(5 * rounds))
        memory = soft_memory(soft)
        reads, writes = (statistics.median(soft_device(soft, code) for _ in range(rounds)) for code in DEVICE_LOOPS)
        turn, woken = (statistics.median(measure(soft) for _ in range(rounds)) for measure in (soft_switch, soft_wake))
        written = statistics.median(soft_host_write(soft) for _ in range(rounds))
        waiting = statistics.median(soft_waiting(soft) for _ in range(rounds))
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    detail = f"{statistics.median(ours for ours, _ in pairs):.0f} million instructions/s"
    return [
        Figure("software CPU: a hot loop / the bare engine without hooks", ratio, 0.5, "x", True, detail),
        Figure("software CPU: port-I/O exits served by a Python device", exits / 1e3, 100, "thousand/s", True),
        Figure("software CPU: an exception delivered, and IRET", exceptions, 10, "µs"),
        Figure("software CPU: a machine made, loaded and run to HLT", first, 5, "ms"),
        Figure("software CPU: resident memory of one of 100 machines (8 MiB guest, 1 MiB touched)", memory, 12, "MiB"),
        Figure("software CPU: a read of a device in memory, by Python", reads, 10, "µs"),
        Figure("software CPU: a write to it", writes, 10, "µs"),
        Figure("software CPU: a turn of another vCPU", turn, 3, "µs"),
        Figure("software CPU: the same, with a thread that wakes", woken, 20, "µs"),
        Figure("software CPU: what a host write in an exit handler costs more", written, 20, "µs"),
        Figure("software CPU: a loop while an interrupt waits with IF=0 / without", waiting, 0.9, "x", True),
    ]


def soft_loop(soft: SoftAccelerator) -> float:
    """Return millions of instructions a second of DEC and JNZ."""
    with Testbed(soft, 64) as bed:
        bed.load(SOFT_LOOP)
        start = time.perf_counter()
        end = bed.go(60)
        assert isinstance(end, IoOut), end
        return 2 * LOOP_ROUNDS / (time.perf_counter() - start) / 1e6


def bare_loop() -> float:
    """Return the same of Unicorn without any hook."""
    from unicorn import UC_ARCH_X86, UC_MODE_64, Uc

    engine, at = Uc(UC_ARCH_X86, UC_MODE_64), 0x1000
    engine.mem_map(0, 0x10000)
    engine.mem_write(at, SOFT_LOOP)
    start = time.perf_counter()
    engine.emu_start(at, at + len(SOFT_LOOP) - 2)
    return 2 * LOOP_ROUNDS / (time.perf_counter() - start) / 1e6


def soft_exits(soft: SoftAccelerator) -> float:
    """Return exits a second."""
    with Machine(soft, memory=MEMORY, irqchip="none", coalesce=False) as machine:
        machine.load(plan_code(OUT_FOREVER, memory=MEMORY))
        machine.bus.ports.replace(0xE9, Sink())
        machine.run(max_exits=WARM_UP, timeout=60)
        start = time.perf_counter()
        machine.run(max_exits=10 * EXITS, timeout=60)
        return 10 * EXITS / (time.perf_counter() - start)


def soft_exceptions(soft: SoftAccelerator) -> float:
    """Return microseconds for INT3 to a handler that returns at once."""
    with Testbed(soft, 64) as bed:
        bed.load(INT3_LOOP)
        bed.memory.write(HANDLERS + 4 * BREAKPOINT, IRETQ)
        start = time.perf_counter()
        end = bed.go(60)
        assert isinstance(end, IoOut), end
        return (time.perf_counter() - start) / EXITS * 1e6


def soft_device(soft: SoftAccelerator, code: bytes) -> float:
    """Return microseconds for one access to a device in memory, with Python's device and run loop."""
    with Machine(soft, memory=MEMORY, irqchip="none") as machine:
        machine.load(plan_code(code, mode="protected", memory=MEMORY))
        machine.bus.mmio.add(Sink(), DEVICE, 0x1000)
        machine.run(max_exits=WARM_UP, timeout=60)
        start = time.perf_counter()
        machine.run(max_exits=EXITS, timeout=60)
        return (time.perf_counter() - start) / EXITS * 1e6


def soft_switch(soft: SoftAccelerator) -> float:
    """Return how much longer an exit takes when another vCPU exited before, in microseconds."""
    with soft.create_vm() as vm, GuestMemory(1 << 20) as memory:
        vm.add_memory(memory)
        memory.write(0x1000, OUT_FOREVER)
        vcpus = [vm.create_vcpu(number) for number in range(2)]
        for vcpu in vcpus:
            state = real_mode(0x1000)
            vcpu.regs, vcpu.sregs = state.regs, state.sregs
        one, both = ([vcpus[0]] * EXITS, vcpus * (EXITS // 2))
        return (seconds_of(both) - seconds_of(one)) / EXITS * 1e6


def seconds_of(vcpus: list[SoftVcpu]) -> float:
    """Return the seconds that one exit of each takes."""
    enters = [vcpu.enter for vcpu in vcpus]
    start = time.perf_counter()
    for enter in enters:
        enter()
    return time.perf_counter() - start


def soft_wake(soft: SoftAccelerator) -> float:
    """Return microseconds for a turn, where two vCPUs in two threads wait for each other by PAUSE."""
    with soft.create_vm() as vm, GuestMemory(1 << 20) as memory:
        vm.add_memory(memory)
        memory.write(0x1000, PING_PONG)
        threads = []
        for number in range(2):
            vcpu, state = vm.create_vcpu(number, cpus=2), protected_mode(0x1000, 0x8000, gdt=0x800)
            state.regs.rcx, state.regs.rsi = EXITS, number
            vcpu.regs, vcpu.sregs = state.regs, state.sregs
            threads.append(threading.Thread(target=vcpu.run))
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - start) / (2 * EXITS) * 1e6


def soft_host_write(soft: SoftAccelerator) -> float:
    """Return how much longer an exit takes when its handler has written 4 bytes, in microseconds."""
    with Testbed(soft, 64) as bed:
        bed.load(OUT_FOREVER)
        plain, writing = [], []
        for times in (plain, writing) * 5:
            start = time.perf_counter()
            for _ in range(WARM_UP):
                bed.vcpu.enter()
                if times is writing:
                    bed.memory.write(0x500, b"four")
            times.append(time.perf_counter() - start)
        return (statistics.median(writing) - statistics.median(plain)) / WARM_UP * 1e6


def soft_waiting(soft: SoftAccelerator) -> float:
    """Return the speed of a loop while an interrupt waits, in units of that without."""
    speeds = []
    for waits in (False, True):
        with Testbed(soft, 64) as bed:
            bed.load(SOFT_LOOP)
            if waits:
                bed.vcpu.interrupt(0x40)
            start = time.perf_counter()
            bed.go(60)
            speeds.append(1 / (time.perf_counter() - start))
    return speeds[1] / speeds[0]


def soft_start(soft: SoftAccelerator) -> float:
    """Return milliseconds from nothing to a guest that halted."""
    start = time.perf_counter()
    with Machine(soft, memory=MEMORY, irqchip="none") as machine:
        machine.load(plan_code(b"\xf4", memory=MEMORY))
        machine.run(timeout=60)
        return (time.perf_counter() - start) * 1e3


def soft_memory(soft: SoftAccelerator) -> float:
    """Return MiB of resident memory for each of 100 machines that are alive together."""
    with ExitStack() as stack:
        before = resident()
        for _ in range(100):
            machine = stack.enter_context(Machine(soft, memory=8 << 20, irqchip="none"))
            machine.load(plan_code(TOUCH_1_MIB, mode="protected", memory=8 << 20))
            machine.run(timeout=60)
        return (resident() - before) / 100


def resident() -> float:
    """Return this process's resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


def live(peers: dict[str, Path], rounds: int) -> list[Figure]:
    """A guest that prints a line, from nothing to its end; a thousand of them alive; and the whole comparison."""
    allow_descriptors(MANY * DESCRIPTORS)
    subject = Virtual("kvm")
    with closing(subject):
        warm = statistics.median(timed(subject.warm) for _ in range(20 * rounds))
        held = hold(subject, MANY)
    assert not held.missing, held.missing
    done = subprocess.run([sys.executable, "-m", "kvmpy", "compare", "--quick", "--json"], capture_output=True)
    seconds = json.loads(done.stdout)["seconds"]
    return [
        Figure("hello.bin from a warm process: made, run to its end, closed", warm, 3, "ms"),
        Figure(f"{MANY} machines (hello.bin, 1 MiB) made and alive", held.milliseconds / 1e3, 5, "s"),
        Figure("memory of each, kernel included", held.owned, 700, "KiB"),
        Figure("`kvmpy compare --quick`", seconds, 60, "s"),
    ]


BENCHMARKS = (port_exit, machines, console, processes, ready_to_run, ring3, software, live)


if __name__ == "__main__":
    sys.exit(main())
