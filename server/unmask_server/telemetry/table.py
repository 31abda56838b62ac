"""The table of all metrics: `python -m unmask_server.telemetry.table docs/observability.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from unmask_server.telemetry import gauges, metrics, rpcs

BEGIN, END = "<!-- metrics: made from the code -->", "<!-- end of metrics -->"


def described() -> tuple[metrics.Described, ...]:
    """All of this program's metrics."""
    return (*rpcs.DESCRIBED, *gauges.GAUGES, *metrics.DESCRIBED)


def table() -> str:
    """Markdown: a row a metric of this program's, in the order of the code."""
    lines = ["| Metric | Type | Labels | What |", "|---|---|---|---|"]
    lines += [
        f"| `{one.name}` | {one.kind} | {', '.join(one.labels)} | {one.what} |"
        for one in described()
    ]
    return "\n".join(lines) + "\n"


def replaced(page: str) -> str:
    """A page with the table between its marks as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(replaced(path.read_text()))
