"""How long the trees of a policy are kept."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, delete, func, insert, select

from unmask_server.database.connect import query, transact
from unmask_server.database.schema import policy, retention
from unmask_server.keeping.prune import find


def set_rule(engine: Engine, policy_name: str, days: float | None) -> str:
    """Let the trees of a policy go when nothing was added for so many days; None: never.

    Returns:
        The policy's id.

    Raises:
        ValueError: there is no such policy, or the days are negative.

    """
    if days is not None and not days >= 0.0:
        raise ValueError(f"days must be at least 0, not {days}")
    policy_id = find(engine, policy, policy_name)
    old = delete(retention).where(retention.c.policy_id == policy_id)

    def change(connection: Connection) -> None:
        connection.execute(old)
        if days is not None:
            connection.execute(insert(retention), {"policy_id": policy_id, "days": days})

    transact(engine, change)
    return policy_id


def rules(engine: Engine) -> list[tuple[str, float | None]]:
    """Every policy by name, or id without one, with its days; None: its trees stay."""
    wanted = (
        select(func.coalesce(policy.c.name, policy.c.id), retention.c.days)
        .outerjoin(retention, retention.c.policy_id == policy.c.id)
        .order_by(policy.c.created_at, policy.c.id)
    )
    return query(engine, lambda c: list(c.execute(wanted).tuples()))
