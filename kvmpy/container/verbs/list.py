"""list: tell of all containers below the root."""

from __future__ import annotations

from kvmpy.container.host import to_json
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call

OPTIONS = {"--format": "table|json", "--quiet": ""}
SHORT = {"-f": "--format", "-q": "--quiet"}
WORDS: tuple[str, ...] = ()
SUMMARY = "list the containers"
COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")


def table(rows: list[list[str]]) -> str:
    """Return rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join("   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(call: Call) -> int:
    """Run the verb."""
    form = call.value("--format") or "table"
    if form not in ("table", "json"):
        raise ContainerError(f"--format: {form!r} is not one of table, json")
    reports = [state.report() for state in call.store.all()]
    if call.has("--quiet"):
        for report in reports:
            call.print(report["id"])
    elif form == "json":
        call.print(to_json(reports) if reports else "null")
    else:
        rows = [[str(report[name]) for name in COLUMNS] for report in reports]
        call.print(table([[name.upper() for name in COLUMNS], *rows]))
    return 0
