"""From the paths of a growth to the planner's problem, and from its cells back to rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis import Algorithm, Form, Loss, Support
from unmask_server.diagnosis.allocation import Problem, Spending, believe
from unmask_server.diagnosis.step import StepInputs, certain_step
from unmask_server.growth.lengths import Lengths
from unmask_server.growth.plan import Item, Plan
from unmask_server.growth.spec import GrowthSpec
from unmask_server.growth.work import WorkPath
from unmask_server.nodes.evidence import Evidence, Scores, evidence
from unmask_server.tree import NodeCounts, TreeView

FloatArray = NDArray[np.float64]
Seen = tuple[int, float, bytes, bytes]
Steps = tuple[FloatArray, NDArray[np.bool_]]
"""Descent steps over a node's cells, shape (A, cells), and which of them say anything, (A,)."""


@dataclass(frozen=True)
class Laid:
    """A problem, and what its nodes and cells stand for."""

    problem: Problem
    places: Sequence[tuple[int, int]]
    """Path and index of each node."""
    tokens: NDArray[np.int64]
    """Shape (C,): the token of each cell; -1 for tails."""
    ungraded: Sequence[Item]
    """Tokens that end a generation and were never graded: one rollout each, which costs nothing."""

    def plan(self, spending: Spending) -> Plan:
        """A spending as rollouts."""
        plan = Plan()
        node = self.problem.node
        for i in np.flatnonzero(spending.free).tolist():
            plan.items.append((*self.places[i], None, int(spending.free[i])))
        for cell in np.flatnonzero(spending.forced).tolist():
            place = self.places[node[cell]]
            plan.items.append((*place, int(self.tokens[cell]), int(spending.forced[cell])))
        # Rollouts of one node together: they share a prefix.
        plan.items.sort(key=lambda item: item[:2])
        return plan


class Layout:
    """Lays the nodes of a growth's paths out for the planner, again and again as they grow."""

    def __init__(
        self, spec: GrowthSpec, paths: Sequence[WorkPath], lengths: Mapping[int, Sequence[int]]
    ) -> None:
        self._paths = paths
        self._lengths = {
            path.tree.id: Lengths(lengths[path.tree.id], path.nodes.policy.max_new_tokens)
            for path in paths
        }
        informative = [a for a in spec.algorithms if _has_direction(a)]
        teachers = range(len(spec.teacher_ids))
        self._actions: list[tuple[int | None, Algorithm]] = [
            (teacher, a) for a in informative if a.needs_teacher for teacher in teachers
        ]
        self._actions += [(None, a) for a in informative if not a.needs_teacher]
        self._group = np.array([informative.index(a) for _, a in self._actions], dtype=np.int64)
        self._steps: dict[tuple[int, int], tuple[bytes, Steps]] = {}
        self._kept: dict[int, tuple[list[Seen], list[Evidence]]] = {}

    def lay(self, views: Sequence[TreeView], pending: Counter[Item]) -> Laid:
        """The problem as the views and the rollouts under way have it."""
        nodes = _Nodes(len(self._actions))
        for p, (path, view) in enumerate(zip(self._paths, views, strict=True)):
            if path.free:
                continue
            above: int | None = None
            for i, at in enumerate(self._evidence(p, path, view)):
                follows = i > 0 and path.nodes.positions[i - 1] == at.position - 1
                place = nodes.find(path.key(i))
                if place is None:
                    place = nodes.add(path.key(i), (p, i), at, self._costs(path, at))
                    nodes.steps.append(self._steps_at(p, i, path, at))
                else:
                    nodes.weights[place] += 1.0
                if follows and above is not None:
                    nodes.link(above, path.nodes.tokens[at.position - 1], place)
                above = place
        return nodes.laid(self._group, _by_place(self._paths, pending))

    def _evidence(self, p: int, path: WorkPath, view: TreeView) -> list[Evidence]:
        """Evidence at the nodes of a path; that of nodes where nothing happened is kept."""
        seen = [_seen(counts) for counts in view.nodes]
        kept = self._kept.get(p)
        if kept is None:
            found = evidence(path.nodes, path.scores, view)
        else:
            found = list(kept[1])
            moved = [i for i, mark in enumerate(seen) if mark != kept[0][i]]
            for i in moved:
                nodes = replace(
                    path.nodes,
                    positions=(path.nodes.positions[i],),
                    observed=(path.nodes.observed[i],),
                )
                one = TreeView(view.version, [view.nodes[i]])
                found[i] = evidence(nodes, [path.scores[i]], one)[0]
        self._kept[p] = seen, found
        return found

    def _costs(self, path: WorkPath, at: Evidence) -> FloatArray:
        depth = np.full(len(at.known.n), at.position + 1)
        return self._lengths[path.tree.id].tokens(depth, len(path.nodes.prompt))

    def _steps_at(self, p: int, i: int, path: WorkPath, at: Evidence) -> Steps:
        ids = at.scores.ids.tobytes()
        kept = self._steps.get((p, i))
        if kept is None or kept[0] != ids:
            found = [_step(a, teacher, at.scores, at) for teacher, a in self._actions]
            steps = np.array([d for d, _ in found]).reshape(len(found), len(at.known.n))
            kept = ids, (steps, np.array([is_one for _, is_one in found], dtype=bool))
            self._steps[p, i] = kept
        return kept[1]


class _Nodes:
    """A problem as it is put together, node by node."""

    def __init__(self, actions: int) -> None:
        self._actions = actions
        self._index: dict[object, int] = {}
        self._found: list[Evidence] = []
        self._children: list[dict[int, int]] = []
        self._costs: list[FloatArray] = []
        self.steps: list[Steps] = []
        self.weights: list[float] = []
        self.places: list[tuple[int, int]] = []

    def find(self, key: object) -> int | None:
        return self._index.get(key)

    def add(self, key: object, place: tuple[int, int], at: Evidence, costs: FloatArray) -> int:
        self._index[key] = len(self.places)
        self.places.append(place)
        self._found.append(at)
        self._children.append({})
        self._costs.append(costs)
        self.weights.append(1.0)
        return len(self.places) - 1

    def link(self, parent: int, token: int, child: int) -> None:
        """Say that the parent's token leads to the child, which comes later."""
        cell = Support(self._found[parent].scores.ids).index(token)
        if cell < len(self._found[parent].scores.ids) and child > parent:
            self._children[parent][cell] = child

    def laid(
        self, group: NDArray[np.int64], pending: Mapping[tuple[int, int], Counter[int | None]]
    ) -> Laid:
        sizes = [len(at.known.n) for at in self._found]
        start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        cells = int(start[-1])
        p, n, rewards, tokens = np.zeros(cells), np.zeros(cells), np.zeros(cells), np.zeros(cells)
        names = np.full(cells, -1, dtype=np.int64)
        known, child = np.zeros(cells, dtype=bool), np.full(cells, -1, dtype=np.int64)
        forced, ungraded = np.zeros(cells), []
        steps = np.zeros((self._actions, cells))
        defined = np.zeros((self._actions, len(sizes)), dtype=bool)
        for k, at in enumerate(self._found):
            mine = slice(start[k], start[k + 1])
            sampling = at.scores.sampling
            p[mine] = sampling / sampling.sum()
            n[mine], rewards[mine] = at.counts.n, at.counts.reward_sum
            names[start[k] : start[k + 1] - 1] = at.scores.ids
            steps[:, mine], defined[:, k] = self.steps[k]
            tokens[mine] = self._costs[k]
            known[mine] = at.counts.exact | at.ends
            for cell, below in self._children[k].items():
                child[start[k] + cell] = below
            waiting = pending.get(self.places[k], Counter())
            for token, number in waiting.items():
                if token is None:
                    forced[mine] += number * p[mine]
                else:
                    forced[start[k] + Support(at.scores.ids).index(token)] += number
            for j in np.flatnonzero(at.ends & (at.counts.n == 0) & (sampling > 0)).tolist():
                if waiting[int(at.scores.ids[j])] == 0:
                    ungraded.append((*self.places[k], int(at.scores.ids[j])))
                # Until it is graded it is as good as anything else.
                n[start[k] + j], rewards[start[k] + j] = 1.0, 0.5
        forceable = names >= 0
        problem = Problem(
            start=start, p=p, n=n, reward_sum=rewards, known=known, forceable=forceable,
            child=child, steps=steps, defined=defined, group=group, tokens=tokens,
            weight=np.array(self.weights),
        )  # fmt: skip
        if forced.any():
            expected = believe(problem).mean
            live = np.where(known, 0.0, forced)
            problem = replace(problem, n=n + live, reward_sum=rewards + live * expected)
        return Laid(problem, self.places, names, ungraded)


def _seen(counts: NodeCounts) -> Seen:
    """Equal if nothing has happened at a node."""
    children = counts.children
    return counts.n, counts.reward_sum, children.n.tobytes(), children.reward_sum.tobytes()


def _has_direction(algorithm: Algorithm) -> bool:
    """Whether a step says something that g does not: the expected policy gradient is g itself."""
    return algorithm.needs_teacher or algorithm.form is Form.SAMPLED


def _step(
    algorithm: Algorithm, teacher: int | None, scores: Scores, at: Evidence
) -> tuple[FloatArray, bool]:
    """A step, and whether there is one."""
    algorithm = _planned(algorithm)
    p = scores.student[algorithm.temperature]
    observed = None
    if algorithm.form is Form.SAMPLED:
        if at.observed is None:
            return np.zeros(len(p)), False
        observed = Support(scores.ids).index(at.observed)
    if teacher is None:
        # The sampled policy gradient: up to its sign and size, which no cosine depends on.
        d = -p
        d[observed] += 1.0
        return d, True
    if not scores.teachers[teacher]:
        return np.zeros(len(p)), False
    t = scores.teachers[teacher][algorithm.temperature]
    found = certain_step(algorithm, StepInputs(p, t, observed, noise=scores.noise[teacher]))
    if found.base is None or found.is_noise:
        return np.zeros(len(p)), False
    return found.base, True


def _planned(algorithm: Algorithm) -> Algorithm:
    """The algorithm by which rollouts are spent, where all of its step is not known beforehand.

    Of a loss of whole sequences that is the reverse KL of its own token; a reward's part is the
    ideal gradient, about which there is nothing to find out.
    """
    if algorithm.is_sequential:
        return Algorithm(Loss.REVERSE_KL)
    return replace(algorithm, reward_weight=0.0)


def _by_place(
    paths: Sequence[WorkPath], pending: Counter[Item]
) -> dict[tuple[int, int], Counter[int | None]]:
    """What is under way, by the place under which the node is laid out: that of its first path."""
    first: dict[object, tuple[int, int]] = {}
    for p, path in enumerate(paths):
        if not path.free:
            for i in range(len(path.nodes.positions)):
                first.setdefault(path.key(i), (p, i))
    found: dict[tuple[int, int], Counter[int | None]] = {}
    for (p, i, token), number in pending.items():
        if not paths[p].free:
            found.setdefault(first[paths[p].key(i)], Counter())[token] += number
    return found
