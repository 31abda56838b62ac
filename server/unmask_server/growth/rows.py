"""What all statements about growth rows share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, or_, update

from unmask_server.database.clock import now
from unmask_server.database.schema import growth
from unmask_server.growth.spec import Growth, GrowthSpec, State, forecast_of

OPEN = (State.QUEUED.value, State.RUNNING.value)
"""States in which a server works on a growth, or soon will."""

QUEUED: dict[str, Any] = {
    "state": State.QUEUED.value,
    "error": None,
    "owner": None,
    "lease_expires_at": None,
    "next_halving": None,
}
"""What makes a growth one that any server may work on."""


class LeaseLostError(Exception):
    """The growth was paused, cancelled, ended, or taken over by another server."""


def expired(lease_seconds: float) -> ColumnElement[bool]:
    """Whether the server of a growth is taken for dead.

    By the database's clock alone. Where that clock was set back, a lease seems to end too far in
    the future, and counts as over: a server that lives renews it, one that is dead does not.
    """
    at = growth.c.lease_expires_at
    return or_(at.is_(None), at < now(), at > now() + 2.0 * lease_seconds)


def at_work(lease_seconds: float) -> ColumnElement[bool]:
    """Whether a server that is not taken for dead works on a growth."""
    return and_(growth.c.state == State.RUNNING.value, ~expired(lease_seconds))


def is_held(held: Growth) -> ColumnElement[bool]:
    """Whether a growth is still the one that was claimed."""
    return and_(
        growth.c.id == held.id,
        growth.c.owner == held.owner,
        growth.c.attempt == held.attempt,
        growth.c.state == State.RUNNING.value,
    )


def update_held(connection: Connection, held: Growth, values: Mapping[str, object]) -> None:
    """Change the row of a growth that is held.

    Raises:
        LeaseLostError: it is not; the transaction must not be committed.

    """
    if connection.execute(update(growth).where(is_held(held)).values(values)).rowcount != 1:
        raise LeaseLostError(held.id)


def growth_of(row: Row[tuple[object, ...]]) -> Growth:
    """The growth of a whole row."""
    data = dict(row._mapping)
    data["spec"] = GrowthSpec.from_json(data["spec"])
    data["asked"] = None if data["asked"] is None else GrowthSpec.from_json(data["asked"])
    data["state"] = State(data["state"])
    for name in ("error", "call_id", "call_trace"):
        data[name] = data[name] or ""
    if data["next_halving"] is not None:
        data["next_halving"] = forecast_of(data["next_halving"])
    return Growth(**data)
