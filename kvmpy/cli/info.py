"""kvmpy info: what this host's KVM can do."""

from __future__ import annotations

import platform

from kvmpy.accel.kvm import KvmAccelerator
from kvmpy.cli.arguments import command_parser
from kvmpy.kvm.capabilities import CAPABILITIES
from kvmpy.kvm.system import API_VERSION, DEVICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EPILOG = """\
Capabilities are what KVM says it can do; features are what it did when kvmpy tried, each in a small throwaway guest.

exit codes:
  0   KVM can be used
  69  it cannot; the message says why

examples:
  kvmpy info
  kvmpy info --all
  kvmpy info --json
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("info", "Show what this host's KVM can do, and what each thing means.", EPILOG)
    p.add_argument("--all", action="store_true", help="list missing capabilities too")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """Print the report."""
    with KvmAccelerator() as accelerator:
        capabilities = accelerator.kvm.capabilities()
        features = {name: bool(getattr(accelerator.features, name)) for name in accelerator.features.names()}
        if options.json:
            import json

            print(json.dumps({"api_version": API_VERSION, "capabilities": capabilities, "features": features}))
        else:
            print(_text(accelerator, capabilities, features, every=options.all))
    return 0


def _text(accelerator: KvmAccelerator, capabilities: dict[str, int], features: dict[str, bool], *, every: bool) -> str:
    lines = [
        f"{DEVICE}: KVM API {API_VERSION} on Linux {platform.release()}, {platform.machine()}",
        "",
        "features (tried):",
    ]
    lines += [
        f"  {'yes' if on else 'no':4}{name:18}{accelerator.features.explain(name)}" for name, on in features.items()
    ]
    lines += ["", "capabilities (announced):"]
    for name, value in capabilities.items():
        if value or every:
            lines.append(f"  {value:<12}{name.removeprefix('KVM_CAP_'):28}{CAPABILITIES[name]}")
    missing = sum(1 for value in capabilities.values() if not value)
    if missing and not every:
        lines.append(f"  {missing} are missing on this host; --all lists them")
    return "\n".join(lines)
