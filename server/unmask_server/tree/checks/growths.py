"""What growths cost against what they brought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from unmask_server.database.schema import growth, rollout
from unmask_server.tree.checks.findings import Finding
from unmask_server.tree.checks.streams import stream

_brought = (
    select(
        rollout.c.growth_id,
        func.count().label("rollouts"),
        func.sum(rollout.c.depth - rollout.c.forced_depth).label("tokens"),
    )
    .where(rollout.c.growth_id.is_not(None))
    .group_by(rollout.c.growth_id)
)
_charged = select(
    growth.c.id,
    growth.c.rollouts_sampled,
    growth.c.tokens_sampled,
    growth.c.rollouts_pruned,
    growth.c.tokens_pruned,
)


@dataclass(frozen=True, slots=True)
class _Spent:
    """What a growth is charged with, and what it brought, pruned since or not."""

    id: str
    charged: tuple[int, int]
    """Rollouts and tokens."""
    brought: tuple[int, int]

    @property
    def lacks_charge(self) -> bool:
        """Whether it brought more than it is charged with."""
        return self.charged != self.brought and all(
            charged <= brought for charged, brought in zip(self.charged, self.brought, strict=True)
        )


def findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """What growths were charged with against what they brought."""
    brought = _read_brought(connection)
    for spent in _spent(connection, brought):
        checked["growth"] += 1
        if spent.charged != spent.brought:
            problem = "charged with {} rollouts and {} tokens, there are {} and {}".format(
                *spent.charged, *spent.brought
            )
            repair = "charged with what is there" if spent.lacks_charge else ""
            yield Finding("growth.spent", None, f"growth {spent.id}", problem, repair)
    for name, (rollouts, _) in brought.items():
        problem = f"their growth {name} is not there"
        yield Finding("rollout.growth", None, f"{rollouts} rollouts", problem)


def charge(connection: Connection) -> int:
    """Charge growths with what they brought where that is more; returns how many."""
    less = [row for row in _spent(connection, _read_brought(connection)) if row.lacks_charge]
    for row in less:
        rollouts, tokens = row.brought
        values = {"rollouts_sampled": rollouts, "tokens_sampled": tokens}
        connection.execute(update(growth).where(growth.c.id == row.id), values)
    return len(less)


def _read_brought(connection: Connection) -> dict[str, tuple[int, int]]:
    """Rollouts and tokens in the trees, by growth."""
    return {name: (int(n), int(tokens)) for name, n, tokens in stream(connection, _brought)}


def _spent(connection: Connection, brought: dict[str, tuple[int, int]]) -> Iterator[_Spent]:
    """Every growth; takes what it brought out of `brought`."""
    for row in list(stream(connection, _charged)):
        rollouts, tokens = brought.pop(row.id, (0, 0))
        yield _Spent(
            row.id,
            (row.rollouts_sampled, row.tokens_sampled),
            (rollouts + row.rollouts_pruned, tokens + row.tokens_pruned),
        )
