"""What holds between the tables: each statement sees one moment by itself, on both stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sqlalchemy import Connection, delete, exists, func, or_, select, text

from unmask_server.database.schema import (
    node,
    node_stat,
    outcome,
    rollout,
    trajectory,
    trajectory_outcome,
    tree,
)
from unmask_server.tree.checks.findings import Finding
from unmask_server.tree.checks.streams import stream
from unmask_server.tree.fingerprint import digest
from unmask_server.tree.ids import first_id

_DELETED = "deleted"

_OF_NO_TREE = ~exists().where(tree.c.id == node_stat.c.node_id // first_id(1))
_OF_NO_ROLLOUT = ~exists().where(rollout.c.id == outcome.c.rollout_id)


def page_findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """Let SQLite look at its file; PostgreSQL has tools of its own for that (`pg_amcheck`)."""
    if connection.dialect.name != "sqlite":
        return
    for (line,) in connection.execute(text("PRAGMA integrity_check")):
        if line != "ok":
            yield Finding("store.pages", None, "file", line)


def stray_findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """Nodes and rollouts of another tree than their id says, or of none; uids there twice."""
    for table in (node, rollout):
        name = table.name
        stray = (
            select(table.c.id, table.c.tree_id, tree.c.id.label("there"))
            .select_from(table.outerjoin(tree, tree.c.id == table.c.tree_id))
            .where(or_(tree.c.id.is_(None), table.c.tree_id != table.c.id // first_id(1)))
        )
        for row in stream(connection, stray):
            why = "which is not there" if row.there is None else "its id is of another"
            problem = f"it says that it is of tree {row.tree_id}, {why}"
            yield Finding(f"{name}.tree", row.tree_id, f"{name} {row.id}", problem)
    # By the rows, not by the index of uids, which would not be whole.
    twice = select(rollout.c.uid, func.min(rollout.c.id).label("id"), func.count().label("times"))
    twice = twice.group_by(rollout.c.uid).having(func.count() > 1)
    for row in stream(connection, twice):
        problem = f"uid {row.uid.hex()} is there {row.times} times"
        yield Finding("rollout.uid", row.id // first_id(1), f"rollout {row.id}", problem)


def orphan_findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """Counts and outcomes of what is not there; in a tree that is there, its check finds them."""
    counts = select(node_stat.c.node_id, node_stat.c.verifier_key).where(_OF_NO_TREE)
    for row in stream(connection, counts):
        problem = f"counts of verifier {row.verifier_key}, but there is no node"
        yield Finding("stat.orphan", None, f"node {row.node_id}", problem, _DELETED)
    outcomes = select(outcome.c.rollout_id, outcome.c.verifier_key).where(_OF_NO_ROLLOUT)
    for row in stream(connection, outcomes):
        problem = f"an outcome by verifier {row.verifier_key}, but there is no rollout"
        yield Finding("outcome.orphan", None, f"rollout {row.rollout_id}", problem, _DELETED)


def delete_orphans(connection: Connection) -> int:
    """Delete what `orphan_findings` finds; returns how many rows."""
    gone = connection.execute(delete(node_stat).where(_OF_NO_TREE)).rowcount
    return gone + connection.execute(delete(outcome).where(_OF_NO_ROLLOUT)).rowcount


def trajectory_findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """Trajectories against their rollouts, and their outcomes."""
    of = tree.alias("of")
    wanted = (
        select(
            trajectory.c.id,
            trajectory.c.tokens,
            trajectory.c.finish,
            trajectory.c.rollout_uid,
            rollout.c.digest,
            rollout.c.tree_id,
            rollout.c.finish.label("ended"),
            of.c.id.label("own_tree"),
        )
        .select_from(
            trajectory.outerjoin(rollout, rollout.c.uid == trajectory.c.rollout_uid).outerjoin(
                of,
                (of.c.policy_id == trajectory.c.policy_id)
                & (of.c.question_id == trajectory.c.question_id),
            )
        )
        .where(trajectory.c.rollout_uid.is_not(None))
    )
    for row in stream(connection, wanted):
        checked["trajectory"] += 1
        problem = ""
        if row.digest is None:
            problem = f"its rollout {row.rollout_uid.hex()} is not there"
        elif row.tree_id != row.own_tree:
            problem = f"its rollout is of tree {row.tree_id}"
        elif digest(row.tokens) != row.digest or row.finish != row.ended:
            problem = "its rollout has other tokens, or ended otherwise"
        if problem:
            yield Finding("trajectory.rollout", row.own_tree, f"trajectory {row.id}", problem)
    reward = trajectory_outcome.c.reward
    wrong = (
        select(trajectory_outcome, trajectory.c.id)
        .select_from(
            trajectory_outcome.outerjoin(
                trajectory, trajectory.c.id == trajectory_outcome.c.trajectory_id
            )
        )
        .where(or_(trajectory.c.id.is_(None), reward < 0.0, reward > 1.0))
    )
    for row in stream(connection, wrong):
        problem = "there is no trajectory" if row.id is None else f"the reward is {row.reward}"
        name = f"outcome of trajectory {row.trajectory_id} by verifier {row.verifier_key}"
        yield Finding("trajectory.outcome", None, name, problem)
