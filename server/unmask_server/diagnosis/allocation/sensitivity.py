"""How much each cell's uncertainty matters for what is asked: derivatives of the statistics.

Delta method: Var[theta] is about the sum over cells of (d theta / d s)^2 Var[s]. For a node,
g = P (s - P.s), so with q = d theta / d g: d theta / d s_j = P_j (q_j - P.q). Through a child's
value V = sum_k P_k s_k derivatives go on to the child's cells by the chain rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from unmask_server.diagnosis.allocation.beliefs import Beliefs
from unmask_server.diagnosis.allocation.draws import Z90, draw
from unmask_server.diagnosis.allocation.objectives import Objective, Statistic
from unmask_server.diagnosis.allocation.problem import BoolArray, FloatArray, Problem

MOST_BEND = 100.0
"""What is drawn may be so many times the variance that slopes explain."""


LOOKS = 1.38
"""A lead is looked at after every batch, and would sooner or later look established by chance: ten
looks need so many times the distance of one (Pocock 1977, at 95%)."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What the cells' variances add to the variances asked for."""

    weight: FloatArray
    """Shape (C,): sum over the open statistics of (d theta / d s)^2, over what is wanted of each;
    0 where nothing depends on the cell, or where it is known from its child's."""
    variance: FloatArray
    """Variances as they are believed now. For statistics of nodes, shape (A, N); else one for each
    teacher and algorithm, shape (A,), or for RANKING one for each pair that is not told apart."""
    settled: BoolArray
    """Shape like `variance`: precise enough, or certainly flat."""
    flat: BoolArray
    """Shape (N,): certainly flat."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to learn."""
        return bool(self.settled.all())


def sensitivity(
    problem: Problem,
    beliefs: Beliefs,
    objective: Objective,
    tightened: FloatArray | float = 1.0,
) -> Sensitivity:
    """Where uncertainty matters for `objective`.

    Args:
        problem: the nodes. Without steps, COSINE is about the direction of g itself; the other
            statistics need at least one.
        beliefs: of it.
        objective: what is asked.
        tightened: for statistics of nodes: by how much less variance than the objective says is to
            be reached, in (0, 1], shape (A, N) or a number.

    """
    if objective.statistic.is_of_nodes:
        return _of_nodes(problem, beliefs, objective, tightened)
    return _of_sets(problem, beliefs, objective)


def _of_nodes(
    problem: Problem, beliefs: Beliefs, objective: Objective, tightened: FloatArray | float
) -> Sensitivity:
    drawn = draw(problem, beliefs, objective.flat_norm)
    straight = problem.sums(drawn.slopes2 * beliefs.variance)
    variance = np.maximum(np.minimum(straight, 1.0), drawn.variance)
    # Where the sign is open a cosine jumps from -1 to 1, and its slopes say too little.
    bends = (variance / straight.clip(1e-12)).clip(1.0, MOST_BEND)
    slopes2 = drawn.slopes2 * problem.spread(bends)
    wanted = np.broadcast_to((objective.half_width / Z90) ** 2 * tightened, variance.shape)
    defined = problem.defined if len(problem.steps) else np.ones(variance.shape, dtype=bool)
    settled = (variance <= wanted) | drawn.flat | ~defined | (problem.weight <= 0)
    share = np.where(settled, 0.0, 1.0 / wanted)
    total = (problem.spread(share) * slopes2).sum(axis=0)
    # What the parents want to know of a node's value, they want of its cells.
    for cell, below in _inner(problem, beliefs):
        total[below] += total[cell] * problem.p[below] ** 2
    weight = np.where(beliefs.inner | problem.known, 0.0, total)
    return Sensitivity(weight, variance, settled, drawn.flat)


def _of_sets(problem: Problem, beliefs: Beliefs, objective: Objective) -> Sensitivity:
    drawn = draw(problem, beliefs, objective.flat_norm)
    flat = drawn.flat
    slopes, theta = _set_slopes(problem, beliefs, objective.statistic, flat, drawn.slopes2)
    known = beliefs.inner | problem.known
    total = np.where(known, 0.0, _through_children(problem, beliefs, slopes))
    wanted = np.full(len(total), (objective.half_width / Z90) ** 2)
    if objective.statistic is Statistic.RANKING:
        total, lead = _differences(problem, total, theta)
        variance = total**2 @ beliefs.variance
        z = _z(objective.confidence, len(total))
        # A lead is established, or known to be too small to matter.
        wanted = np.maximum((lead / z) ** 2, (objective.half_width / Z90) ** 2)
    else:
        variance = total**2 @ beliefs.variance
    settled = variance <= wanted
    weight = np.where(settled, 0.0, 1.0 / wanted) @ total**2
    return Sensitivity(weight, variance, settled, flat)


def _differences(
    problem: Problem, slopes: FloatArray, theta: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The leader of each group less each of the others: slopes, shape (pairs, C), and leads."""
    rows, leads = [np.zeros((0, slopes.shape[1]))], [np.zeros(0)]
    for group in np.unique(problem.group):
        members = np.flatnonzero(problem.group == group)
        first = members[np.argmax(theta[members])]
        others = members[members != first]
        rows.append(slopes[first] - slopes[others])
        leads.append(theta[first] - theta[others])
    return np.concatenate(rows), np.concatenate(leads)


def _z(confidence: float, pairs: int) -> float:
    """Standard deviations of each lead so that all of them hold together (Bonferroni)."""
    return LOOKS * NormalDist().inv_cdf(1.0 - (1.0 - confidence) / max(1, pairs))


def _set_slopes(
    problem: Problem,
    beliefs: Beliefs,
    statistic: Statistic,
    flat: BoolArray,
    slopes2: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """d theta / d s without children, shape (A, C), and theta, shape (A,)."""
    p, weight = problem.p, problem.weight
    g = problem.through_softmax(beliefs.mean)
    if statistic is Statistic.MEAN_COSINE:
        counted = problem.defined & ~flat & (weight > 0)
        share = np.where(counted, weight, 0.0)
        share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
        # The sign is that of the derivative at the mean; its size the draws' mean square.
        size = np.sqrt(slopes2)
        return problem.spread(share) * size * _signs(problem, g), np.zeros(len(share))
    d = problem.steps
    d_norm2 = problem.sums(d * d) @ weight
    unit = 1.0 / np.sqrt(d_norm2.clip(1e-300))
    dp = problem.through_softmax(d)
    gain = problem.sums(g * d) @ weight
    w = problem.spread(weight)
    if statistic is not Statistic.POOLED_COSINE:
        return unit[:, None] * w * dp, unit * gain
    noise = problem.sums(p**2 * (1 - p) ** 2 * beliefs.variance)
    g_norm2 = max(float((problem.sums(g * g) + noise) @ weight), 1e-18)
    gp = problem.through_softmax(g)
    pull = (gain / g_norm2)[:, None] * gp
    return w * (unit[:, None] * (dp - pull)) / np.sqrt(g_norm2), unit * gain / np.sqrt(g_norm2)


def _signs(problem: Problem, g: FloatArray) -> FloatArray:
    """Signs of d cos / d s at the mean, shape (A, C)."""
    norm = problem.spread(np.sqrt(problem.sums(g * g).clip(1e-18)))
    unit = g / norm
    d = problem.steps
    d = d / problem.spread(np.sqrt(problem.sums(d * d).clip(1e-300)))
    q = d - problem.spread(problem.sums(unit * d)) * unit
    result: FloatArray = np.sign(q - problem.spread(problem.sums(problem.p * q)))
    return result


def _through_children(problem: Problem, beliefs: Beliefs, slopes: FloatArray) -> FloatArray:
    """Total derivatives: a child's cells carry what their parents' cell was asked, times P."""
    total = slopes.copy()
    for cell, below in _inner(problem, beliefs):
        total[:, below] += total[:, cell, None] * problem.p[below]
    return total


def _inner(problem: Problem, beliefs: Beliefs) -> Iterator[tuple[int, slice]]:
    """The cells that are known from a child, and that child's cells; parents first."""
    for node, cell in enumerate(problem.parent.tolist()):
        if cell >= 0 and beliefs.inner[cell]:
            yield cell, problem.of(node)
