"""Run the tests again and again beside busy processors, and tell which ever failed.

    python tools/soak.py                          20 rounds of the whole suite
    python tools/soak.py --rounds 50 tests/machine -k flood

What is not an option of its own goes to pytest. The exit code is 0 when every round passed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
BUSY_LOOP = "while True: pass"
ROUND_SECONDS = 1800


def main() -> int:
    """Run the rounds and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="how often (default 20)")
    parser.add_argument("--busy", type=int, default=2, help="busy loops beside the tests (default 2)")
    options, pytest_options = parser.parse_known_args()
    failures: Counter[str] = Counter()
    with ExitStack() as stack:
        for _ in range(options.busy):
            stack.callback(end, subprocess.Popen([sys.executable, "-c", BUSY_LOOP]))
        for number in range(1, options.rounds + 1):
            start = time.monotonic()
            failed = run_round(pytest_options)
            failures.update(failed)
            seconds = time.monotonic() - start
            print(f"round {number} of {options.rounds}: {len(failed)} failed, {seconds:.0f} s", *failed, flush=True)
    for name, times in failures.most_common():
        print(f"{name}: failed in {times} of {options.rounds} rounds")
    return 1 if failures else 0


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap a busy loop."""
    process.kill()
    process.wait()


def run_round(pytest_options: list[str]) -> list[str]:
    """Run pytest once; return the tests that failed, or the run itself when it gave no report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *pytest_options]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=ROUND_SECONDS)
        except subprocess.TimeoutExpired:
            return [f"a round that took longer than {ROUND_SECONDS} s"]
        failed = failed_tests(report) if report.exists() else []
        if done.returncode and not failed:
            return [f"pytest itself, exit code {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"]
        for name in failed:
            print(f"  {name}")
        return failed


def failed_tests(report: Path) -> list[str]:
    """Return the names of the tests that failed, from pytest's JUnit report."""
    cases = ElementTree.parse(report).iter("testcase")
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
