"""kvmpy container: the shortest way to a container, as a person wants it."""

from __future__ import annotations

import os

from kvmpy.cli.arguments import a_name, command_parser, count, processors, size
from kvmpy.cli.streams import complain
from kvmpy.container.command_line import NAME
from kvmpy.container.launch import NATIVE
from kvmpy.container.simple import WITHOUT_FILTER, WITHOUT_ROOT, Wish, configuration, layer_of
from kvmpy.container.state import Store
from kvmpy.container.tape import Tape
from kvmpy.container.verbs.create import Creation, Extras
from kvmpy.container.verbs.run import run_in_foreground

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EPILOG = """\
exit codes:
  0-255  what the program returned, 128 + the signal it died of
  125    the container could not be made; the message says why
  126    the program cannot be executed
  127    the program is not there

examples:
  kvmpy container run rootfs -- sh -c 'id; hostname'
  kvmpy container run -it --overlay rootfs
  kvmpy container run --layer kept rootfs -- touch /new; ls kept/upper
  kvmpy container run --memory 64M --cpus 0.5 --pids 20 rootfs -- nproc
  kvmpy container run --dry-run -v rootfs -- true
  podman --runtime $(kvmpy container path) run --rm --network none alpine true
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("container", "Run programs in containers.", EPILOG)
    commands = p.add_subparsers(dest="action", required=True, metavar="run|path")
    run = commands.add_parser(
        "run", help="run a command in a root directory", epilog=EPILOG, formatter_class=p.formatter_class
    )
    add_run_options(run)
    run.set_defaults(parser=run)
    commands.add_parser("path", help="print where the OCI runtime kvmpy-oci is, for podman and others")
    for each in (p, run):
        each.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def add_run_options(p: argparse.ArgumentParser) -> None:
    """Add what `run` takes."""
    p.add_argument("rootfs", metavar="ROOTFS", help="the directory that becomes the container's root")
    p.add_argument("command", metavar="CMD", nargs="*", help="the program and its arguments (default sh)")
    p.add_argument("-i", "--interactive", action="store_true", help="taken for granted: standard input is passed on")
    p.add_argument("-t", "--tty", action="store_true", help="give it a terminal of its own")
    p.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="an environment variable")
    p.add_argument("-w", "--workdir", default="/", metavar="DIR", help="the working directory")
    p.add_argument("-u", "--user", default="0", metavar="USER[:GROUP]", help="by number, or name of the container's")
    p.add_argument("--hostname", default="", metavar="NAME", help="the host name inside (default kvmpy)")
    p.add_argument("--name", default="", metavar="ID", help="the container's own name")
    p.add_argument("--memory", type=size, default=0, metavar="SIZE", help="the most memory it may use, as 64M")
    p.add_argument("--cpus", type=processors, default=0.0, metavar="N", help="the most processor time, as 0.5")
    p.add_argument("--pids", type=count, default=0, metavar="N", help="the most processes and threads")
    p.add_argument("--read-only", action="store_true", help="the root cannot be written")
    p.add_argument("--volume", action="append", default=[], metavar="DIR:/DIR[:ro]", help="a directory of the host's")
    p.add_argument("--overlay", action="store_true", help="leave ROOTFS as it is: what is written goes to memory")
    p.add_argument("--layer", type=a_name, metavar="DIR", help="the same, but it is kept in DIR, below upper/")
    p.add_argument(
        "--share",
        type=lambda text: text.split(","),
        default=[],
        metavar="KINDS",
        help="namespaces that stay the host's: cgroup,ipc,net,pid,time,user,uts",
    )
    p.add_argument("--dry-run", action="store_true", help="print the operations instead")
    p.add_argument("-v", "--verbose", action="store_true", help="with --dry-run: and their system calls")


def run(options: argparse.Namespace) -> int:
    """Carry out the action."""
    if options.action == "path":
        print(f"{NATIVE}/{NAME}")
        return 0
    creation = prepare(options)
    if options.dry_run:
        show(creation, options.verbose)
        return 0
    if os.geteuid() != 0:
        warn(WITHOUT_ROOT)
    if not creation.plan.filter:
        warn(WITHOUT_FILTER)
    return run_in_foreground(creation, warn, fatal=True).code


def prepare(options: argparse.Namespace) -> Creation:
    """Make the plan of what the options ask for."""
    wish = Wish(
        options.rootfs,
        options.command or ["sh"],
        env=options.env,
        cwd=options.workdir,
        user=options.user,
        hostname=options.hostname,
        terminal=options.tty,
        read_only=options.read_only,
        memory=options.memory,
        cpus=options.cpus,
        pids=options.pids,
        volumes=options.volume,
        overlay=options.overlay,
        layer=options.layer or "",
        share=options.share,
    )
    name = options.name or f"run-{os.getpid()}"
    return Creation(Store(), name, os.getcwd(), configuration(wish), Extras(layer=layer_of(wish)))


def warn(text: str) -> None:
    """Tell what is not as wished."""
    complain(f"kvmpy: {text}")


def show(creation: Creation, verbose: bool) -> None:
    """Print the container as a list to read."""
    tape = Tape(creation.plan.fds)
    tape.write(creation.plan.operations)
    for number, (operation, calls) in enumerate(tape.lines(), 1):
        print(f"{number:3} {operation.describe() if operation else ''}")
        if verbose:
            print("\n".join(f"      {call}" for call in calls))
