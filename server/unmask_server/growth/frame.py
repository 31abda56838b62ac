"""The nodes of a growth in one row: laid out once, while only their counts go on changing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.allocation import Problem, believe
from unmask_server.growth.lengths import Lengths
from unmask_server.growth.plan import Item
from unmask_server.growth.work import WorkPath
from unmask_server.nodes.evidence import Evidence

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Place = tuple[int, int]
"""Path and index on it."""
Steps = tuple[FloatArray, BoolArray, NDArray[np.int64]]
"""Descent steps over a node's cells, shape (A, cells), which of them say anything, (A,), and how
far their teachers lean, (A, cells)."""


class Frame:
    """What stays as it is while rollouts come in, and what was counted so far.

    A node that several paths share is that of its first place.
    """

    def __init__(
        self,
        paths: Sequence[WorkPath],
        found: Mapping[Place, Evidence],
        steps: Mapping[Place, Steps],
        lengths: Mapping[int, Lengths],
        group: NDArray[np.int64],
    ) -> None:
        """Lay the nodes out.

        Args:
            paths: those that are free have no part in it.
            found: at every place of the other paths.
            steps: likewise.
            lengths: of generations, by tree.
            group: see `Problem`.

        """
        self._found = dict(found)
        self.places: list[Place] = []
        """Of each node."""
        self._node: dict[Place, int] = {}
        links, weights = self._join(paths)
        self._evidence = [self._found[place] for place in self.places]
        self._cell_of = [_by_token(at) for at in self._evidence]
        sizes = [len(at.known.n) for at in self._evidence]
        self._start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        cells = int(self._start[-1])
        self.tokens = np.full(cells, -1, dtype=np.int64)
        """Shape (C,): the token of each cell; -1 for tails."""
        p, costs, child = np.zeros(cells), np.zeros(cells), np.full(cells, -1, dtype=np.int64)
        self._ends, self._possible = np.zeros(cells, dtype=bool), np.zeros(cells, dtype=bool)
        taken = np.zeros((len(group), cells))
        defined = np.zeros((len(group), len(sizes)), dtype=bool)
        leans = np.zeros((len(group), cells), dtype=np.int64)
        for k, (place, at) in enumerate(zip(self.places, self._evidence, strict=True)):
            mine, path = self._of(k), paths[place[0]]
            self.tokens[mine][:-1] = at.scores.ids
            p[mine] = shares(at)
            self._possible[mine] = at.scores.sampling > 0
            self._ends[mine] = at.ends
            taken[:, mine], defined[:, k], leans[:, mine] = steps[place]
            cost = lengths[path.tree.id].tokens([at.position + 1], len(path.nodes.prompt))
            costs[mine] = cost[0]
        for parent, token, below in links:
            cell = self._cell_of[parent].get(token)
            if cell is not None and below > parent:
                child[self._start[parent] + cell] = below
        # Of these, counts are replaced by every `laid`.
        self._n, self._rewards = np.zeros(cells), np.zeros(cells)
        self._exact = np.zeros(cells, dtype=bool)
        self._empty = Problem(
            start=self._start, p=p, n=self._n, reward_sum=self._rewards, known=self._exact,
            forceable=self.tokens >= 0, child=child, steps=taken, defined=defined, group=group,
            tokens=costs, weight=weights, leans=leans,
        )  # fmt: skip
        for k, at in enumerate(self._evidence):
            self._count(k, at)

    def _join(self, paths: Sequence[WorkPath]) -> tuple[list[tuple[int, int, int]], FloatArray]:
        """Find the nodes. Returns what token of which node leads to which, and the weights."""
        index: dict[object, int] = {}
        weights: list[float] = []
        links = []
        for p, path in enumerate(paths):
            if path.free:
                continue
            positions = path.nodes.positions
            above = -1
            for i, position in enumerate(positions):
                key = path.key(i)
                k = index.setdefault(key, len(self.places))
                if k == len(self.places):
                    self.places.append((p, i))
                    weights.append(0.0)
                weights[k] += 1.0
                self._node[p, i] = k
                if i > 0 and positions[i - 1] == position - 1:
                    links.append((above, path.nodes.tokens[position - 1], k))
                above = k
        return links, np.array(weights)

    def _of(self, node: int) -> slice:
        return slice(int(self._start[node]), int(self._start[node + 1]))

    def take(self, moved: Mapping[Place, Evidence]) -> bool:
        """Count what has happened. False: a node has other candidates now, lay it out anew."""
        for place, at in moved.items():
            k = self._node[place]
            if self.places[k] != place:
                self._found[place] = at
            elif np.array_equal(at.scores.ids, self._evidence[k].scores.ids):
                self._found[place] = self._evidence[k] = at
                self._count(k, at)
            else:
                return False
        return True

    @property
    def found(self) -> Mapping[Place, Evidence]:
        """Evidence at every place."""
        return self._found

    def _count(self, node: int, at: Evidence) -> None:
        mine = self._of(node)
        self._n[mine], self._rewards[mine] = at.counts.n, at.counts.reward_sum
        self._exact[mine] = at.counts.exact

    def laid(self, pending: Counter[Item]) -> tuple[Problem, list[Item]]:
        """The problem with rollouts under way as what is expected of them, and end tokens.

        These, of the latter, were never graded and are not under way.
        """
        n, rewards, known = self._n.copy(), self._rewards.copy(), self._exact | self._ends
        ungraded = self._ends & (n == 0) & self._possible
        # Until it is graded it is as good as anything else.
        n[ungraded], rewards[ungraded] = 1.0, 0.5
        problem = replace(self._empty, n=n, reward_sum=rewards, known=known)
        forced, waiting = self._under_way(pending)
        items: list[Item] = []
        for cell in np.flatnonzero(ungraded).tolist():
            if cell not in waiting and self.tokens[cell] >= 0:
                items.append((*self.places[problem.node[cell]], int(self.tokens[cell])))
        if forced.any():
            expected = believe(problem).mean
            live = np.where(known, 0.0, forced)
            problem = replace(problem, n=n + live, reward_sum=rewards + live * expected)
        return problem, items

    def _under_way(self, pending: Counter[Item]) -> tuple[FloatArray, set[int]]:
        """Rollouts that are expected in each cell, and the cells that some are forced through."""
        coming, waiting = np.zeros(len(self._n)), set()
        for (p, i, token), number in pending.items():
            k = self._node.get((p, i))
            if k is None:
                continue
            mine = self._of(k)
            if token is None:
                coming[mine] += number * self._empty.p[mine]
                continue
            cell = int(mine.start) + self._cell_of[k].get(token, mine.stop - mine.start - 1)
            coming[cell] += number
            waiting.add(cell)
        return coming, waiting


def shares(at: Evidence) -> FloatArray:
    """The sampling policy's probabilities over a node's cells; they add up to 1."""
    result: FloatArray = at.scores.sampling / at.scores.sampling.sum()
    return result


def _by_token(at: Evidence) -> dict[int, int]:
    return {token: cell for cell, token in enumerate(at.scores.ids.tolist())}
