"""From the paths of a growth to the planner's problem, and from its cells back to rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis import Algorithm, Form, Loss, Support, flat_bound
from unmask_server.diagnosis.allocation import FLAT_NORM, Problem, Spending, Statistic
from unmask_server.diagnosis.step import StepInputs, certain_step
from unmask_server.diagnosis.tilt import Opinion
from unmask_server.growth.frame import Frame, Place, Steps, shares
from unmask_server.growth.lengths import Lengths
from unmask_server.growth.plan import Item, Plan
from unmask_server.growth.spec import GrowthSpec
from unmask_server.growth.work import WorkPath
from unmask_server.nodes.evidence import Evidence, Scores, evidence
from unmask_server.tree import NodeCounts, SeenLengths, TreeView

FloatArray = NDArray[np.float64]
Seen = tuple[int, float, bytes, bytes]

OF_OPEN_NODES = (Statistic.COSINE, Statistic.MEAN_COSINE)
"""Statistics that leave out nodes which are flat."""


@dataclass(frozen=True)
class Laid:
    """A problem, and what its nodes and cells stand for."""

    problem: Problem
    places: Sequence[Place]
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
        self, spec: GrowthSpec, paths: Sequence[WorkPath], lengths: Mapping[int, SeenLengths]
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
        # Statistics of single nodes do not need the steps of those that are flat by their bound.
        objective = spec.objective
        of_open = objective is None or objective.statistic in OF_OPEN_NODES
        self._flat_norm = (objective.flat_norm if objective else FLAT_NORM) if of_open else 0.0
        self._seen: dict[Place, Seen] = {}
        self._steps: dict[Place, tuple[bytes, Steps]] = {}
        self._frame: Frame | None = None

    def lay(self, views: Sequence[TreeView], pending: Counter[Item]) -> Laid:
        """The problem as the views and the rollouts under way have it."""
        moved = self._moved(views)
        frame = self._frame
        if frame is None or not frame.take(moved):
            found = {**(frame.found if frame else {}), **moved}
            steps = {place: self._steps_at(place, at) for place, at in found.items()}
            frame = Frame(self._paths, found, steps, self._lengths, self._group)
            self._frame = frame
        problem, ungraded = frame.laid(pending)
        return Laid(problem, frame.places, frame.tokens, ungraded)

    def _moved(self, views: Sequence[TreeView]) -> dict[Place, Evidence]:
        """Evidence at the nodes where something has happened since they were last looked at."""
        found: dict[Place, Evidence] = {}
        for p, (path, view) in enumerate(zip(self._paths, views, strict=True)):
            if path.free:
                continue
            nodes = path.nodes
            for i, counts in enumerate(view.nodes):
                seen = _seen(counts)
                if self._seen.get((p, i)) == seen:
                    continue
                self._seen[p, i] = seen
                here = replace(
                    nodes, positions=(nodes.positions[i],), observed=(nodes.observed[i],)
                )
                one = TreeView(view.version, [counts])
                found[p, i] = evidence(here, [path.scores[i]], one)[0]
        return found

    def _steps_at(self, place: Place, at: Evidence) -> Steps:
        ids = at.scores.ids.tobytes()
        kept = self._steps.get(place)
        if kept is None or kept[0] != ids:
            kept = self._steps[place] = ids, self._steps_of(at)
        return kept[1]

    def _steps_of(self, at: Evidence) -> Steps:
        steps = np.zeros((len(self._actions), len(at.known.n)))
        defined = np.zeros(len(self._actions), dtype=bool)
        leans = np.zeros(steps.shape, dtype=np.int64)
        if flat_bound(shares(at)) >= self._flat_norm:
            for a, (teacher, algorithm) in enumerate(self._actions):
                steps[a], defined[a] = _step(algorithm, teacher, at.scores, at)
                if teacher is not None and defined[a]:
                    leans[a] = _lean(algorithm, teacher, at.scores)
        return steps, defined, leans


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


def _lean(algorithm: Algorithm, teacher: int, scores: Scores) -> NDArray[np.int64]:
    """How far a teacher that is known here prefers each token."""
    temperature = algorithm.temperature
    opinion = Opinion.of(scores.student[temperature], scores.teachers[teacher][temperature])
    return np.zeros(len(scores.sampling), np.int64) if opinion is None else opinion.lean


def _planned(algorithm: Algorithm) -> Algorithm:
    """The algorithm by which rollouts are spent, where all of its step is not known beforehand.

    Of a loss of whole sequences that is the reverse KL of its own token; a reward's part is the
    ideal gradient, about which there is nothing to find out.
    """
    if algorithm.is_sequential:
        return Algorithm(Loss.REVERSE_KL)
    return replace(algorithm, reward_weight=0.0)
