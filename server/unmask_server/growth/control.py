"""What clients do to growths, whichever server works on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from unmask_server.catalog.errors import FailedPrecondition, NotFound
from unmask_server.database.connect import transact
from unmask_server.database.schema import growth
from unmask_server.growth.rows import OPEN, QUEUED, growth_of
from unmask_server.growth.spec import Growth, GrowthSpec, State
from unmask_server.reasons import Reason

Charge = Callable[[Connection, Growth, GrowthSpec], None]
"""Counts a change of a growth as it was to one with a spec, in the transaction that makes it; it
raises to refuse. A growth that has ended is queued by the change."""


def nothing(_connection: Connection, _found: Growth, _spec: GrowthSpec) -> None:
    """Count nothing: a `Charge`."""


class GrowthControl:
    """Pausing, resuming, extending and cancelling. Synchronous: called from threads.

    The row alone is changed: a server that works on the growth finds at its next commit that it no
    longer may, or that there is more to do.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def cancel(self, growth_id: str) -> Growth:
        """End a growth; nothing if it has ended. Raises NotFound."""
        return self._move(growth_id, (*OPEN, State.PAUSED.value), {"state": State.CANCELLED.value})

    def pause(self, growth_id: str) -> Growth:
        """Let nobody work on a growth until it is resumed; nothing if it is paused.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it has ended.

        """
        found = self._move(growth_id, OPEN, {"state": State.PAUSED.value})
        if found.state is not State.PAUSED:
            raise FailedPrecondition(
                Reason.GROWTH_ENDED,
                f"growth {growth_id} has ended: {found.state.value}",
                growth=growth_id,
                state=found.state.name,
            )
        return found

    def resume(self, growth_id: str, charge: Charge = nothing) -> Growth:
        """Queue a growth that is paused or has failed; nothing if it is at work.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it is done or was cancelled.

        """
        from_ = (State.PAUSED.value, State.FAILED.value)
        found = self._move(growth_id, from_, QUEUED, charge)
        if found.state.ended:
            raise FailedPrecondition(
                Reason.GROWTH_ENDED,
                f"growth {growth_id} has ended: {found.state.value}; extend it to go on",
                growth=growth_id,
                state=found.state.name,
            )
        return found

    def retry(self, growth_id: str, charge: Charge = nothing) -> Growth:
        """Queue a growth that has failed; nothing if it has not. Raises NotFound."""
        return self._move(growth_id, (State.FAILED.value,), QUEUED, charge)

    def extend(
        self,
        growth_id: str,
        change: Callable[[GrowthSpec], GrowthSpec],
        charge: Charge = nothing,
    ) -> Growth:
        """Change what a growth is to reach, and queue it if it has ended.

        Args:
            growth_id: whose.
            change: the new spec from the one it has; the same one: nothing changes but that a
                growth that failed or was cancelled is queued. Called in the transaction, perhaps
                more than once.
            charge: counts what it adds.

        Raises:
            NotFound: there is none.

        """
        wanted = select(growth).where(growth.c.id == growth_id)

        def work(connection: Connection) -> Growth:
            row = connection.execute(wanted.with_for_update()).first()
            if row is None:
                raise NotFound("growth", growth_id)
            found = growth_of(row)
            spec = change(found.spec)
            values: dict[str, Any] = {}
            if spec != found.spec:
                values = {
                    "spec": spec.to_json(),
                    "asked": found.first_spec.to_json(),
                    "revision": found.revision + 1,
                }
            if found.state.ended and (values or found.state is not State.SUCCEEDED):
                values |= QUEUED
            if values:
                charge(connection, found, spec)
                values["updated_at"] = time.time()
                connection.execute(update(growth).where(growth.c.id == growth_id).values(values))
            return growth_of(connection.execute(wanted).one())

        return transact(self._engine, work)

    def _move(
        self,
        growth_id: str,
        from_: Sequence[str],
        values: dict[str, Any],
        charge: Charge = nothing,
    ) -> Growth:
        wanted = select(growth).where(growth.c.id == growth_id)

        def work(connection: Connection) -> Growth:
            row = connection.execute(wanted.with_for_update()).first()
            if row is None:
                raise NotFound("growth", growth_id)
            found = growth_of(row)
            if found.state.value not in from_:
                return found
            if found.state.ended:
                charge(connection, found, found.spec)
            connection.execute(
                update(growth)
                .where(growth.c.id == growth_id)
                .values(values | {"waits_for": None, "updated_at": time.time()})
            )
            return growth_of(connection.execute(wanted).one())

        return transact(self._engine, work)
