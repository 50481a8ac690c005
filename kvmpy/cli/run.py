"""kvmpy run: the same thing as a virtual machine, in a container, or as a plain process."""

from __future__ import annotations

import os
import signal
import time

from kvmpy.cli.arguments import add_accelerator, command_parser, processors, seconds, size
from kvmpy.cli.exit_codes import exit_code_of
from kvmpy.cli.report import Recorder
from kvmpy.cli.streams import complain
from kvmpy.errors import ConfigError
from kvmpy.machine.stop import Stop, StopKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from kvmpy.container.foreground import Ending
    from kvmpy.container.host import Json
    from kvmpy.container.verbs.create import Creation

    Output = tuple[int, Callable[[bytes], None]] | None

EPILOG = """\
what is run:
  --as vm         WHAT is a guest image, or the name of a bundled guest
  --as container  WHAT is a root directory, or an OCI bundle; behind -- the
                  program (default sh, or the bundle's own)
  --as process    WHAT is a program; behind -- its arguments

what the options mean:
             vm                     container            process
  --memory   the RAM (default 64M)  the group's pages    RLIMIT_AS: addresses
  --cpus     vCPUs, a whole number  the group's time     affinity, rounded up
  --timeout  the machine stops      all are killed       it is killed
  --console  pass: standard input and output; tty: a terminal of its own (a VM's
             serial port is one anyway); none: standard input is empty

exit codes:
  0-255  the program's or the guest's own
  66     the image cannot be read (vm)
  69     nothing can execute the guest (vm)
  70     the guest crashed (vm)
  74     standard output was closed
  124    --timeout was reached
  125    the container could not be made
  126    the program cannot be executed
  127    the program is not there
  128+N  signal N killed it, or told kvmpy to end

examples:
  kvmpy run --as vm hello.bin
  kvmpy run --as container rootfs -- sh -c 'id; hostname'
  kvmpy run --as process sh -- -c 'exit 3'
  kvmpy run --as vm --memory 16M --timeout 5 --json guest.bin
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("run", "Run something as a virtual machine, in a container, or as a plain process.", EPILOG)
    p.add_argument("--as", dest="model", choices=RUNNERS, required=True, help="which model of isolation")
    p.add_argument("what", metavar="WHAT", help="an image, a root directory or bundle, a program")
    p.add_argument("arguments", metavar="ARG", nargs="*", help="behind --: the program and its arguments")
    p.add_argument("--memory", type=size, default=0, metavar="SIZE", help="how much memory, as 64M")
    p.add_argument("--cpus", type=processors, default=0.0, metavar="N", help="how many processors")
    p.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end it after this time")
    p.add_argument("--console", choices=("pass", "tty", "none"), default="pass", help="its input and output")
    p.add_argument("--json", action="store_true", help="print one JSON object at the end instead of the output")
    add_accelerator(p)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """Run it, and return the exit code."""
    if options.console == "none":
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    return RUNNERS[options.model](options)


def run_vm(options: argparse.Namespace) -> int:
    """Boot an image; `kvmpy boot` has all there is to choose."""
    from kvmpy.cli import boot

    if options.arguments:
        raise ConfigError("--as vm: an image takes no arguments; 'kvmpy boot --append TEXT' gives it a command line")
    if options.cpus != int(options.cpus):
        raise ConfigError(f"--cpus {options.cpus}: a machine has whole processors")
    chosen = boot.parser().parse_args([options.what])
    chosen.memory = options.memory or chosen.memory
    chosen.cpus = int(options.cpus) or chosen.cpus
    for name in ("timeout", "json", "accel", "debug"):
        setattr(chosen, name, getattr(options, name))
    return boot.run(chosen)


def run_container(options: argparse.Namespace) -> int:
    """Run a program in a root directory, or a bundle."""
    from kvmpy.cli.container import warn
    from kvmpy.container.verbs.run import run_in_foreground

    def go(output: Output, stdout: int) -> Ending:
        creation = make_container(options)
        if stdout >= 0:
            creation.extras.streams = {1: stdout}
        return run_in_foreground(creation, warn, fatal=True, output=output, seconds=options.timeout)

    return report(options, go)


def make_container(options: argparse.Namespace) -> Creation:
    """Plan the container that the options ask for."""
    from kvmpy.container.simple import Wish, configuration
    from kvmpy.container.state import Store
    from kvmpy.container.verbs.create import Creation, Extras

    tty = options.console == "tty"
    name = f"run-{os.getpid()}"
    if os.path.isfile(os.path.join(options.what, "config.json")):
        return Creation(Store(), name, os.path.abspath(options.what), bundle_config(options, tty), Extras())
    command = options.arguments or ["sh"]
    wish = Wish(options.what, command, memory=options.memory, cpus=options.cpus, terminal=tty)
    return Creation(Store(), name, os.getcwd(), configuration(wish), Extras())


def bundle_config(options: argparse.Namespace, tty: bool) -> Json:
    """Return a bundle's configuration with what the options change of it."""
    from kvmpy.container.config import load
    from kvmpy.container.simple import limits

    config = load(os.path.abspath(options.what))
    process = config.setdefault("process", {})
    process["terminal"] = tty
    if options.arguments:
        process["args"] = options.arguments
    resources = config.setdefault("linux", {}).setdefault("resources", {})
    for name, limit in limits(options.memory, options.cpus, 0).items():
        resources.setdefault(name, {}).update(limit)
    return config


def run_process(options: argparse.Namespace) -> int:
    """Run a program with nothing around it but limits."""
    from kvmpy.compare.process import start_process
    from kvmpy.container.foreground import PASSED_ON, SignalsWait, Terminal, wait

    def go(output: Output, stdout: int) -> Ending:
        tty = options.console == "tty"
        with Terminal() as terminal:
            master, slave = os.openpty() if tty else (-1, -1)
            with SignalsWait():  # the program may be quicker than we are
                pid = start_process(
                    [options.what, *options.arguments],
                    memory=options.memory,
                    cpus=options.cpus,
                    stdout=max(stdout, 1),
                    terminal=slave,
                    unblock=PASSED_ON,
                )
                if tty:
                    os.close(slave)
                    terminal.show(master)
                shown = terminal if tty else None
                return wait(pid, shown, fatal=True, output=output, seconds=options.timeout)

    return report(options, go)


def report(options: argparse.Namespace, go: Callable[[Output, int], Ending]) -> int:
    """Run a container or process, with its output shown, or kept for the JSON object."""
    started = time.monotonic()
    if not options.json:
        stop = stop_of(go(None, -1), options.timeout)
        if stop.kind in (StopKind.TIMEOUT, StopKind.KILLED):
            complain(f"kvmpy: {stop.kind}: {stop.detail}")
        return exit_code_of(stop)
    recorder = Recorder()
    reader, writer = os.pipe()
    try:
        stop = stop_of(go((reader, recorder.write), writer), options.timeout)
    finally:
        os.close(reader)
        os.close(writer)
    code = exit_code_of(stop)
    print(recorder.report(stop, time.monotonic() - started, code, model=options.model))
    return code


def stop_of(ending: Ending, timeout: float | None) -> Stop:
    """Return the stop reason of a program that ended."""
    if ending.late:
        return Stop(StopKind.TIMEOUT, f"it still ran after {timeout:g} s; raise --timeout to give it longer")
    if ending.asked and ending.code == 128 + ending.asked:
        return Stop(StopKind.QUIT, signal.Signals(ending.asked).name, ending.code)
    if os.WIFSIGNALED(ending.status):
        number = os.WTERMSIG(ending.status)
        return Stop(
            StopKind.KILLED, f"by {signal.Signals(number).name}; it crashed, or --memory was too little", number
        )
    return Stop(StopKind.EXIT, f"the program returned {ending.code}", ending.code)


RUNNERS = {"vm": run_vm, "container": run_container, "process": run_process}
