"""Making a verifier active on a tree that holds rollouts already: grade them, sample nothing.

Grading may take long and runs outside of any transaction, while rollouts go on being added without
that verifier. Outcomes are stored as they come, so that an interrupted run goes on where it ended.
The end is under the tree's lock: if nothing ungraded is left there, the statistics are computed
from all outcomes and the verifier becomes active in the same transaction; from then on
`add_rollouts` demands its reward. So no rollout is left out and none counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from unmask_server.database.connect import query, transact
from unmask_server.database.rows import AnySelect
from unmask_server.database.schema import node_stat, outcome, rollout, tree, tree_verifier
from unmask_server.tree.aggregate import aggregate, read_graded, read_shape
from unmask_server.tree.insert import active_verifiers, lock_tree, stat_row
from unmask_server.tree.rollouts import rollout_rows, spell
from unmask_server.tree.types import StoredRollout, check_reward

Grade = Callable[[list[StoredRollout]], list[float]]

_CHASES = 8
"""How often the end is tried before the few rollouts added meanwhile are graded under the lock."""


def activate_verifier(
    engine: Engine, tree_id: int, verifier_key: int, grade: Grade, batch: int
) -> None:
    """Do what `TreeStore.activate_verifier` promises."""
    for chase in range(_CHASES + 1):
        _grade_all(engine, tree_id, verifier_key, grade, batch)
        under_lock = grade if chase == _CHASES else None
        if transact(engine, partial(_finish, tree_id, verifier_key, under_lock)):
            return


def _grade_all(engine: Engine, tree_id: int, verifier_key: int, grade: Grade, batch: int) -> None:
    """Store an outcome for every rollout that is there when this comes to its end."""
    after_id = 0
    while ungraded := _read_ungraded(engine, tree_id, verifier_key, after_id, batch):
        rewards = _graded(grade, ungraded, verifier_key)
        transact(engine, partial(store_outcomes, verifier_key, rewards))
        after_id = ungraded[-1].id


def _finish(tree_id: int, verifier_key: int, grade: Grade | None, connection: Connection) -> bool:
    """Make the verifier active if no rollout lacks its outcome; otherwise return False.

    Given `grade`, what lacks it is graded here and now.
    """
    ref = lock_tree(connection, tree_id)
    if verifier_key in active_verifiers(connection, tree_id):
        return True
    rows = connection.execute(_ungraded(tree_id, verifier_key, after_id=0)).all()
    if rows and grade is None:
        return False
    if rows and grade is not None:
        late = spell(connection, tree_id, list(rows))
        store_outcomes(verifier_key, _graded(grade, late, verifier_key), connection)
    totals = aggregate(
        read_shape(connection, tree_id), read_graded(connection, tree_id, verifier_key)
    )
    if totals:
        connection.execute(
            insert(node_stat),
            [stat_row(node_id, verifier_key, stats) for node_id, stats in totals.items()],
        )
    connection.execute(insert(tree_verifier), {"tree_id": tree_id, "verifier_key": verifier_key})
    connection.execute(update(tree).where(tree.c.id == tree_id), {"version": ref.version + 1})
    return True


def lacks_outcome(verifier_key: int) -> ColumnElement[bool]:
    """Whether a row of `rollout` has no outcome of a verifier."""
    graded = (
        select(outcome.c.rollout_id)
        .where(outcome.c.rollout_id == rollout.c.id)
        .where(outcome.c.verifier_key == verifier_key)
    )
    return ~graded.exists()


def _ungraded(tree_id: int, verifier_key: int, after_id: int) -> AnySelect:
    return rollout_rows(tree_id, after_id).where(lacks_outcome(verifier_key))


def _read_ungraded(
    engine: Engine, tree_id: int, verifier_key: int, after_id: int, limit: int
) -> list[StoredRollout]:
    statement = _ungraded(tree_id, verifier_key, after_id).limit(limit)
    return query(
        engine,
        lambda connection: spell(connection, tree_id, list(connection.execute(statement))),
    )


def _graded(
    grade: Grade, rollouts: list[StoredRollout], verifier_key: int
) -> list[tuple[int, float]]:
    rewards = grade(rollouts)
    if len(rewards) != len(rollouts):
        raise ValueError(f"{len(rewards)} rewards were given for {len(rollouts)} rollouts")
    for reward in rewards:
        check_reward(reward, verifier_key)
    return [(stored.id, float(reward)) for stored, reward in zip(rollouts, rewards, strict=True)]


def store_outcomes(
    verifier_key: int, rewards: Sequence[tuple[int, float]], connection: Connection
) -> None:
    """Store outcomes; where another run was faster, its outcome of the same verifier stands."""
    postgresql = connection.dialect.name == "postgresql"
    statement = (postgresql_insert if postgresql else sqlite_insert)(outcome)
    connection.execute(
        statement.on_conflict_do_nothing(),
        [
            {"rollout_id": rollout_id, "verifier_key": verifier_key, "reward": reward}
            for rollout_id, reward in rewards
        ],
    )
