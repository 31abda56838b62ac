"""Reading rollouts back, their tokens spelled by the tree."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import Connection, bindparam, select

from unmask_server.database.rows import AnyRow, AnySelect
from unmask_server.database.schema import node, outcome, rollout, tree_verifier
from unmask_server.tree.ids import id_range
from unmask_server.tree.tokens import unpack
from unmask_server.tree.types import StoredRollout, TreeCorruptError

_first = bindparam("first", type_=rollout.c.id.type)
_last = bindparam("last", type_=rollout.c.id.type)

# The nodes at which rollouts of a range of ids end, and all nodes above them: each once.
_up = (
    select(rollout.c.end_node_id.label("id"))
    .where(rollout.c.id.between(_first, _last))
    .cte("up", recursive=True)
)
_up = _up.union(
    select(node.c.parent_id).join(_up, node.c.id == _up.c.id).where(node.c.parent_id.is_not(None))
)
edges_above = select(node.c.id, node.c.parent_id, node.c.edge).join(_up, node.c.id == _up.c.id)

_rewards = (
    select(outcome.c.rollout_id, outcome.c.verifier_key, outcome.c.reward)
    .join(
        tree_verifier,
        (tree_verifier.c.verifier_key == outcome.c.verifier_key)
        & (tree_verifier.c.tree_id == bindparam("tree_id", type_=tree_verifier.c.tree_id.type)),
    )
    .where(outcome.c.rollout_id.between(_first, _last))
)


def rollout_rows(tree_id: int, after_id: int = 0) -> AnySelect:
    """Select a tree's rollouts behind an id, in the order of their ids; see `spell`."""
    first, end = id_range(tree_id)
    return (
        select(
            rollout.c.id,
            rollout.c.uid,
            rollout.c.end_node_id,
            rollout.c.forced_depth,
            rollout.c.finish,
        )
        .where(rollout.c.id >= max(first, after_id + 1), rollout.c.id < end)
        .order_by(rollout.c.id)
    )


def spell(connection: Connection, tree_id: int, rows: list[AnyRow]) -> list[StoredRollout]:
    """Complete rows of `rollout_rows` by their tokens and rewards: two statements in all.

    Raises:
        TreeCorruptError: a node on the way to a rollout is missing.

    """
    if not rows:
        return []
    span = {"first": rows[0].id, "last": rows[-1].id}
    edges = {row.id: (row.parent_id, row.edge) for row in connection.execute(edges_above, span)}
    rewards: dict[int, dict[int, float]] = defaultdict(dict)
    for rollout_id, key, reward in connection.execute(_rewards, {"tree_id": tree_id, **span}):
        rewards[rollout_id][key] = reward
    prefixes: dict[int | None, bytes] = {None: b""}
    return [
        StoredRollout(
            id=row.id,
            uid=row.uid,
            tokens=unpack(_prefix(row.end_node_id, edges, prefixes)),
            forced_depth=row.forced_depth,
            finish=row.finish,
            rewards=rewards[row.id],
        )
        for row in rows
    ]


def _prefix(
    node_id: int,
    edges: dict[int, tuple[int | None, bytes]],
    prefixes: dict[int | None, bytes],
) -> bytes:
    """Join the edges from the root to a node; `prefixes` remembers every node on the way."""
    below: list[tuple[int, bytes]] = []
    at: int | None = node_id
    while at not in prefixes:
        assert at is not None
        if at not in edges:
            raise TreeCorruptError(f"node {at} is missing")
        parent_id, edge = edges[at]
        below.append((at, edge))
        at = parent_id
    prefix = prefixes[at]
    for passed, edge in reversed(below):
        prefix += edge
        prefixes[passed] = prefix
    return prefix
