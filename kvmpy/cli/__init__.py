"""The command line: one file per command, found by name, imported only when it is called."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys

from kvmpy.cli.exit_codes import ExitCode, exit_code_of
from kvmpy.cli.streams import (
    UNWRITABLE,
    complain,
    forget_stdout,
    open_standard_descriptors,
    say_it_plainly,
    settle_stderr,
)
from kvmpy.errors import NO_PROCESS, KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from types import ModuleType

COMMANDS = {
    "boot": "boot a guest, with its serial port on this terminal",
    "run": "run something as a machine, in a container, or as a process",
    "container": "run a program in namespaces and control groups",
    "compare": "ask process, container and machine the same questions",
    "demo": "show how virtualization works, step by step",
    "info": "show what this host's KVM can do, and what each thing means",
    "asm": "assemble a source file into a flat image",
    "disasm": "disassemble a flat image",
    "completion": "print the completion script for a shell",
}

HELP = """\
usage: kvmpy [-V | --version] [-h | --help] COMMAND ...

A laboratory for virtualization: a tiny x86 hypervisor on KVM, and containers.

commands:
{commands}

examples:
  kvmpy boot guest.bin               the bundled kernel, with its monitor
  echo help | kvmpy boot guest.bin   its monitor, fed from a pipe
  kvmpy info                         what this machine can do
  kvmpy demo trap                    what virtualization is, in one instruction
  kvmpy compare --quick              process, container and machine, measured
  kvmpy container run rootfs -- sh   the other model: a container of a directory

'kvmpy help COMMAND' explains a command, its exit codes and examples.
"""


def main(arguments: Sequence[str] | None = None, *, imported: Callable[[], object] = lambda: None) -> int:
    """Run the command line and return the process's exit code; `imported` is called when the command begins."""
    open_standard_descriptors()
    say_it_plainly()
    try:
        return _main(sys.argv[1:] if arguments is None else list(arguments), imported)
    finally:
        settle_stderr()


def _main(arguments: list[str], imported: Callable[[], object]) -> int:
    name = arguments[0] if arguments else "--help"
    if name == "help" and arguments[1:]:
        name = arguments[1]
        arguments = [*arguments[1:], "--help"]
    if name in ("-h", "--help", "help"):
        return _print(help_text(), ExitCode.OK if arguments else ExitCode.USAGE)
    if name in ("-V", "--version", "version"):
        from kvmpy import __version__

        return _print(f"kvmpy {__version__}\n")
    if name not in COMMANDS:
        complain(f"kvmpy: no command {name!r}; {_suggestion(name)}")
        return ExitCode.USAGE
    return _run(name, arguments[1:], imported)


def _suggestion(name: str) -> str:
    """Return what may have been meant, or all that there is."""
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), COMMANDS, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"


def help_text() -> str:
    """Return the help of `kvmpy` itself."""
    return HELP.format(commands="\n".join(f"  {name:12}{summary}" for name, summary in COMMANDS.items()))


def command_module(name: str) -> ModuleType:
    """Import the file of a command: it has `parser()` and `run(options)`.

    Imports make no garbage, and what they make stays: the collector need not look, now or at the end (2 ms of 25).
    """
    gc.disable()
    try:
        return importlib.import_module(f"kvmpy.cli.{name}")
    finally:
        gc.freeze()
        gc.enable()


def _run(name: str, arguments: Sequence[str], imported: Callable[[], object]) -> int:
    options = None
    try:
        command = command_module(name)
        options = _parse(command.parser(), arguments)
        imported()
        code: int = command.run(options)
        sys.stdout.flush()
    except KvmpyError as error:
        _trace(options)
        complain(f"kvmpy: {error}")
        return exit_code_of(error)
    except OSError as error:
        if error.errno in UNWRITABLE:
            return _output_failed(error)
        _trace(options)
        return _host_failed(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; the help that this may print is written out before the process ends."""
    try:
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            program = getattr(options, "command", None) or getattr(options, "arguments", None)
            hint = f"; write -- before the program: -- {program[0]} {' '.join(unknown)}" if program else ""
            getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options
    except SystemExit:
        sys.stdout.flush()
        raise


def _trace(options: argparse.Namespace | None) -> None:
    """With --debug, show where the error that is being handled came from; the exit code stays what it is."""
    if getattr(options, "debug", False):
        import traceback

        complain(traceback.format_exc().rstrip("\n"))


def _print(text: str, code: int = 0) -> int:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        return _output_failed(error)
    return code


def _host_failed(error: OSError) -> int:
    """Tell what the host refused, where no part of kvmpy expected it."""
    what = f"{error.filename}: " if error.filename else ""
    why = NO_PROCESS if error.errno == errno.EAGAIN else os.strerror(error.errno or 0).lower()
    complain(f"kvmpy: {what}{why}")
    return ExitCode.HOST_ERROR


def _output_failed(error: OSError) -> int:
    """Tell that standard output took no more, unless whoever read it simply went away."""
    if error.errno != errno.EPIPE:
        complain(f"kvmpy: standard output: {os.strerror(error.errno or 0).lower()}; nothing more is written")
    forget_stdout()
    return ExitCode.OUTPUT_CLOSED
