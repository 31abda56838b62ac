"""What one client may have sampled, counted in the database over all servers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, Engine, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from unmask_server.access.principals import Budget
from unmask_server.catalog.errors import BudgetSpent, InvalidArgument, QuotaExceeded
from unmask_server.database.connect import transact
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import client_total, growth, growth_client
from unmask_server.growth.control import Charge
from unmask_server.growth.spec import Growth, GrowthSpec, State

DAY_SECONDS = 86_400.0
_MAKING_SECONDS = 60.0
"""A growth that was admitted so long ago and is not there was never made."""
_ENDED = tuple(state.value for state in State if state.ended)
_KINDS = ("rollouts", "tokens")
_ROWS = select(
    growth_client, growth.c.state, growth.c.rollouts_sampled, growth.c.tokens_sampled
).select_from(growth_client.outerjoin(growth, growth.c.request_id == growth_client.c.request_id))
"""Each with the growth that it counts, if it counts one that is there."""

Values = dict[str, str | int]
"""A row of `growth_client`, but for the client and the time."""


@dataclass(frozen=True, slots=True)
class Quota:
    """At most, a client and 24 hours; None: no limit."""

    rollouts: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Limit:
    kind: str
    """`rollouts` or `tokens`."""
    a_day: int | None
    in_all: int | None

    @property
    def least(self) -> int | None:
        return min((n for n in (self.a_day, self.in_all) if n is not None), default=None)


@dataclass(slots=True)
class Sampled:
    """What a sampling came to; whoever samples counts it up."""

    rollouts: int = 0
    tokens: int = 0


class Quotas:
    """Admits what samples. Synchronous: called from threads."""

    def __init__(self, engine: Engine, quota: Quota) -> None:
        self._engine = engine
        self._quota = quota

    def admit(
        self,
        client: str,
        request_id: str,
        *,
        rollouts: int | None,
        tokens: int | None,
        budget: Budget = Budget(),  # noqa: B008 - immutable
    ) -> None:
        """Count a growth's budget against what its client may have; one that is known, never.

        A growth counts with its budget until it has ended, then with what it sampled: for 24 hours
        from its start, and in all.

        Args:
            client: a name; the empty one is one, too.
            request_id: of the growth.
            rollouts: the growth's budget; None if it does not limit them.
            tokens: likewise.
            budget: of the client itself, beside the quota that all have.

        Raises:
            InvalidArgument: the growth's budget leaves open what is limited, or is above any limit.
            QuotaExceeded: it does not fit now; says when it will, if nothing else is started.
            BudgetSpent: it does not fit into what the client may have in all.

        """
        asked = {"rollouts": rollouts, "tokens": tokens}
        limits = self._limits(budget)
        if not limits:
            return
        for limit in limits:
            wanted, least = asked[limit.kind], limit.least
            if wanted is None:
                raise InvalidArgument(
                    f"budget.{limit.kind}",
                    "say how many at most: they are counted for each client here",
                )
            if least is not None and wanted > least:
                raise InvalidArgument(
                    f"budget.{limit.kind}", f"{wanted} are more than the {least} a client may have"
                )
        values: Values = {"request_id": request_id, **{k: asked[k] or 0 for k in _KINDS}}
        transact(self._engine, partial(_admit, client, values, limits))

    def charging(self, client: str, budget: Budget) -> Charge:
        """What counts a growth that is changed, in the transaction that changes it.

        What a client adds to one that has not ended counts at once and in full; one that is queued
        again counts, for whoever does it, with what is left of its budget.

        Raises (when it is called):
            InvalidArgument: one that is queued again leaves open what is limited.
            QuotaExceeded: as `admit`.
            BudgetSpent: as `admit`.

        """
        return partial(_charge, client, self._limits(budget))

    @asynccontextmanager
    async def sampling(
        self, client: str, budget: Budget, rollouts: int, tokens: int
    ) -> AsyncIterator[Sampled]:
        """Count what is sampled within the context: at most so much, then as much as it was.

        Raises:
            QuotaExceeded: as `admit`.
            BudgetSpent: as `admit`.

        """
        sampled = Sampled()
        limits = self._limits(budget)
        if not limits:
            yield sampled
            return
        values = _row("sampling", rollouts, tokens)
        # Who is cancelled meanwhile does not stop the thread: what it counts is put right, too.
        work = partial(_admit, client, values, limits)
        admitted = asyncio.create_task(asyncio.to_thread(transact, self._engine, work))
        try:
            await asyncio.shield(admitted)
            yield sampled
        finally:
            await asyncio.shield(asyncio.create_task(self._settle(admitted, values, sampled)))

    async def _settle(self, admitted: asyncio.Task[None], values: Values, sampled: Sampled) -> None:
        """Count what was sampled instead of what was asked for."""
        await asyncio.wait([admitted])
        if admitted.exception() is not None:
            return
        change = (
            update(growth_client)
            .where(growth_client.c.request_id == values["request_id"])
            .values(rollouts_done=sampled.rollouts, tokens_done=sampled.tokens)
        )
        await asyncio.to_thread(transact, self._engine, lambda c: c.execute(change))

    def _limits(self, budget: Budget) -> list[_Limit]:
        """Of each kind that is limited."""
        found = []
        for kind in _KINDS:
            daily = (getattr(self._quota, kind), getattr(budget, f"{kind}_per_day"))
            a_day = min((n for n in daily if n is not None), default=None)
            limit = _Limit(kind, a_day, getattr(budget, kind))
            if limit.least is not None:
                found.append(limit)
        return found


def _row(kind: str, rollouts: int, tokens: int) -> Values:
    """What stands for no growth; no client can guess its id."""
    return {
        "request_id": f"{kind}-{uuid.uuid4().hex}",
        "rollouts": rollouts,
        "tokens": tokens,
        "rollouts_done": rollouts,
        "tokens_done": tokens,
    }


def _admit(client: str, values: Values, limits: Sequence[_Limit], connection: Connection) -> None:
    now = time.time()
    _one_at_a_time(connection, client)
    known = select(growth.c.id).where(growth.c.request_id == values["request_id"])
    if connection.execute(known).first() is not None:
        return
    _let_go(connection, now)
    connection.execute(
        delete(growth_client).where(growth_client.c.request_id == values["request_id"])
    )
    _check(connection, client, values, limits, now)
    connection.execute(insert(growth_client), {**values, "client": client, "started_at": now})


def _charge(
    client: str,
    limits: Sequence[_Limit],
    connection: Connection,
    found: Growth,
    spec: GrowthSpec,
) -> None:
    if found.state.ended:
        _admit_again(client, limits, connection, found, spec)
        return
    rollouts = max(0, (spec.max_rollouts or 0) - (found.spec.max_rollouts or 0))
    tokens = max(0, (spec.max_tokens or 0) - (found.spec.max_tokens or 0))
    if limits and (rollouts or tokens):
        _admit(client, _row("extension", rollouts, tokens), limits, connection)


def _admit_again(
    client: str,
    limits: Sequence[_Limit],
    connection: Connection,
    found: Growth,
    spec: GrowthSpec,
) -> None:
    """Count what is left of a growth that has ended and is about to be queued."""
    now = time.time()
    _one_at_a_time(connection, client)
    _let_go(connection, now)
    # What it came to until now stays with whom it was counted for.
    of = growth_client.c.request_id == found.request_id
    for row in connection.execute(_ROWS.where(of)):
        done = {f"{kind}_done": _counted(row, kind, now) for kind in _KINDS}
        settled = update(growth_client).where(of)
        connection.execute(settled.values(request_id=f"growth-{uuid.uuid4().hex}", **done))
    if not limits:
        return
    budget = {"rollouts": spec.max_rollouts, "tokens": spec.max_tokens}
    sampled = {"rollouts": found.rollouts_sampled, "tokens": found.tokens_sampled}
    for limit in limits:
        if budget[limit.kind] is None:
            raise InvalidArgument(
                f"budget.{limit.kind}",
                "the growth leaves open how many at most, and they are counted for each client "
                "here: extend it by a budget",
            )
    in_all = {kind: max(budget[kind] or 0, sampled[kind]) for kind in _KINDS}
    left = {kind: in_all[kind] - sampled[kind] for kind in _KINDS}
    _check(connection, client, left, limits, now)
    # The growth's own numbers go on from those it has: the second row takes these off.
    again = {"request_id": found.request_id, **in_all, "rollouts_done": None, "tokens_done": None}
    before = _row("before", -sampled["rollouts"], -sampled["tokens"])
    connection.execute(
        insert(growth_client),
        [{**values, "client": client, "started_at": now} for values in (again, before)],
    )


def _one_at_a_time(connection: Connection, client: str) -> None:
    """Two that a client starts at once are counted one after the other."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(client))))


def _check(
    connection: Connection,
    client: str,
    wanted: Mapping[str, str | int],
    limits: Sequence[_Limit],
    now: float,
) -> None:
    """Whether so much more fits into what a client may have."""
    row = growth_client.c
    earlier = connection.execute(_ROWS.where(row.client == client).order_by(row.started_at)).all()
    total = connection.execute(
        select(client_total).where(client_total.c.client == client)
    ).one_or_none()
    for limit in limits:
        asked = int(wanted[limit.kind])
        before = int(getattr(total, limit.kind)) if total is not None else 0
        _check_total(limit, asked, before + sum(_counted(r, limit.kind, now) for r in earlier))
        recent = [r for r in earlier if r.started_at > now - DAY_SECONDS]
        _check_day(limit, asked, recent, now)


def _let_go(connection: Connection, now: float) -> None:
    """Add what is over and older than a day to the totals."""
    row = growth_client.c
    over = (
        select(row.request_id)
        .select_from(growth_client.outerjoin(growth, growth.c.request_id == row.request_id))
        .where(
            row.started_at < now - DAY_SECONDS,
            or_(growth.c.state.is_(None), growth.c.state.in_(_ENDED)),
        )
    )
    # Only who deletes a row counts it, if several do this at once.
    gone = connection.execute(
        delete(growth_client).where(row.request_id.in_(over)).returning(growth_client)
    ).all()
    if not gone:
        return
    growths = {
        found.request_id: found
        for found in connection.execute(
            select(
                growth.c.request_id,
                growth.c.state,
                growth.c.rollouts_sampled,
                growth.c.tokens_sampled,
            ).where(growth.c.request_id.in_([found.request_id for found in gone]))
        )
    }
    totals: dict[str, list[int]] = {}
    for found in gone:
        mine = totals.setdefault(found.client, [0, 0])
        for place, kind in enumerate(_KINDS):
            mine[place] += _counted(found, kind, now, growths.get(found.request_id))
    make = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    new = make(client_total)
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["client"],
            set_={kind: client_total.c[kind] + new.excluded[kind] for kind in _KINDS},
        ),
        [
            {"client": client, "rollouts": rollouts, "tokens": tokens}
            for client, (rollouts, tokens) in sorted(totals.items())
        ],
    )


def _check_total(limit: _Limit, asked: int, used: int) -> None:
    if limit.in_all is not None and used + asked > limit.in_all:
        raise BudgetSpent(
            f"{asked} {limit.kind} are more than the {max(0, limit.in_all - used)} that are left "
            f"of this client's {limit.in_all} in all"
        )


def _check_day(limit: _Limit, asked: int, earlier: Sequence[AnyRow], now: float) -> None:
    if limit.a_day is None:
        return
    counts = [_counted(row, limit.kind, now) for row in earlier]
    used = sum(counts)
    if used + asked <= limit.a_day:
        return
    left = limit.a_day - used
    for row, count in zip(earlier, counts, strict=True):
        used -= count
        if used + asked <= limit.a_day:
            wait = max(1.0, row.started_at + DAY_SECONDS - now)
            raise QuotaExceeded(
                f"{asked} {limit.kind} are more than the {max(0, left)} that are left of this "
                f"client's {limit.a_day} of a day; they will be free in {wait:.0f} s at the latest",
                wait,
            )
    raise QuotaExceeded(
        f"{asked} {limit.kind} are more than this client's {limit.a_day} of a day; ask for fewer",
        DAY_SECONDS,
    )


def _counted(row: AnyRow, kind: str, now: float, of: AnyRow | None = None) -> int:
    """What a row counts for; `of` is its growth where the row itself was not joined with it."""
    asked, done = int(getattr(row, kind)), getattr(row, f"{kind}_done")
    if done is not None:
        return int(done)
    found = row if hasattr(row, "state") else of
    if found is None or found.state is None:
        return asked if row.started_at > now - _MAKING_SECONDS else 0
    sampled = int(getattr(found, f"{kind}_sampled"))
    # What others added to it is counted as theirs.
    return min(sampled, asked or sampled) if found.state in _ENDED else asked
