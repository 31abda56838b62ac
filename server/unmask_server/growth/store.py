"""Growths in the database: found by request_id, leased to one server at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import ColumnElement, Connection, Engine, Row, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from unmask_server.catalog.errors import AlreadyExists, NotFound
from unmask_server.database.connect import query, transact
from unmask_server.database.schema import growth
from unmask_server.diagnosis.allocation import Forecast
from unmask_server.growth.spec import Growth, GrowthSpec, State, forecast_of

LEASE_SECONDS = 30.0
"""A growth whose server has not been heard of for so long is taken over."""

_OPEN = (State.QUEUED.value, State.RUNNING.value)


class LeaseLostError(Exception):
    """The growth was cancelled, ended, or taken over by another server."""


class GrowthStore:
    """Growth rows. Synchronous: called from threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, request_id: str, spec: GrowthSpec) -> Growth:
        """The growth of that request_id, made if there is none; queued again if it failed.

        Raises:
            AlreadyExists: the request_id belongs to a growth with another spec.

        """
        growth_id = "gro-" + hashlib.blake2b(request_id.encode(), digest_size=12).hexdigest()
        now = time.time()
        values = {
            "id": growth_id,
            "request_id": request_id,
            "spec": spec.to_json(),
            "state": State.QUEUED.value,
            "rollouts_sampled": 0,
            "tokens_sampled": 0,
            "rollouts_cached": 0,
            "rollouts_planned": 0,
            "nodes": 0,
            "nodes_flat": 0,
            "attempt": 0,
            "created_at": now,
            "updated_at": now,
        }
        wanted = select(growth).where(growth.c.id == growth_id)

        def find_or_insert(connection: Connection) -> Growth:
            row = connection.execute(wanted).first()
            if row is None:
                connection.execute(insert(growth).values(values))
                row = connection.execute(wanted).one()
            return _growth(row)

        try:
            found = transact(self._engine, find_or_insert)
        except IntegrityError:
            # The same request came in twice at once, and the other one was first.
            found = self.get(growth_id)
        if found.spec != spec:
            raise AlreadyExists(
                "request_id", f"{request_id!r} belongs to another request; choose a new one"
            )
        if found.state is State.FAILED:
            statement = (
                update(growth)
                .where(growth.c.id == growth_id, growth.c.state == State.FAILED.value)
                .values(state=State.QUEUED.value, error=None, owner=None, lease_expires_at=None)
            )
            transact(self._engine, lambda connection: connection.execute(statement))
            return self.get(growth_id)
        return found

    def get(self, growth_id: str) -> Growth:
        """One growth. Raises NotFound."""
        wanted = select(growth).where(growth.c.id == growth_id)
        row = query(self._engine, lambda connection: connection.execute(wanted).first())
        if row is None:
            raise NotFound("growth", growth_id)
        return _growth(row)

    def page(self, size: int, before: tuple[float, str] | None) -> list[Growth]:
        """Newest first; `before` is (created_at, id) of the last one of the page before."""
        wanted = select(growth).order_by(growth.c.created_at.desc(), growth.c.id.desc()).limit(size)
        if before is not None:
            wanted = wanted.where(tuple_(growth.c.created_at, growth.c.id) < tuple_(*before))
        rows = query(self._engine, lambda connection: connection.execute(wanted).all())
        return [_growth(row) for row in rows]

    def claimable(self, owner: str) -> list[str]:
        """Ids of growths that `owner` may claim: new ones, its own, those of lost servers."""
        wanted = (
            select(growth.c.id)
            .where(growth.c.state.in_(_OPEN))
            .where(_free_for(owner))
            .order_by(growth.c.created_at)
        )
        return query(self._engine, lambda connection: list(connection.execute(wanted).scalars()))

    def claim(self, growth_id: str, owner: str) -> Growth | None:
        """Take the lease; None if another server has it or the growth has ended.

        A growth that `owner` holds already is taken anew: ask only if nobody there works on it.
        """
        now = time.time()

        def take(connection: Connection) -> Growth | None:
            taken = connection.execute(
                update(growth)
                .where(growth.c.id == growth_id, growth.c.state.in_(_OPEN))
                .where(_free_for(owner))
                .values(
                    owner=owner,
                    lease_expires_at=now + LEASE_SECONDS,
                    state=State.RUNNING.value,
                    attempt=growth.c.attempt + 1,
                    updated_at=now,
                )
            )
            if taken.rowcount != 1:
                return None
            row = connection.execute(select(growth).where(growth.c.id == growth_id)).one()
            return _growth(row)

        return transact(self._engine, take)

    def renew(self, owner: str, growth_ids: Sequence[str]) -> None:
        """Tell that `owner` is at work on these."""
        if not growth_ids:
            return
        statement = (
            update(growth)
            .where(growth.c.owner == owner, growth.c.state == State.RUNNING.value)
            .where(growth.c.id.in_(growth_ids))
            .values(lease_expires_at=time.time() + LEASE_SECONDS)
        )
        transact(self._engine, lambda connection: connection.execute(statement))

    def release(self, owner: str) -> None:
        """Give up all leases of `owner`, so that another server need not wait for their end."""
        statement = (
            update(growth)
            .where(growth.c.owner == owner, growth.c.state == State.RUNNING.value)
            .values(owner=None, lease_expires_at=None)
        )
        transact(self._engine, lambda connection: connection.execute(statement))

    def note_plan(
        self,
        held: Growth,
        *,
        cached: int | None,
        planned: int,
        nodes: int,
        flat: int,
        settled: int,
        half_width: float | None,
    ) -> None:
        """Record what the growth means to do, and how far it is; `cached` only the first time."""
        values: dict[str, object] = {
            "rollouts_planned": planned,
            "nodes": nodes,
            "nodes_flat": flat,
            "nodes_settled": settled,
            "half_width": half_width,
            "updated_at": time.time(),
        }
        if cached is not None:
            values["rollouts_cached"] = cached
        transact(self._engine, lambda connection: _update_held(connection, held, values))

    def note_next_halving(self, held: Growth, ahead: Forecast) -> None:
        """Record what halving the interval would cost."""
        values = {"next_halving": asdict(ahead)}
        transact(self._engine, lambda connection: _update_held(connection, held, values))

    def charge(self, connection: Connection, held: Growth, rollouts: int, tokens: int) -> None:
        """Add to what was spent, in the transaction that stores what it was spent on.

        Raises:
            LeaseLostError: the transaction must not be committed.

        """
        values = {
            "rollouts_sampled": growth.c.rollouts_sampled + rollouts,
            "tokens_sampled": growth.c.tokens_sampled + tokens,
            "lease_expires_at": time.time() + LEASE_SECONDS,
            "updated_at": time.time(),
        }
        _update_held(connection, held, values)

    def finish(self, held: Growth, state: State, error: str = "") -> None:
        """End a growth that is held."""
        values = {"state": state.value, "error": error, "updated_at": time.time()}
        transact(self._engine, lambda connection: _update_held(connection, held, values))

    def cancel(self, growth_id: str) -> Growth:
        """End a growth as cancelled, whoever works on it; nothing if it has ended."""
        statement = (
            update(growth)
            .where(growth.c.id == growth_id, growth.c.state.in_(_OPEN))
            .values(state=State.CANCELLED.value, updated_at=time.time())
        )
        transact(self._engine, lambda connection: connection.execute(statement))
        return self.get(growth_id)


def _free_for(owner: str) -> ColumnElement[bool]:
    return or_(
        growth.c.owner.is_(None),
        growth.c.owner == owner,
        growth.c.lease_expires_at < time.time(),
    )


def _update_held(connection: Connection, held: Growth, values: Mapping[str, object]) -> None:
    done = connection.execute(
        update(growth)
        .where(
            growth.c.id == held.id,
            growth.c.owner == held.owner,
            growth.c.attempt == held.attempt,
            growth.c.state == State.RUNNING.value,
        )
        .values(values)
    )
    if done.rowcount != 1:
        raise LeaseLostError(held.id)


def _growth(row: Row[tuple[object, ...]]) -> Growth:
    data = dict(row._mapping)
    data["spec"] = GrowthSpec.from_json(data["spec"])
    data["state"] = State(data["state"])
    data["error"] = data["error"] or ""
    if data["next_halving"] is not None:
        data["next_halving"] = forecast_of(data["next_halving"])
    return Growth(**data)
