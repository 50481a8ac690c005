"""Which accelerator runs the guest: chosen by name, by the environment, or by what this machine has."""

from __future__ import annotations

import os

from kvmpy.errors import ConfigError, NoAcceleratorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.accel.base import Accelerator

NAMES = ("auto", "kvm", "soft")
VARIABLE = "KVMPY_ACCEL"


def open_accelerator(name: str | None = None) -> Accelerator:
    """Open the accelerator `name`: "kvm", "soft" (the software CPU), or "auto", which takes KVM when it opens.

    Without a name the environment's KVMPY_ACCEL decides, else it is "auto". Only the chosen one is imported. What
    "auto" had to do without is in the accelerator's `instead_of`. NoAcceleratorError when the one that was asked for,
    or any, cannot be used, ConfigError for a name that is none.

    >>> with open_accelerator("soft") as accelerator:
    ...     accelerator.name, accelerator.features.int3
    ('soft', True)
    """
    name = name or os.environ.get(VARIABLE) or "auto"
    if name not in NAMES:
        raise ConfigError(f"accelerator {name!r}: choose one of {', '.join(NAMES)} (also in the variable {VARIABLE})")
    if name == "soft":
        return _open_soft()
    try:
        return _open_kvm()
    except NoAcceleratorError as error:
        if name == "kvm":
            raise
        return _soft_instead_of(error)


def _open_kvm() -> Accelerator:
    from kvmpy.accel.kvm import KvmAccelerator

    return KvmAccelerator()


def _open_soft() -> Accelerator:
    from kvmpy.accel.soft import SoftAccelerator

    return SoftAccelerator()


def _soft_instead_of(reason: NoAcceleratorError) -> Accelerator:
    try:
        accelerator = _open_soft()
    except NoAcceleratorError as error:
        raise NoAcceleratorError(f"{reason}; and {error}") from None
    accelerator.instead_of = str(reason)
    return accelerator
