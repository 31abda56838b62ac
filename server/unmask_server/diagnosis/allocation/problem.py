"""What a planner sees: many nodes at once, their tokens in one flat row of cells.

A *cell* is a candidate token of a node, or the node's tail bucket, which comes last. A cell whose
token leads to another node of the problem has that node as its `child`: what becomes known there is
known here, by V(u) = sum_k P_k s_k (Which rollout counts where, docs/architecture.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Cells:
    """The cells of some nodes in one row, node after node."""

    start: IntArray
    """Shape (N + 1,): node i has the cells start[i] to start[i + 1]."""
    p: FloatArray
    """Shape (C,): the sampling policy's probability, which adds up to 1 in each node."""

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.start) - 1

    @cached_property
    def node(self) -> IntArray:
        """Shape (C,): the node of each cell."""
        return np.repeat(np.arange(self.nodes), np.diff(self.start))

    def of(self, node: int) -> slice:
        """The cells of a node."""
        return slice(self.start[node], self.start[node + 1])

    def sums(self, values: FloatArray) -> FloatArray:
        """Sums over each node's cells: shape (..., C) to (..., N)."""
        result: FloatArray = np.add.reduceat(values, self.start[:-1], axis=-1)
        return result

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value a node to its cells: shape (..., N) to (..., C)."""
        result: NDArray[Any] = values[..., self.node]
        return result

    def through_softmax(self, values: FloatArray) -> FloatArray:
        """P_j (v_j - sum_k P_k v_k) in each node, shape (..., C): of s it is the ideal gradient."""
        result: FloatArray = self.p * (values - self.spread(self.sums(self.p * values)))
        return result


@dataclass(frozen=True)
class Problem(Cells):
    """N nodes with C cells in all, and what is known of them.

    Raises:
        ValueError: shapes differ, a node has no cell, or a child does not come after its parent.

    """

    n: FloatArray
    """Shape (C,): rollouts that count, those under way included."""
    reward_sum: FloatArray
    """Shape (C,): sum of the rewards; of those under way, what is expected of them."""
    known: BoolArray
    """Shape (C,): no rollout can add anything (an end token that was graded)."""
    forceable: BoolArray
    """Shape (C,): a rollout can be forced through it; False for tails."""
    child: IntArray
    """Shape (C,): the node that the token leads to, -1 if it is none of these."""
    steps: FloatArray
    """Shape (A, C): descent steps d, one row for each teacher and algorithm; 0 where undefined."""
    defined: BoolArray
    """Shape (A, N): whether the step is defined and not zero."""
    group: IntArray
    """Shape (A,): teachers under the same algorithm are of one group; RANKING compares them."""
    tokens: FloatArray
    """Shape (C,): tokens that a rollout through the cell samples, as far as can be guessed; > 0."""
    weight: FloatArray
    """Shape (N,): how often the node counts in sets; 0: only for what it tells its parents."""
    leans: IntArray | None = None
    """Shape (A, C): how far the teacher of each step prefers a token, see `tilt.Opinion`; 0 where
    it has no opinion. None: no teacher has one."""

    def __post_init__(self) -> None:
        cells, nodes = len(self.p), len(self.start) - 1
        rows = (self.n, self.reward_sum, self.known, self.forceable, self.child, self.tokens)
        if any(row.shape != (cells,) for row in rows) or self.start[-1] != cells:
            raise ValueError("all rows of cells must have one length")
        if np.any(np.diff(self.start) < 1):
            raise ValueError("every node needs a cell")
        actions = len(self.steps)
        if self.steps.shape != (actions, cells) or self.defined.shape != (actions, nodes):
            raise ValueError("steps are over cells, defined over nodes")
        if self.leans is not None and self.leans.shape != self.steps.shape:
            raise ValueError("leans are of steps")
        if self.group.shape != (actions,) or self.weight.shape != (nodes,):
            raise ValueError("a group a step, a weight a node")
        if np.any((self.child >= 0) & (self.child <= self.node)):
            raise ValueError("children must come after their parents")

    @cached_property
    def parent(self) -> IntArray:
        """Shape (N,): the cell that leads to the node, -1 if none does."""
        found = np.full(self.nodes, -1)
        inner = np.flatnonzero(self.child >= 0)
        found[self.child[inner]] = inner
        return found

    @cached_property
    def bound(self) -> FloatArray:
        """Shape (N,): |g| is at most this, sqrt(2) (1 - max P)."""
        largest = np.maximum.reduceat(self.p, self.start[:-1])
        bound: FloatArray = np.sqrt(2.0) * (1.0 - largest).clip(0.0)
        return bound

    @cached_property
    def tokens_free(self) -> FloatArray:
        """Shape (N,): tokens that a free rollout from the node samples."""
        return self.sums(self.p * (self.tokens + 1.0))
