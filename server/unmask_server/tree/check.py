"""Whether a tree holds what it promises: for tests, and for whoever doubts a database."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from unmask_server.database.connect import snapshot
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import node, node_stat, outcome, rollout, tree, tree_verifier
from unmask_server.tree.aggregate import aggregate, read_graded
from unmask_server.tree.fingerprint import digest, extend, seed_fingerprint
from unmask_server.tree.ids import first_id, id_range
from unmask_server.tree.radix import Stats
from unmask_server.tree.tokens import TOKEN_BYTES, token_at, tokens_in

_TOLERANCE = 1e-6
"""For sums of rewards: they depend on the order of addition, in the last digits."""


def check_tree(engine: Engine, tree_id: int) -> list[str]:
    """Recompute everything that is derived in a tree; return what is wrong, one sentence each.

    Checked are the shape (edges, depths, fingerprints, no node without a reason), the tokens of
    every rollout against its digest, that every rollout has its outcomes, all statistics, and the
    tree's own counters. The tree is read into memory; concurrent writers do not disturb.
    """
    with snapshot(engine) as connection:
        ref = connection.execute(select(tree).where(tree.c.id == tree_id)).first()
        if ref is None:
            return [f"there is no tree {tree_id}"]
        return list(_problems(connection, ref))


def _problems(connection: Connection, ref: AnyRow) -> Iterator[str]:
    nodes = {
        row.id: row for row in connection.execute(select(node).where(node.c.tree_id == ref.id))
    }
    first, end = id_range(ref.id)
    rollouts = list(
        connection.execute(select(rollout).where(rollout.c.id >= first, rollout.c.id < end))
    )
    shape = _Shape(ref, nodes)
    yield from shape.problems()
    if shape.broken:
        yield "the statistics were not checked, because the shape is broken"
        return
    yield from _rollout_problems(shape, rollouts)
    yield from _reason_problems(shape, rollouts)
    yield from _counter_problems(ref, nodes, rollouts)
    keys = select(tree_verifier.c.verifier_key).where(tree_verifier.c.tree_id == ref.id)
    active = set(connection.scalars(keys))
    yield from _outcome_problems(connection, ref, rollouts, active)
    yield from _statistics_problems(connection, ref, shape, active)


@dataclass(slots=True)
class _Shape:
    """The nodes, and what following them from the root gives."""

    ref: AnyRow
    nodes: dict[int, AnyRow]
    broken: bool = False

    def problems(self) -> Iterator[str]:
        """Check every node against its parent."""
        root_id = first_id(self.ref.id)
        heads: Counter[tuple[int | None, bytes]] = Counter()
        for row in self.nodes.values():
            heads[row.parent_id, token_at(row.edge, 0)] += 1
            for problem in self._node_problems(row, root_id):
                self.broken = True
                yield f"node {row.id}: {problem}"
        for (parent_id, _), times in heads.items():
            if times > 1:
                self.broken = True
                yield f"node {parent_id}: {times} edges begin with the same token"
        if root_id not in self.nodes:
            self.broken = True
            yield "there is no root"
        elif not self.broken:
            yield from self._fingerprint_problems(root_id)

    def _node_problems(self, row: AnyRow, root_id: int) -> Iterator[str]:
        if row.id == root_id:
            if row.parent_id is not None or row.depth != 0 or row.edge:
                yield "the root has a parent, a depth or an edge"
            return
        parent = self.nodes.get(row.parent_id)
        if parent is None:
            yield f"its parent {row.parent_id} is not in the tree"
        elif not row.edge or len(row.edge) % TOKEN_BYTES:
            yield f"its edge has {len(row.edge)} bytes"
        elif row.depth != parent.depth + tokens_in(row.edge):
            yield f"its depth is {row.depth}, which the parent's and its edge do not add up to"

    def _fingerprint_problems(self, root_id: int) -> Iterator[str]:
        names = {root_id: seed_fingerprint(self.ref.policy_id, self.ref.question_id)}
        if self.nodes[root_id].fingerprint != names[root_id]:
            yield f"node {root_id}: its fingerprint is wrong"
        # A parent is less deep than its children, as was checked.
        for row in sorted(self.nodes.values(), key=lambda row: row.depth):
            if row.id != root_id:
                chain = extend(names[row.parent_id], row.edge)
                names[row.id] = chain[-1]
                if row.fingerprint != chain[0]:
                    yield f"node {row.id}: its fingerprint is wrong"

    def ancestors(self, node_id: int) -> Iterator[AnyRow]:
        """Go from a node up to the root, both included."""
        at: int | None = node_id
        while at is not None:
            yield self.nodes[at]
            at = self.nodes[at].parent_id


def _rollout_problems(shape: _Shape, rollouts: list[AnyRow]) -> Iterator[str]:
    for row in rollouts:
        if row.end_node_id not in shape.nodes or row.start_node_id not in shape.nodes:
            yield f"rollout {row.id}: its nodes are not in the tree"
            continue
        path = list(shape.ancestors(row.end_node_id))
        tokens = b"".join(at.edge for at in reversed(path))
        if tokens_in(tokens) != row.depth or digest(tokens) != row.digest:
            yield f"rollout {row.id}: the tree does not spell its tokens"
        start = next((at for at in path if at.id == row.start_node_id), None)
        if start is None or start.depth != max(row.forced_depth - 1, 0):
            yield f"rollout {row.id}: it does not start before its last forced token"
        if row.tree_id != shape.ref.id:
            yield f"rollout {row.id}: it says that it is of tree {row.tree_id}"


def _reason_problems(shape: _Shape, rollouts: list[AnyRow]) -> Iterator[str]:
    """Report nodes at which nothing branches, ends or is forced: there should be no split."""
    children = Counter(row.parent_id for row in shape.nodes.values())
    points = {row.end_node_id for row in rollouts} | {row.start_node_id for row in rollouts}
    for row in shape.nodes.values():
        if row.parent_id is not None and children[row.id] < 2 and row.id not in points:
            yield f"node {row.id}: nothing branches, ends or is forced there"


def _counter_problems(
    ref: AnyRow, nodes: dict[int, AnyRow], rollouts: list[AnyRow]
) -> Iterator[str]:
    sampled = sum(row.depth - row.forced_depth for row in rollouts)
    for name, counter, counted in (
        ("nodes", ref.nodes, len(nodes)),
        ("rollouts", ref.rollouts, len(rollouts)),
        ("tokens", ref.tokens, sampled),
    ):
        if counter != counted:
            yield f"the tree says {counter} {name}, there are {counted}"


def _outcome_problems(
    connection: Connection, ref: AnyRow, rollouts: list[AnyRow], active: set[int]
) -> Iterator[str]:
    first, end = id_range(ref.id)
    graded = Counter(
        connection.scalars(
            select(outcome.c.rollout_id)
            .where(outcome.c.rollout_id >= first, outcome.c.rollout_id < end)
            .where(outcome.c.verifier_key.in_(active))
        )
    )
    for row in rollouts:
        if graded[row.id] != len(active):
            yield f"rollout {row.id}: {graded[row.id]} outcomes of {len(active)}"


def _statistics_problems(
    connection: Connection, ref: AnyRow, shape: _Shape, active: set[int]
) -> Iterator[str]:
    first, end = id_range(ref.id)
    stored: dict[int, dict[int, AnyRow]] = {key: {} for key in active}
    for row in connection.execute(
        select(node_stat).where(node_stat.c.node_id >= first, node_stat.c.node_id < end)
    ):
        if row.verifier_key in active:
            stored[row.verifier_key][row.node_id] = row
        else:
            yield f"node {row.node_id}: counts of verifier {row.verifier_key}, which is not active"
    parents = {row.id: row.parent_id for row in shape.nodes.values()}
    for key in sorted(active):
        expected = aggregate(parents, read_graded(connection, ref.id, key))
        for node_id in parents:
            found = stored[key].get(node_id)
            wanted = expected.get(node_id, Stats())
            if not _equal(found, wanted):
                yield f"node {node_id}: counts of verifier {key} are {found}, not {wanted}"


def _equal(found: AnyRow | None, wanted: Stats) -> bool:
    if found is None:
        return wanted.n == 0
    return (
        (found.n, found.truncated, found.forced_n) == (wanted.n, wanted.truncated, wanted.forced_n)
        and math.isclose(found.reward_sum, wanted.reward_sum, abs_tol=_TOLERANCE)
        and math.isclose(found.forced_reward_sum, wanted.forced_reward_sum, abs_tol=_TOLERANCE)
    )
