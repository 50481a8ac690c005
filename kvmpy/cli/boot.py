"""kvmpy boot: run a guest with its serial port on this terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from kvmpy.boot.image import plan_image
from kvmpy.cli.arguments import add_accelerator, address, command_parser, count, memory_size, open_chosen, seconds
from kvmpy.cli.exit_codes import EXPLAINED, exit_code_of
from kvmpy.cli.report import Recorder
from kvmpy.cli.streams import complain
from kvmpy.cli.terminal import Keyboard, RawTerminal
from kvmpy.machine.chips import NAMES
from kvmpy.machine.machine import DEFAULT_MEMORY, Machine
from kvmpy.machine.output import OutputWriter
from kvmpy.machine.stop import Stop, StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType
    from typing import Self

    from kvmpy.boot.plan import BootPlan

STDIN, STDOUT = 0, 1
HINTS = {StopKind.TIMEOUT: " (--timeout)", StopKind.EXIT_LIMIT: " (--max-exits)"}

EPILOG = f"""\
The guest's serial port COM1 is standard input and output. On a terminal, Ctrl-A
x quits and Ctrl-A h helps; at the end of piped input the guest gets Ctrl-D. A
bare name that is no file here is looked up among the bundled guests. NAME.json
beside NAME.bin says how to boot it; the options override it.

{EXPLAINED}
examples:
  kvmpy boot guest.bin
  kvmpy boot my.bin --mode long --memory 1G --cpus 2
  kvmpy boot my.bin --load 0x8000 --entry 0x8010 --timeout 5
  printf 'mem\\nhalt 3\\n' | kvmpy boot guest.bin; echo $?
  kvmpy boot my.bin --json --timeout 5 < /dev/null
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("boot", "Boot a guest image.", EPILOG)
    p.add_argument("file", metavar="FILE", help="a flat image, or the name of a bundled guest (guest.bin, hello.bin)")
    p.add_argument(
        "--memory", type=memory_size, default=DEFAULT_MEMORY, metavar="SIZE", help="guest memory (default 64M)"
    )
    p.add_argument("--cpus", type=count, default=1, metavar="N", help="number of vCPUs (default 1)")
    p.add_argument("--mode", choices=("real", "protected", "long"), help="the mode the image starts in (default real)")
    p.add_argument("--load", type=address, metavar="ADDR", help="where it is loaded (default 0x7c00, else 0x100000)")
    p.add_argument("--entry", type=address, metavar="ADDR", help="its first instruction (default: where it is loaded)")
    p.add_argument("--append", default="", metavar="TEXT", help="a command line, its address in the guest's (E/R)SI")
    add_accelerator(p)
    p.add_argument(
        "--irqchip",
        choices=NAMES,
        help="interrupt controllers and timer: KVM's own, Python's, none (default: KVM's own where there are any)",
    )
    p.add_argument("--timeout", type=seconds, metavar="SECONDS", help="stop the guest after this time")
    p.add_argument("--max-exits", type=count, metavar="N", help="stop a vCPU after this many exits")
    p.add_argument("--strict", action="store_true", help="an access that no device claims is a crash")
    p.add_argument("--no-coalesce", action="store_true", help="exit for every byte of console output")
    p.add_argument("--json", action="store_true", help="print one JSON object at the end instead of the guest's output")
    p.add_argument("--debug", action="store_true", help="tell why the guest stopped, and show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """Boot, and return the exit code."""
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    with Signals() as signals, open_chosen(options) as accelerator:
        plan = _plan(options, deadline)
        with Machine(
            accelerator,
            memory=options.memory,
            cpus=options.cpus,
            irqchip=options.irqchip or plan.irqchip,
            strict=options.strict,
            coalesce=not options.no_coalesce,
        ) as machine:
            machine.load(plan)
            run = Run(options, machine, deadline, signals)
            stop = run.recorded() if options.json else run.shown()
            _explain(options, stop, machine, plan)
            return signals.code or exit_code_of(stop)


def _plan(options: argparse.Namespace, deadline: float | None) -> BootPlan:
    return plan_image(
        options.file,
        memory=options.memory,
        mode=options.mode,
        load=options.load,
        entry=options.entry,
        append=options.append,
        deadline=deadline,
    )


def _closed(output: OutputWriter) -> Stop:
    return Stop(StopKind.OUTPUT_CLOSED, f"standard output: {output.why}")


class Run:
    """One run of a machine, with its serial port on standard input and output."""

    def __init__(self, options: argparse.Namespace, machine: Machine, deadline: float | None, signals: Signals) -> None:
        self._options = options
        self._machine = machine
        self._deadline = deadline
        self._signals = signals

    def shown(self) -> Stop:
        """Run, and pass the guest's output on while it runs."""
        machine = self._machine
        with OutputWriter(
            STDOUT, hold=machine.hold, release=machine.gate.release, closed=lambda: machine.stop(_closed(output))
        ) as output:
            machine.output = output.write
            stop = self._run()
            output.finish(self._given_up)
            return _closed(output) if output.broken and stop.clean else stop

    def recorded(self) -> Stop:
        """Run, and print one JSON object at the end."""
        recorder = Recorder()
        self._machine.output = recorder.write
        started = time.monotonic()
        stop = self._run()
        seconds_run = time.monotonic() - started
        code = self._signals.code or exit_code_of(stop)
        report = _report(recorder, stop, self._machine, seconds_run, code)
        with OutputWriter(STDOUT, hold=ignore, release=ignore, closed=lambda: None) as output:
            output.write(report.encode() + b"\n")
            output.finish(self._given_up)
            return _closed(output) if output.broken else stop

    def _run(self) -> Stop:
        machine = self._machine
        keyboard = Keyboard(STDIN, machine, lambda: machine.stop(Stop(StopKind.QUIT, "Ctrl-A x")))
        keyboard.watch()
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        with self._signals.stopping(machine), RawTerminal(STDIN):
            return machine.run(timeout=left, max_exits=self._options.max_exits)

    def _given_up(self) -> bool:
        """Whether to wait no longer for a slow reader: a signal came, someone quit, or the time is over."""
        stop = self._machine.stop_reason
        quit = stop is not None and stop.kind in (StopKind.QUIT, StopKind.TIMEOUT)
        return quit or bool(self._signals.code) or (self._deadline is not None and time.monotonic() > self._deadline)


def ignore(_who: str) -> None:
    """Do nothing: nobody need be held up."""


def _explain(options: argparse.Namespace, stop: Stop, machine: Machine, plan: BootPlan) -> None:
    """Tell on standard error why the guest stopped, unless it simply ended."""
    if stop.crashed:
        from kvmpy.lab.postmortem import post_mortem

        complain("\n".join(post_mortem(stop, machine, plan.symbols)))
    elif not stop.clean or options.debug:
        hint = HINTS.get(stop.kind, "")
        complain(f"kvmpy: {stop.kind}: {stop.detail}{hint}")
    if options.debug:
        for space in (machine.bus.ports, machine.bus.mmio):
            for (kind, at, width), times in sorted(space.unclaimed.items()):
                complain(f"kvmpy: no device at {space.name} {at:#x}: {times} x {kind} of {width} bytes")


def _report(recorder: Recorder, stop: Stop, machine: Machine, seconds_run: float, code: int) -> str:
    return recorder.report(
        stop,
        seconds_run,
        code,
        model="vm",
        accelerator=machine.accelerator,
        vcpu=stop.vcpu,
        entries=[vcpu.entries for vcpu in machine.vcpus],
        registers=[_hexadecimal(vcpu.regs) for vcpu in machine.vcpus],
    )


def _hexadecimal(registers: object) -> dict[str, str]:
    from kvmpy.cpu.state import GENERAL_REGISTERS

    return {name: f"{getattr(registers, name):#x}" for name in GENERAL_REGISTERS}


class Signals:
    """While it is entered, signals stop a machine that runs in good order; else they end kvmpy.

    All are caught whose default is to end a process: the terminal would stay raw.

    They end it at once: an exception would be lost where Python ignores one (the import system, for one, is called
    back when one of its locks goes), and there is nothing yet, or nothing any more, to put in order.
    """

    CAUGHT = (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
        signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
    )  # fmt: skip

    def __init__(self) -> None:
        self.code = 0
        self._machine: Machine | None = None
        self._before: list[tuple[int, object]] = []

    def __enter__(self) -> Self:
        wanted = [number for number in self.CAUGHT if signal.getsignal(number) != signal.SIG_IGN]  # nohup(1) means it
        self._before = [(number, signal.signal(number, self._caught)) for number in wanted]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def stopping(self, machine: Machine) -> Iterator[None]:
        """Stop this machine meanwhile; one that comes before the machine has begun to run is found when it does."""
        self._machine = machine
        machine.events.post(self._look)
        try:
            yield
        finally:
            self._machine = None

    def _look(self) -> None:
        if self._machine and self.code:
            self._machine.stop(Stop(StopKind.QUIT, signal.Signals(self.code - 128).name))

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self.code = 128 + number
        if self._machine is None:
            os._exit(self.code)
        self._look()
