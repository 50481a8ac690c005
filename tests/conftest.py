"""What all tests share: the accelerators of this machine, and guests of a few instructions."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator

import pytest
from leftovers import host_state, left_since
from peers import HAS_KVM, sums, why_not

from kvmpy.accel.base import Accelerator
from kvmpy.accel.exits import Exit, Hlt
from kvmpy.accel.kvm import KvmAccelerator
from kvmpy.accel.soft import SoftAccelerator
from kvmpy.accel.testbed import CODE, MEMORY, Testbed
from kvmpy.asm import assemble
from kvmpy.errors import NoAcceleratorError

ACCELERATORS: dict[str, Callable[[], Accelerator]] = {"kvm": KvmAccelerator, "soft": SoftAccelerator}
EXIT_LIMIT = 10_000


def pytest_configure(config: pytest.Config) -> None:
    """Let children obey signals, find an accelerator, start quickly and write as for a user, wherever it is.

    Where Python does not buffer (PYTHONUNBUFFERED) what cannot be written is seen at once, and not at the end. With
    nohup(1) or in a shell's background signals are ignored. Without KVM the command line would say in each run
    that the software CPU runs the guest. Where Python keeps no compiled code, as in a fresh checkout whose environment
    forbids it, every start of the command line would compile all of it: 50 ms of 100, two thousand times.
    """
    compiled = tempfile.TemporaryDirectory(prefix="kvmpy-compiled-")
    config.add_cleanup(compiled.cleanup)
    os.chmod(compiled.name, 0o755)
    os.environ["PYTHONPYCACHEPREFIX"] = compiled.name
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        os.environ.pop(name, None)
    if config.option.verbose > 0:
        config.option.reportchars += "s"
    if not HAS_KVM:
        os.environ.setdefault("KVMPY_ACCEL", "soft")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip with its reason what this machine cannot do."""
    if why := why_not(item):
        pytest.skip(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell what was skipped as a sum with its remedy; with -v pytest lists the single tests."""
    if skipped := terminalreporter.stats.get("skipped"):
        terminalreporter.section("skipped; with -v, one by one" if config.option.verbose <= 0 else "skipped")
        terminalreporter.write_line("\n".join(sums(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)))


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what was collected by pytest: it stays, and looking at it takes 70 ms."""
    gc.freeze()


@pytest.fixture(scope="session", params=ACCELERATORS)
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    """Each accelerator in turn; what this machine lacks is skipped with its reason."""
    try:
        opened = ACCELERATORS[request.param]()
    except NoAcceleratorError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """`@pytest.mark.needs("int3")` skips the test where the accelerator was probed and does not do it."""
    for marker in request.node.iter_markers("needs"):
        features = request.getfixturevalue("accelerator").features
        for name in marker.args:
            if not getattr(features, name):
                pytest.skip(f"this host does not have the feature {name!r}: {features.explain(name)}")


@pytest.fixture
def unchanged_host() -> Iterator[None]:
    """Nothing of kvmpy's is left afterwards that was not there before."""
    before = host_state()
    yield
    assert left_since(before) == set()


class Guests:
    """Makes testbeds that are closed when the test ends."""

    def __init__(self, accelerator: Accelerator, stack: contextlib.ExitStack) -> None:
        self.accelerator = accelerator
        self._stack = stack

    def load(self, bits: int, source: str, *, ring: int = 0, memory: int = MEMORY, chips: bool = False) -> Testbed:
        """Return a testbed about to run `source`, assembled at CODE."""
        bed = self._stack.enter_context(Testbed(self.accelerator, bits, memory=memory, chips=chips))
        bed.load(assemble(source, bits=bits, origin=CODE).code, ring=ring)
        return bed

    def run(self, bits: int, source: str, *, ring: int = 0) -> tuple[Testbed, Exit]:
        """Run `source` to its first exit."""
        bed = self.load(bits, source, ring=ring)
        return bed, bed.go()


@pytest.fixture
def guests(accelerator: Accelerator) -> Iterator[Guests]:
    """Guests of a few instructions, on each accelerator."""
    with contextlib.ExitStack() as stack:
        yield Guests(accelerator, stack)


def exits_until_hlt(bed: Testbed) -> list[Exit]:
    """Run to HLT and return the exits before it."""
    found: list[Exit] = []
    for _ in range(EXIT_LIMIT):
        exit = bed.go()
        if isinstance(exit, Hlt):
            return found
        found.append(exit)
    raise AssertionError(f"no HLT after {EXIT_LIMIT} exits; the last was {found[-1]!r}")
