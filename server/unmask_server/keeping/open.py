"""Which trees are being grown."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, select

from unmask_server.database.connect import query
from unmask_server.database.schema import growth, trajectory
from unmask_server.growth.spec import GrowthSpec, State

_ENDED = (State.SUCCEEDED.value, State.FAILED.value, State.CANCELLED.value)


def open_trees(engine: Engine) -> set[tuple[str, str]]:
    """Policy and question of every tree that a growth which has not ended grows."""
    return query(engine, _read)


def _read(connection: Connection) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    specs = select(growth.c.spec).where(growth.c.state.not_in(_ENDED))
    for data in connection.scalars(specs).all():
        for target in GrowthSpec.from_json(data).targets:
            if not target.trajectory_id:
                found.add((target.policy_id, target.question_id))
                continue
            of = select(trajectory.c.policy_id, trajectory.c.question_id)
            row = connection.execute(of.where(trajectory.c.id == target.trajectory_id)).first()
            if row is not None:
                found.add((row.policy_id, row.question_id))
    return found
