"""Run `kvmpy compare`, whole, and keep its figures for the documents.

python tools/bench/compare.py            print the report
python tools/bench/compare.py --write    put it into docs/figures.json, and from there into the documents
"""

from __future__ import annotations

import argparse
from typing import Any

from figures import keep

from kvmpy.cli.compare import show
from kvmpy.compare.figures import Report
from kvmpy.compare.report import compare


def main() -> int:
    """Do it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="write docs/figures.json and the documents")
    report = compare(False, lambda *_: None)
    show(report)
    if options.parse_args().write:
        keep("compare", kept(report))
    return 0


def kept(report: Report) -> dict[str, Any]:
    """Return what documents need of a report: not how it was found, which the report itself tells."""
    data = report.as_dict()
    for question in data["questions"]:
        for name in ("code", "method", "note"):
            del question[name]
    return data


if __name__ == "__main__":
    raise SystemExit(main())
