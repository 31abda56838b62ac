"""What one client may have sampled in a day, counted in the database over all servers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, Engine, delete, func, insert, select

from unmask_server.catalog.errors import InvalidArgument, QuotaExceeded
from unmask_server.database.connect import transact
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import growth, growth_client
from unmask_server.growth.spec import State

DAY_SECONDS = 86_400.0
_MAKING_SECONDS = 60.0
"""A growth that was admitted so long ago and is not there was never made."""
_ENDED = tuple(state.value for state in State if state.ended)
_KINDS = ("rollouts", "tokens")


@dataclass(frozen=True, slots=True)
class Quota:
    """At most, a client and 24 hours; None: no limit."""

    rollouts: int | None = None
    tokens: int | None = None


class Quotas:
    """Admits growths. Synchronous: called from threads."""

    def __init__(self, engine: Engine, quota: Quota) -> None:
        self._engine = engine
        self._quota = quota

    def admit(
        self, client: str, request_id: str, *, rollouts: int | None, tokens: int | None
    ) -> None:
        """Count a growth's budget against its client's quota; one that is known already, never.

        A growth counts with its budget until it has ended, then with what it sampled, for 24 hours
        from its start.

        Args:
            client: a name; the empty one is one, too.
            request_id: of the growth.
            rollouts: the budget; None if it does not limit them.
            tokens: likewise.

        Raises:
            InvalidArgument: the budget leaves open what is limited, or no day's quota holds it.
            QuotaExceeded: it does not fit now; says when it will, if nothing else is started.

        """
        asked = (rollouts, tokens)
        limits = (self._quota.rollouts, self._quota.tokens)
        if limits == (None, None):
            return
        for kind, wanted, limit in zip(_KINDS, asked, limits, strict=True):
            if limit is not None and wanted is None:
                raise InvalidArgument(
                    f"budget.{kind}", "say how many at most: they are counted for each client here"
                )
            if limit is not None and wanted is not None and wanted > limit:
                raise InvalidArgument(
                    f"budget.{kind}", f"{wanted} are more than a client's {limit} of a day"
                )
        transact(self._engine, partial(_admit, client, request_id, asked, limits))


def _admit(
    client: str,
    request_id: str,
    asked: tuple[int | None, int | None],
    limits: tuple[int | None, int | None],
    connection: Connection,
) -> None:
    now = time.time()
    if connection.dialect.name == "postgresql":
        # Two that start at once are counted one after the other.
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(client))))
    known = select(growth.c.id).where(growth.c.request_id == request_id)
    if connection.execute(known).first() is not None:
        return
    row = growth_client.c
    connection.execute(delete(growth_client).where(row.started_at < now - DAY_SECONDS))
    connection.execute(delete(growth_client).where(row.request_id == request_id))
    wanted = (
        select(growth_client, growth.c.state, growth.c.rollouts_sampled, growth.c.tokens_sampled)
        .select_from(growth_client.outerjoin(growth, growth.c.request_id == row.request_id))
        .where(row.client == client)
        .order_by(row.started_at)
    )
    earlier = connection.execute(wanted).all()
    for place, (kind, limit) in enumerate(zip(_KINDS, limits, strict=True)):
        if limit is not None:
            _check(kind, limit, asked[place] or 0, earlier, now)
    values = {
        "request_id": request_id,
        "client": client,
        "started_at": now,
        "rollouts": asked[0] or 0,
        "tokens": asked[1] or 0,
    }
    connection.execute(insert(growth_client), values)


def _check(kind: str, limit: int, asked: int, earlier: Sequence[AnyRow], now: float) -> None:
    counts = [_counted(row, kind, now) for row in earlier]
    used = sum(counts)
    if used + asked <= limit:
        return
    left = limit - used
    for row, count in zip(earlier, counts, strict=True):
        used -= count
        if used + asked <= limit:
            wait = max(1.0, row.started_at + DAY_SECONDS - now)
            raise QuotaExceeded(
                f"{asked} {kind} are more than the {max(0, left)} that are left of this client's "
                f"{limit} of a day; they will be free in {wait:.0f} s at the latest",
                wait,
            )


def _counted(row: AnyRow, kind: str, now: float) -> int:
    asked = int(getattr(row, kind))
    if row.state is None:
        return asked if row.started_at > now - _MAKING_SECONDS else 0
    sampled = int(getattr(row, f"{kind}_sampled"))
    return sampled if row.state in _ENDED else max(asked, sampled)
