"""Taking whole trees out of the store, or what can be scored anew.

A pruned tree loses its rollouts with their outcomes and scores, its nodes and counts, and the
trajectories of its policy on its question, which are rollouts of it. Its row stays, empty and of a
new version, so that servers which hold it go on with it; its rollouts are numbered on, so that what
somebody remembers of the old ones is not taken for new ones. Growths keep what they spent, and are
told how much of it is gone. No other tree is touched: every answer about one stays as it is, to the
last bit. Distributions stay: they belong to models and prefixes, not to trees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, event, func, select, text, update
from sqlalchemy.engine.interfaces import DBAPIConnection

from unmask_server.database.connect import open_database, query, transact
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import (
    growth,
    node,
    node_stat,
    outcome,
    policy,
    question,
    retention,
    rollout,
    rollout_score,
    trajectory,
    trajectory_outcome,
    tree,
)
from unmask_server.keeping.open import open_trees
from unmask_server.tree.ids import first_id, id_range
from unmask_server.tree.insert import lock_tree

DAY = 86_400.0
_TOKENS = rollout.c.depth - rollout.c.forced_depth
_TREES = 500


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which trees; what is None does not limit the choice."""

    policy: str | None = None
    """Id or name."""
    question: str | None = None
    """Id or name."""
    older_days: float | None = None
    """Only those whose newest rollout is older."""
    by_rules: bool = False
    """Only those that the retention rule of their policy lets go."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree that was chosen, and what it holds."""

    tree_id: int
    policy: str
    """Name, or id without one."""
    question: str
    rollouts: int
    tokens: int
    """Sampled."""
    trajectories: int
    newest: float | None
    """When its newest rollout was stored, in seconds since the epoch; None without any."""
    is_open: bool
    """Whether a growth that has not ended grows it: then it stays."""


def choose(engine: Engine, chosen: Chosen) -> Iterator[Candidate]:
    """List the trees of a choice that hold anything, by id.

    Raises:
        ValueError: there is no such policy or question.

    """
    wanted = (
        select(
            tree,
            func.coalesce(policy.c.name, policy.c.id).label("policy"),
            func.coalesce(question.c.name, question.c.id).label("question"),
            retention.c.days,
        )
        .join(policy, policy.c.id == tree.c.policy_id)
        .join(question, question.c.id == tree.c.question_id)
        .outerjoin(retention, retention.c.policy_id == tree.c.policy_id)
        .where(tree.c.rollouts > tree.c.rollouts_pruned)
    )
    if chosen.policy is not None:
        wanted = wanted.where(tree.c.policy_id == find(engine, policy, chosen.policy))
    if chosen.question is not None:
        wanted = wanted.where(tree.c.question_id == find(engine, question, chosen.question))
    if chosen.by_rules:
        wanted = wanted.where(retention.c.days.is_not(None))
    grown = open_trees(engine)
    after = 0
    while True:
        page = wanted.where(tree.c.id > after).order_by(tree.c.id).limit(_TREES)
        rows = query(engine, lambda c, page=page: c.execute(page).all())  # type: ignore[misc]
        if not rows:
            return
        for row in rows:
            found = query(engine, partial(_candidate, row, grown))
            days = row.days if chosen.by_rules else chosen.older_days
            if days is None or (found.newest or 0.0) < time.time() - DAY * days:
                yield found
        after = rows[-1].id


def find(engine: Engine, table: Table, name: str) -> str:
    """The id of a policy or question, given that or its name. Raises ValueError if there is none"""
    wanted = select(table.c.id).where((table.c.id == name) | (table.c.name == name))
    found: str | None = query(engine, lambda c: c.scalar(wanted))
    if found is None:
        raise ValueError(f"there is no {table.name} {name!r}")
    return found


def totals(engine: Engine) -> tuple[int, int]:
    """How many trees hold rollouts, and how many rollouts."""
    left = tree.c.rollouts - tree.c.rollouts_pruned
    wanted = select(func.count(), func.coalesce(func.sum(left), 0)).where(left > 0)
    trees, rollouts = query(engine, lambda c: c.execute(wanted).one())
    return int(trees), int(rollouts)


def prune_trees(engine: Engine, tree_ids: Sequence[int]) -> int:
    """Empty trees, each in one transaction; returns how many rollouts are gone."""
    if not tree_ids:
        return 0
    with _without_scans(engine) as quick:
        return sum(transact(quick, partial(_prune, tree_id)) for tree_id in tree_ids)


def prune_scores(engine: Engine, tree_ids: Sequence[int]) -> int:
    """Delete what models said of the tokens of trees' rollouts; returns how many rows are gone."""
    gone = 0
    for tree_id in tree_ids:
        statement = delete(rollout_score).where(*_in(tree_id, rollout_score.c.rollout_id))
        gone += transact(engine, lambda c, s=statement: c.execute(s).rowcount)  # type: ignore[misc]
    return gone


def _candidate(row: AnyRow, grown: set[tuple[str, str]], connection: Connection) -> Candidate:
    newest = (
        select(rollout.c.created_at)
        .where(*_in(row.id, rollout.c.id))
        .order_by(rollout.c.id.desc())
        .limit(1)
    )
    own = select(func.count()).where(*_of(row))
    return Candidate(
        tree_id=row.id,
        policy=row.policy,
        question=row.question,
        rollouts=row.rollouts - row.rollouts_pruned,
        tokens=row.tokens,
        trajectories=int(connection.scalar(own) or 0),
        newest=connection.scalar(newest),
        is_open=(row.policy_id, row.question_id) in grown,
    )


def _prune(tree_id: int, connection: Connection) -> int:
    ref = lock_tree(connection, tree_id)
    spent = (
        select(rollout.c.growth_id, func.count(), func.sum(_TOKENS))
        .where(*_in(tree_id, rollout.c.id), rollout.c.growth_id.is_not(None))
        .group_by(rollout.c.growth_id)
    )
    for name, rollouts, tokens in connection.execute(spent).all():
        gone = {
            "rollouts_pruned": growth.c.rollouts_pruned + int(rollouts),
            "tokens_pruned": growth.c.tokens_pruned + int(tokens),
        }
        connection.execute(update(growth).where(growth.c.id == name).values(gone))
    for key in (rollout_score.c.rollout_id, outcome.c.rollout_id, rollout.c.id):
        connection.execute(delete(key.table).where(*_in(tree_id, key)))
    connection.execute(delete(node_stat).where(*_in(tree_id, node_stat.c.node_id)))
    below = node.c.id != first_id(tree_id)
    connection.execute(delete(node).where(*_in(tree_id, node.c.id), below))
    own = select(trajectory.c.id).where(*_of(ref))
    connection.execute(
        delete(trajectory_outcome).where(trajectory_outcome.c.trajectory_id.in_(own))
    )
    connection.execute(delete(trajectory).where(*_of(ref)))
    values = {
        "version": ref.version + 1,
        "nodes": 1,
        "tokens": 0,
        "rollouts_pruned": ref.rollouts,
    }
    connection.execute(update(tree).where(tree.c.id == tree_id), values)
    return int(ref.rollouts - ref.rollouts_pruned)


def _in(tree_id: int, key: Any) -> tuple[Any, Any]:
    first, end = id_range(tree_id)
    return key >= first, key < end


def _of(ref: AnyRow) -> tuple[Any, Any]:
    return trajectory.c.policy_id == ref.policy_id, trajectory.c.question_id == ref.question_id


@contextmanager
def _without_scans(engine: Engine) -> Iterator[Engine]:
    """Delete nodes without looking for each one's rollouts in all of the table.

    Rollouts name two nodes each, which no index holds: it would be read for nothing else. SQLite
    leaves out the look, since all that names a node goes with it; PostgreSQL gets the indexes for
    the time being.
    """
    if engine.dialect.name == "sqlite":
        quick = open_database(engine.url.render_as_string(hide_password=False))

        @event.listens_for(quick, "connect")
        def unchecked(connection: DBAPIConnection, _: object) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA foreign_keys=OFF")
            cursor.close()

        try:
            yield quick
        finally:
            quick.dispose()
        return
    columns = (rollout.c.start_node_id, rollout.c.end_node_id)
    names = [f"ix_prune_{column.name}" for column in columns]
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with alone.connect() as connection:
        try:
            for name, column in zip(names, columns, strict=True):
                connection.execute(text(f"DROP INDEX IF EXISTS {name}"))
                connection.execute(
                    text(f"CREATE INDEX CONCURRENTLY {name} ON rollout ({column.name})")
                )
            yield engine
        finally:
            for name in names:
                connection.execute(text(f"DROP INDEX IF EXISTS {name}"))
