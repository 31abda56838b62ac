"""Growths that share a tree sample in turns, so that nothing is sampled twice.

A growth joins one line for all its trees: a number, higher than all before it. It may sample when
no growth that shares a tree with it is sampling or has a lower number. It gives its turn up after
some seconds if one of those waits, joins the line anew at its end, and plans from what the tree
holds then: what others sampled for it, it need not. The growth with the lowest number waits for
nobody but those that sample, so there is no deadlock; and numbers only grow, so nobody starves.

Growths that share no tree never wait for each other. One whose lease is over, or that was paused or
cancelled, is out of the line.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Select, exists, func, or_, select, text, update

from unmask_server.database.connect import query, transact
from unmask_server.database.schema import growth, growth_subject
from unmask_server.growth.rows import LeaseLostError, at_work, is_held, update_held
from unmask_server.growth.spec import Growth, State

_ALONE = text("SELECT pg_advisory_xact_lock(hashtext('unmask growth turns'))")


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of asking for one."""

    waits_for: str | None
    """The growth that goes first; None: the turn was given."""


class TurnStore:
    """The line, in the database. Synchronous: called from threads."""

    def __init__(self, engine: Engine, lease_seconds: float) -> None:
        self._engine = engine
        self._lease_seconds = lease_seconds

    def take(self, held: Growth) -> Turn:
        """Ask for the turn, or whether it still is this growth's.

        Raises:
            LeaseLostError: the growth is not held any more.

        """

        def work(connection: Connection) -> Turn:
            _alone(connection)
            mine = connection.execute(
                select(growth.c.turn, growth.c.has_turn, growth.c.waits_for).where(is_held(held))
            ).first()
            if mine is None:
                raise LeaseLostError(held.id)
            if mine.has_turn:
                return Turn(None)
            turn = _next(connection) if mine.turn is None else mine.turn
            first = connection.execute(
                self._rivals(held)
                .where(or_(growth.c.has_turn, growth.c.turn < turn))
                .order_by(growth.c.has_turn.desc(), growth.c.turn)
            ).first()
            if first is None:
                # Of a server that was taken for dead: should it live, it must ask anew.
                connection.execute(
                    update(growth)
                    .where(growth.c.id != held.id, growth.c.has_turn, _shares_a_tree(held))
                    .values(has_turn=False)
                )
            waits_for = None if first is None else first.id
            values = {"turn": turn, "has_turn": first is None, "waits_for": waits_for}
            if first is None or mine.turn is None or waits_for != mine.waits_for:
                update_held(connection, held, values)
            return Turn(waits_for)

        return transact(self._engine, work)

    def is_wanted(self, held: Growth) -> bool:
        """Whether another growth waits for a tree of this one."""
        waiting = self._rivals(held).where(growth.c.turn.is_not(None)).limit(1)
        found = query(self._engine, lambda connection: connection.execute(waiting).first())
        return found is not None

    def give_up(self, held: Growth, *, again: bool) -> None:
        """End the turn, or the wait for it; `again`: and join the line at its end.

        Harmless if the growth is not held any more.
        """

        def work(connection: Connection) -> None:
            _alone(connection)
            connection.execute(
                update(growth)
                .where(is_held(held))
                .values(has_turn=False, turn=_next(connection) if again else None, waits_for=None)
            )

        transact(self._engine, work)

    def _rivals(self, held: Growth) -> Select[Any]:
        """Growths that are at work and share a tree with this one."""
        return select(growth.c.id).where(
            growth.c.id != held.id, at_work(self._lease_seconds), _shares_a_tree(held)
        )


class Turns:
    """The line, for the growths of one server."""

    def __init__(self, store: TurnStore) -> None:
        self._store = store
        self._moved = asyncio.Event()

    async def take(self, held: Growth) -> bool:
        """Whether it is the growth's turn. Raises LeaseLostError."""
        return (await asyncio.to_thread(self._store.take, held)).waits_for is None

    async def is_wanted(self, held: Growth) -> bool:
        """See `TurnStore.is_wanted`."""
        return await asyncio.to_thread(self._store.is_wanted, held)

    async def give_up(self, held: Growth, *, again: bool) -> None:
        """See `TurnStore.give_up`."""
        await asyncio.to_thread(self._store.give_up, held, again=again)
        self.move()

    def move(self) -> None:
        """Let all who wait ask again: the line may have moved."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait until the line may have moved."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()


def _alone(connection: Connection) -> None:
    # On SQLite the write transaction is alone already.
    if connection.dialect.name == "postgresql":
        connection.execute(_ALONE)


def _next(connection: Connection) -> int:
    running = growth.c.state == State.RUNNING.value
    last = connection.execute(select(func.max(growth.c.turn)).where(running)).scalar()
    return (last or 0) + 1


def _shares_a_tree(held: Growth) -> Any:
    mine, theirs = growth_subject.alias("mine"), growth_subject.alias("theirs")
    return exists().where(
        mine.c.growth_id == held.id,
        theirs.c.growth_id == growth.c.id,
        theirs.c.policy_id == mine.c.policy_id,
        theirs.c.question_id == mine.c.question_id,
    )
