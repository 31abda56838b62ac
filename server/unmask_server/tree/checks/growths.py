"""What growths cost against what they brought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sqlalchemy import Connection, func, or_, select, update

from unmask_server.database.rows import AnyRow
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
    .subquery("brought")
)
_rollouts = func.coalesce(_brought.c.rollouts, 0)
_tokens = func.coalesce(_brought.c.tokens, 0)
_charged_otherwise = (
    select(
        growth.c.id,
        growth.c.rollouts_sampled,
        growth.c.tokens_sampled,
        _rollouts.label("rollouts"),
        _tokens.label("tokens"),
    )
    .select_from(growth.outerjoin(_brought, _brought.c.growth_id == growth.c.id))
    .where(or_(growth.c.rollouts_sampled != _rollouts, growth.c.tokens_sampled != _tokens))
)
_unknown = (
    select(_brought.c.growth_id, _brought.c.rollouts)
    .select_from(_brought.outerjoin(growth, _brought.c.growth_id == growth.c.id))
    .where(growth.c.id.is_(None))
)


def findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """What growths were charged with against what they brought."""
    checked["growth"] += connection.scalar(select(func.count()).select_from(growth)) or 0
    for row in stream(connection, _charged_otherwise):
        problem = (
            f"charged with {row.rollouts_sampled} rollouts and {row.tokens_sampled} tokens, "
            f"there are {row.rollouts} and {row.tokens}"
        )
        repair = "charged with what is there" if _lacks_charge(row) else ""
        yield Finding("growth.spent", None, f"growth {row.id}", problem, repair)
    for row in stream(connection, _unknown):
        problem = f"their growth {row.growth_id} is not there"
        yield Finding("rollout.growth", None, f"{row.rollouts} rollouts", problem)


def charge(connection: Connection) -> int:
    """Charge growths with what they brought where that is more; returns how many."""
    rows = [row for row in connection.execute(_charged_otherwise).all() if _lacks_charge(row)]
    for row in rows:
        values = {"rollouts_sampled": row.rollouts, "tokens_sampled": row.tokens}
        connection.execute(update(growth).where(growth.c.id == row.id), values)
    return len(rows)


def _lacks_charge(row: AnyRow) -> bool:
    return bool(row.rollouts >= row.rollouts_sampled and row.tokens >= row.tokens_sampled)
