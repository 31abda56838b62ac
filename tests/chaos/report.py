"""The table of what was done and found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.audit import Account

HEAD = (
    "scenario",
    "store",
    "repetitions",
    "kills or faults",
    "answered",
    "committed",
    "acknowledged",
    "lost in flight",
    "not charged",
    "doubled",
    "violations",
)

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"


@dataclass(frozen=True)
class Row:
    """One scenario over one store."""

    scenario: str
    store: str
    repetitions: int
    faults: int
    answered: int
    committed: int
    acknowledged: int
    lost: int
    uncharged: int
    doubled: int
    violations: int

    @classmethod
    def of(cls, scenario: str, store: str, faults: int, *accounts: Account) -> Row:
        """Add up what was found, once for each repetition."""
        return cls(
            scenario,
            store,
            len(accounts),
            faults,
            sum(a.answered for a in accounts),
            sum(a.committed for a in accounts),
            sum(a.acknowledged for a in accounts),
            sum(a.lost for a in accounts),
            sum(a.uncharged for a in accounts),
            sum(a.doubled for a in accounts),
            sum(len(a.violations) for a in accounts),
        )


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in rows:
        cells = (getattr(row, name) for name in row.__dataclass_fields__)
        lines.append(tuple(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_into(path: Path, rows: list[Row]) -> None:
    """Replace the table in a page."""
    page = path.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


def count(name: str, default: int) -> int:
    """How often something is done: `UNMASK_CHAOS_<name>`."""
    return int(os.environ.get(f"UNMASK_CHAOS_{name}", default))
