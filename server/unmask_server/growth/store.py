"""Growths in the database: found by request_id, leased to one server at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Update, exists, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from unmask_server.catalog.errors import AlreadyExists, NotFound
from unmask_server.database.clock import now
from unmask_server.database.connect import query, transact
from unmask_server.database.schema import growth, growth_subject
from unmask_server.diagnosis.allocation import Forecast
from unmask_server.growth.rows import (
    OPEN,
    LeaseLostError,
    expired,
    growth_of,
    is_held,
    update_held,
)
from unmask_server.growth.spec import NOBODY, Growth, GrowthSpec, Origin, State
from unmask_server.reasons import Reason
from unmask_server.telemetry import metrics

__all__ = ["LEASE_SECONDS", "GrowthStore", "LeaseLostError", "Listing"]

LEASE_SECONDS = 30.0
"""A growth whose server has not been heard of for so long has been taken over: leases are given for
two thirds of it, renewed every sixth, and looked at five times as often."""

_NEW: dict[str, Any] = dict.fromkeys(
    ("rollouts_sampled", "tokens_sampled", "rollouts_cached", "rollouts_planned", "nodes",
     "nodes_flat", "attempt"),
    0,
)  # fmt: skip
Subjects = Collection[tuple[str, str]]
"""Whose trees a growth grows: ids of policies and questions."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Which growths a list holds; what is empty does not limit it."""

    states: tuple[State, ...] = ()
    policy_id: str = ""
    question_id: str = ""


class GrowthStore:
    """Growth rows. Synchronous: called from threads."""

    def __init__(self, engine: Engine, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._engine = engine
        self.lease_seconds = lease_seconds

    def create(
        self, request_id: str, spec: GrowthSpec, subjects: Subjects, origin: Origin = NOBODY
    ) -> Growth:
        """The growth of that request_id, made if there is none.

        `origin` is kept with one that is made.

        Raises:
            AlreadyExists: the request_id belongs to a growth that was started with another spec.

        """
        growth_id = "gro-" + hashlib.blake2b(request_id.encode(), digest_size=12).hexdigest()
        values = _NEW | {
            "id": growth_id,
            "request_id": request_id,
            "spec": spec.to_json(),
            "state": State.QUEUED.value,
            "call_id": origin.call_id,
            "call_trace": origin.call_trace,
            "created_at": time.time(),
            "updated_at": time.time(),
        }
        wanted = select(growth).where(growth.c.id == growth_id)
        about = [
            {"growth_id": growth_id, "policy_id": policy, "question_id": question}
            for policy, question in sorted(set(subjects))
        ]

        def find_or_insert(connection: Connection) -> Growth:
            row = connection.execute(wanted).first()
            if row is None:
                connection.execute(insert(growth).values(values))
                connection.execute(insert(growth_subject), about)
                row = connection.execute(wanted).one()
            return growth_of(row)

        try:
            found = transact(self._engine, find_or_insert)
        except IntegrityError:
            # The same request came in twice at once, and the other one was first.
            found = self.get(growth_id)
        if found.first_spec != spec:
            raise AlreadyExists(
                Reason.REQUEST_ID_REUSED,
                "request_id",
                f"{request_id!r} belongs to another request; choose a new one",
                kind="growth",
                name=growth_id,
            )
        return found

    def get(self, growth_id: str) -> Growth:
        """One growth. Raises NotFound."""
        wanted = select(growth).where(growth.c.id == growth_id)
        row = query(self._engine, lambda connection: connection.execute(wanted).first())
        if row is None:
            raise NotFound("growth", growth_id)
        return growth_of(row)

    def page(
        self, size: int, before: tuple[float, str] | None, listing: Listing | None = None
    ) -> list[Growth]:
        """Newest first; `before` is (created_at, id) of the last one of the page before."""
        wanted = select(growth).order_by(growth.c.created_at.desc(), growth.c.id.desc()).limit(size)
        if before is not None:
            wanted = wanted.where(tuple_(growth.c.created_at, growth.c.id) < tuple_(*before))
        listing = listing or Listing()
        if listing.states:
            wanted = wanted.where(growth.c.state.in_([state.value for state in listing.states]))
        if listing.policy_id or listing.question_id:
            about = exists().where(growth_subject.c.growth_id == growth.c.id)
            if listing.policy_id:
                about = about.where(growth_subject.c.policy_id == listing.policy_id)
            if listing.question_id:
                about = about.where(growth_subject.c.question_id == listing.question_id)
            wanted = wanted.where(about)
        rows = query(self._engine, lambda connection: connection.execute(wanted).all())
        return [growth_of(row) for row in rows]

    # ------------------------------------------------------------------------------- the lease

    def claimable(self, owner: str) -> list[str]:
        """Ids of growths that `owner` may claim: new ones, its own, those of lost servers."""
        wanted = (
            select(growth.c.id)
            .where(growth.c.state.in_(OPEN), self._free_for(owner))
            .order_by(growth.c.created_at)
        )
        return query(self._engine, lambda connection: list(connection.execute(wanted).scalars()))

    def claim(self, growth_id: str, owner: str) -> Growth | None:
        """Take the lease; None if another server has it or the growth has ended.

        A growth that `owner` holds already is taken anew: ask only if nobody there works on it.
        """
        before = select(growth.c.state, growth.c.owner).where(growth.c.id == growth_id)
        taking = (
            update(growth)
            .where(growth.c.id == growth_id, growth.c.state.in_(OPEN), self._free_for(owner))
            .values(
                owner=owner,
                lease_expires_at=self._lease_end(),
                state=State.RUNNING.value,
                attempt=growth.c.attempt + 1,
                turn=None,
                has_turn=False,
                waits_for=None,
                updated_at=time.time(),
            )
        )

        def take(connection: Connection) -> tuple[Growth | None, bool]:
            was = connection.execute(before).first()
            if connection.execute(taking).rowcount != 1:
                return None, False
            row = connection.execute(select(growth).where(growth.c.id == growth_id)).one()
            is_taken_over = (
                was is not None and was.state == State.RUNNING.value and was.owner != owner
            )
            return growth_of(row), is_taken_over

        taken, is_taken_over = transact(self._engine, take)
        if is_taken_over:
            metrics.GROWTHS_TAKEN_OVER.inc()
        return taken

    def renew(self, owner: str, growth_ids: Sequence[str]) -> set[str]:
        """Tell that `owner` is at work on these; returns those of them that still are its own."""
        if not growth_ids:
            return set()
        mine = (growth.c.owner == owner) & (growth.c.state == State.RUNNING.value)
        mine &= growth.c.id.in_(growth_ids)

        def work(connection: Connection) -> set[str]:
            connection.execute(
                update(growth).where(mine).values(lease_expires_at=self._lease_end())
            )
            return set(connection.execute(select(growth.c.id).where(mine)).scalars())

        return transact(self._engine, work)

    def release(self, owner: str) -> None:
        """Give up all leases of `owner`, so that another server need not wait for their end."""
        self._execute(
            update(growth)
            .where(growth.c.owner == owner, growth.c.state == State.RUNNING.value)
            .values(owner=None, lease_expires_at=None)
        )

    def _lease_end(self) -> Any:
        return now() + self.lease_seconds * 2.0 / 3.0

    def _free_for(self, owner: str) -> Any:
        return or_(growth.c.owner.is_(None), growth.c.owner == owner, expired(self.lease_seconds))

    # -------------------------------------------------------------------- a growth that is held

    def note_plan(
        self,
        held: Growth,
        *,
        cached: int | None,
        counted: int,
        planned: int,
        nodes: int,
        flat: int,
        settled: int,
        half_width: float | None,
    ) -> None:
        """Record what the growth means to do, and how far it is; `cached` only the first time."""
        values: dict[str, object] = {
            "rollouts_counted": counted,
            "rollouts_planned": planned,
            "nodes": nodes,
            "nodes_flat": flat,
            "nodes_settled": settled,
            "half_width": half_width,
            "updated_at": time.time(),
        }
        if cached is not None:
            values["rollouts_cached"] = cached
        transact(self._engine, lambda connection: update_held(connection, held, values))

    def note_next_halving(self, held: Growth, ahead: Forecast) -> None:
        """Record what halving the interval would cost."""
        values = {"next_halving": asdict(ahead)}
        transact(self._engine, lambda connection: update_held(connection, held, values))

    def charge(self, connection: Connection, held: Growth, rollouts: int, tokens: int) -> None:
        """Add to what was spent, in the transaction that stores what it was spent on.

        Raises:
            LeaseLostError: the transaction must not be committed.

        """
        update_held(
            connection, held, _spent(rollouts, tokens) | {"lease_expires_at": self._lease_end()}
        )

    def charge_late(self, connection: Connection, held: Growth, rollouts: int, tokens: int) -> None:
        """As `charge`, for what was under way when the growth was paused, cancelled or taken over.

        It was paid for, and so is in the account that whoever works on the growth now reads.
        """
        statement = update(growth).where(growth.c.id == held.id).values(_spent(rollouts, tokens))
        connection.execute(statement)

    def finish(
        self, held: Growth, state: State, error: str = "", revision: int | None = None
    ) -> bool:
        """End a growth that is held; whether it did: not if it was extended since `revision`."""
        values = {
            "state": state.value, "error": error, "turn": None, "has_turn": False,
            "waits_for": None, "updated_at": time.time(),
        }  # fmt: skip
        ending = update(growth).where(is_held(held)).values(values)
        if revision is not None:
            ending = ending.where(growth.c.revision == revision)

        def end(connection: Connection) -> bool:
            if connection.execute(ending).rowcount == 1:
                return True
            update_held(connection, held, {"updated_at": time.time()})
            return False

        return transact(self._engine, end)

    def _execute(self, statement: Update) -> None:
        transact(self._engine, lambda connection: connection.execute(statement))


def _spent(rollouts: int, tokens: int) -> dict[str, Any]:
    return {
        "rollouts_sampled": growth.c.rollouts_sampled + rollouts,
        "tokens_sampled": growth.c.tokens_sampled + tokens,
        "updated_at": time.time(),
    }
