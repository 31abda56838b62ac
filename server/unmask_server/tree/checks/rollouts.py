"""The rollouts of a tree: that the tree spells them, that they are graded, and what they add up to.

Read some at a time, with the nodes above them. Of a node's prefix only the state of its hash is
held, which the nodes below go on from: an edge is hashed once, however many rollouts share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import outcome, rollout
from unmask_server.tree.checks.findings import Finding
from unmask_server.tree.checks.shape import Shape
from unmask_server.tree.fingerprint import DIGEST_BYTES, FINGERPRINT_BYTES
from unmask_server.tree.ids import id_range
from unmask_server.tree.rollouts import edges_above
from unmask_server.tree.types import FINISH_LENGTH

_ROLLOUTS = 500

REGRADE = "the verifier is taken off the tree; naming it again grades what is missing"


@dataclass(frozen=True, slots=True)
class Totals:
    """What a tree's rollouts add up to at each node, all of shape (nodes,)."""

    n: NDArray[np.int64]
    truncated: NDArray[np.int64]
    forced_n: NDArray[np.int64]
    reward_sum: dict[int, NDArray[np.float64]]
    """By verifier."""
    forced_reward_sum: dict[int, NDArray[np.float64]]


class RolloutCheck:
    """Goes through a tree's rollouts once."""

    def __init__(
        self, connection: Connection, tree_id: int, shape: Shape, active: set[int]
    ) -> None:
        self._connection = connection
        self._tree_id = tree_id
        self._shape = shape
        self._active = sorted(active)
        size = len(shape.ids)
        self._sums = Totals(
            n=np.zeros(size, np.int64),
            truncated=np.zeros(size, np.int64),
            forced_n=np.zeros(size, np.int64),
            reward_sum={key: np.zeros(size) for key in active},
            forced_reward_sum={key: np.zeros(size) for key in active},
        )
        self.is_point = np.zeros(size, np.bool_)
        """Whether a rollout starts or ends at a node; shape (nodes,)."""
        self.count = 0
        self.last_id: int | None = None
        self.sampled = 0
        """Tokens."""
        self.broken = False
        """Whether a rollout is not where it says, so that nothing can be counted."""
        self.ungraded: set[int] = set()
        """Verifiers that lack outcomes."""

    def findings(self) -> Iterator[Finding]:
        """Check all of them."""
        first, end = id_range(self._tree_id)
        after = first - 1
        while True:
            wanted = (
                select(rollout)
                .where(rollout.c.id > after, rollout.c.id < end)
                .order_by(rollout.c.id)
                .limit(_ROLLOUTS)
            )
            rows = self._connection.execute(wanted).all()
            if not rows:
                return
            after = self.last_id = rows[-1].id
            self.count += len(rows)
            self.sampled += sum(row.depth - row.forced_depth for row in rows)
            yield from self._check(rows)

    def totals(self) -> Totals:
        """The sums of each node: what ends at it or below, without what starts there."""
        sums = self._sums
        # Those of one depth are never above one another.
        order = np.argsort(-self._shape.depths, kind="stable")
        bounds = np.flatnonzero(np.diff(self._shape.depths[order])) + 1
        for level in np.split(order, bounds):
            above = self._shape.parents[level]
            level, above = level[above >= 0], above[above >= 0]
            for column in (sums.n, sums.truncated, *sums.reward_sum.values()):
                np.add.at(column, above, column[level])
        return sums

    def _check(self, rows: Sequence[AnyRow]) -> Iterator[Finding]:
        paths = _Paths(self._connection, rows[0].id, rows[-1].id)
        places = self._shape.places
        starts = places(np.array([row.start_node_id for row in rows], np.int64))
        ends = places(np.array([row.end_node_id for row in rows], np.int64))
        firsts = np.full(len(rows), -1, np.int64)
        for i, row in enumerate(rows):
            for invariant, problem in self._problems(row, paths, int(starts[i]), int(ends[i])):
                self.broken = True
                yield Finding(invariant, self._tree_id, f"rollout {row.id}", problem)
            if row.forced_depth and not self.broken:
                firsts[i] = paths.first_below(row.start_node_id, row.end_node_id)
        yield from self._outcomes(rows, starts, ends, places(firsts))

    def _problems(
        self, row: AnyRow, paths: _Paths, start: int, end: int
    ) -> Iterator[tuple[str, str]]:
        if start < 0 or end < 0:
            yield "rollout.nodes", "its nodes are not in the tree"
            return
        self.is_point[start] = self.is_point[end] = True
        if paths.digest(row.end_node_id) != row.digest or self._shape.depths[end] != row.depth:
            yield "rollout.tokens", "the tree does not spell its tokens"
            return
        if (
            self._shape.depths[start] != max(row.forced_depth - 1, 0)
            or not 0 <= row.forced_depth <= row.depth
            or not paths.is_above(row.start_node_id, row.end_node_id)
        ):
            yield "rollout.start", "it does not start before its last forced token"

    def _outcomes(
        self,
        rows: Sequence[AnyRow],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        firsts: NDArray[np.int64],
    ) -> Iterator[Finding]:
        ids = np.array([row.id for row in rows], np.int64)
        rewards = {key: np.full(len(rows), np.nan) for key in self._active}
        wanted = select(outcome).where(outcome.c.rollout_id.between(rows[0].id, rows[-1].id))
        for rollout_id, key, reward in self._connection.execute(wanted):
            if not 0.0 <= reward <= 1.0:
                name = f"outcome of rollout {rollout_id} by verifier {key}"
                yield Finding("outcome.range", self._tree_id, name, f"the reward is {reward}")
            place = int(np.searchsorted(ids, rollout_id))
            if key in rewards and place < len(ids) and ids[place] == rollout_id:
                rewards[key][place] = reward
        for key, given in rewards.items():
            for i in np.flatnonzero(np.isnan(given)).tolist():
                self.ungraded.add(key)
                problem = f"no outcome by verifier {key}"
                yield Finding(
                    "outcome.missing", self._tree_id, f"rollout {ids[i]}", problem, REGRADE
                )
        if not self.broken:
            self._add(rows, starts, ends, firsts, rewards)

    def _add(
        self,
        rows: Sequence[AnyRow],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        firsts: NDArray[np.int64],
        rewards: dict[int, NDArray[np.float64]],
    ) -> None:
        sums = self._sums
        truncated = np.array([row.finish == FINISH_LENGTH for row in rows], np.int64)
        forced = np.array([row.forced_depth > 0 for row in rows])
        columns: list[tuple[NDArray[Any], NDArray[Any]]] = [
            (sums.n, np.ones(len(rows), np.int64)),
            (sums.truncated, truncated),
            *((sums.reward_sum[key], given) for key, given in rewards.items()),
        ]
        for column, values in columns:
            np.add.at(column, ends, values)
            np.subtract.at(column, starts[forced], values[forced])
        np.add.at(sums.forced_n, firsts[forced], 1)
        for key, given in rewards.items():
            np.add.at(sums.forced_reward_sum[key], firsts[forced], given[forced])


class _Paths:
    """The nodes above some rollouts."""

    def __init__(self, connection: Connection, first_rollout: int, last_rollout: int) -> None:
        span = {"first": first_rollout, "last": last_rollout}
        self._edges: dict[int, tuple[int | None, bytes]] = {
            row.id: (row.parent_id, row.edge) for row in connection.execute(edges_above, span)
        }
        self._hashes: dict[int | None, blake2b] = {None: blake2b(digest_size=FINGERPRINT_BYTES)}

    def digest(self, node_id: int) -> bytes | None:
        """Of the tokens from the root to a node; None if the way up has no end."""
        below: list[int] = []
        at: int | None = node_id
        while at not in self._hashes:
            if at is None or at not in self._edges or len(below) > len(self._edges):
                return None
            below.append(at)
            at = self._edges[at][0]
        state = self._hashes[at]
        for passed in reversed(below):
            state = state.copy()
            state.update(self._edges[passed][1])
            self._hashes[passed] = state
        return state.digest()[:DIGEST_BYTES]

    def is_above(self, node_id: int, other_id: int) -> bool:
        """Whether a node is another one or above it."""
        return node_id == other_id or self.first_below(node_id, other_id) >= 0

    def first_below(self, node_id: int, other_id: int) -> int:
        """The child of a node that leads to another one; -1 if none does."""
        at: int | None = other_id
        for _ in range(len(self._edges) + 1):
            if at is None or at not in self._edges:
                return -1
            parent_id = self._edges[at][0]
            if parent_id == node_id:
                return at
            at = parent_id
        return -1
