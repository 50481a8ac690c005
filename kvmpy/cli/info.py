"""kvmpy info: what can execute guests on this machine, and what each can do."""

from __future__ import annotations

import platform

from kvmpy.accel.choose import NAMES, open_accelerator
from kvmpy.accel.probe import PROBES
from kvmpy.cli.arguments import command_parser
from kvmpy.cli.exit_codes import ExitCode
from kvmpy.errors import NoAcceleratorError
from kvmpy.kvm.capabilities import CAPABILITIES
from kvmpy.kvm.system import API_VERSION, DEVICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    Features = dict[str, bool]

EPILOG = """\
Capabilities are what KVM says it can do; features are what an accelerator did
when kvmpy tried, each in a small throwaway guest. The software CPU is the same
everywhere: its features are known, and tried by the tests.

exit codes:
  0   a guest can run, on KVM or on the software CPU
  69  neither can be used; the message says why

examples:
  kvmpy info
  kvmpy info --all
  kvmpy info --accel soft --json
"""
TITLES = {"kvm": "KVM", "soft": "the software CPU"}
# What KVM adds, told to who has none.
KVM_ADDS = (
    "the guest's code at the processor's own speed",
    "interrupt chips, timers and eventfds in the kernel: no exit for each interrupt",
    "AVX and segment limits: all that the processor has",
)


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = command_parser("info", "Show what can execute guests on this machine, and what each can do.", EPILOG)
    p.add_argument("--accel", choices=NAMES, default="auto", help="only this one (default: all there are)")
    p.add_argument("--all", action="store_true", help="list missing capabilities too")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(options: argparse.Namespace) -> int:
    """Print the report."""
    wanted = [name for name in TITLES if options.accel in ("auto", name)]
    features: dict[str, Features] = {}
    missing: dict[str, str] = {}
    for name in wanted:
        try:
            with open_accelerator(name) as accelerator:
                features[name] = {probe: bool(getattr(accelerator.features, probe)) for probe in PROBES}
        except NoAcceleratorError as error:
            missing[name] = str(error)
    if not features:
        raise NoAcceleratorError("; and ".join(missing.values()))
    capabilities = _capabilities() if "kvm" in features else {}
    if options.json:
        import json

        version = API_VERSION if capabilities else None
        print(
            json.dumps({"api_version": version, "capabilities": capabilities, "features": features, "missing": missing})
        )
    else:
        print("\n".join(_text(features, missing, capabilities, every=options.all)))
    return ExitCode.OK


def _capabilities() -> dict[str, int]:
    from kvmpy.kvm.system import Kvm

    with Kvm() as kvm:
        return kvm.capabilities()


def _text(
    features: dict[str, Features], missing: dict[str, str], capabilities: dict[str, int], *, every: bool
) -> list[str]:
    lines = [f"Linux {platform.release()}, {platform.machine()}"]
    for name, title in TITLES.items():
        if name in features:
            what = f"{DEVICE}, API {API_VERSION}" if name == "kvm" else "Unicorn"
            lines.append(f"{name:5} {title}: {what}")
        elif name in missing:
            lines.append(f"{name:5} {title}: no. {missing[name]}")
    if "kvm" in missing:
        lines += ["      with KVM there would be:", *(f"      - {what}" for what in KVM_ADDS)]
    lines += ["", "features (tried):", "  " + "".join(f"{name:5}" for name in features)]
    for probe, (meaning, _) in PROBES.items():
        marks = "".join(f"{'yes' if found[probe] else 'no':5}" for found in features.values())
        lines.append(f"  {marks}{probe:18}{meaning}")
    if capabilities:
        lines += ["", "capabilities (announced by KVM):"]
        lines += [
            f"  {value:<12}{name.removeprefix('KVM_CAP_'):28}{CAPABILITIES[name]}"
            for name, value in capabilities.items()
            if value or every
        ]
        absent = sum(1 for value in capabilities.values() if not value)
        if absent and not every:
            lines.append(f"  {absent} are missing on this host; --all lists them")
    return lines
