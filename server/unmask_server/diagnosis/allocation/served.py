"""What would be served: the real posteriors over a problem, where the crude beliefs say enough."""

from __future__ import annotations

import math

import numpy as np

from unmask_server.diagnosis.allocation.beliefs import KAPPA
from unmask_server.diagnosis.allocation.draws import LEAST_P
from unmask_server.diagnosis.allocation.problem import BoolArray, FloatArray, IntArray, Problem
from unmask_server.diagnosis.allocation.simple import SimpleValues
from unmask_server.diagnosis.believed import AnyBelieved
from unmask_server.diagnosis.counts import Counts
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.node import NodePosterior
from unmask_server.diagnosis.tilt import Opinion
from unmask_server.diagnosis.value import Value

DRAWS = 400
"""Posterior draws behind a half width: good to a tenth."""
NEARLY_FLAT = 0.05
"""Where |g| is at most this, a token has 96% or more, and V is nearly its success."""

ALIKE = 0.1
"""Most nodes of the shipped students that are not flat by their bound have tokens more alike than
the prior of what is served thinks, which must be right at all kinds of nodes: |g| was a fifth of
its draws at the lower quartile, a third at the median, three fifths at the upper quartile. A
forecast is about many nodes, and would be too low by half."""
SOME = 16.0
"""Rollouts at a node after which its own data count for half."""


def half_widths(problem: Problem, wanted: BoolArray, *, enough: float = math.inf) -> FloatArray:
    """Half the widths of the cosines' 90% intervals, as they would be served; shape (A, N).

    Args:
        problem: the nodes; rollouts under way count as what is expected of them.
        wanted: shape (A, N): which; the others are 0. Without steps, shape (1, N): of the angle of
            the ideal gradient itself.
        enough: where a half width is larger than this without a teacher's opinion, that is said.

    What nodes that are not asked for say of V is in closed form, in rollouts within a fifth of the
    posterior's for half of the shipped student's nodes.

    """
    found = np.zeros(wanted.shape)
    values: dict[int, Value] = {}
    asked = np.asarray(wanted.any(axis=0))
    needed = _needed(problem, asked)
    simple = SimpleValues(problem)
    below = _children(problem)
    for node in np.flatnonzero(needed)[::-1].tolist():
        if not asked[node]:
            told = {cell: values[child] for cell, child in below[node]}
            values[node] = simple.of(node, told)
            continue
        cells, counts, p = _narrowed(problem, node, values)
        posterior = NodePosterior(counts, p, seed=node, size=DRAWS)
        values[node] = Value.of(posterior)
        for a in np.flatnonzero(wanted[:, node]).tolist():
            step = length = None
            if len(problem.steps):
                step = problem.steps[a, cells]
                length = float(np.linalg.norm(problem.steps[a, problem.of(node)]))
            width = _half_width(posterior.believed, step, length)
            if problem.leans is not None and step is not None and width <= enough:
                opinion = Opinion(problem.leans[a, cells], p)
                width = _half_width(posterior.believed_by(opinion), step, length)
            found[a, node] = width
    return found


def truths(problem: Problem, count: int) -> FloatArray:
    """Chances of success that the data leave possible, shape (count, C), from the posteriors.

    What a token with a child leads to is the child's value in the same draw. Where there are few
    rollouts, tokens are drawn together by a factor of `ALIKE` to 1, see there.
    """
    drawn = np.zeros((count, len(problem.p)))
    rng = np.random.default_rng(0)
    values: dict[int, FloatArray] = {}
    for node in range(problem.nodes - 1, -1, -1):
        cells = problem.of(node)
        counts = _counts(problem, cells, {})
        if problem.bound[node] < NEARLY_FLAT:
            s = _simple_draws(counts, count, rng)
        else:
            posterior = NodePosterior(counts, problem.p[cells], seed=node, size=max(2, count))
            s = posterior.success[:count].copy()
        unknown = SOME / (SOME + float(problem.n[cells].sum()))
        factor = ALIKE ** (unknown * rng.random((count, 1)))
        level = s @ problem.p[cells][:, None]
        s = level + factor * (s - level)
        for cell in np.flatnonzero(problem.child[cells] >= 0).tolist():
            s[:, cell] = values[int(problem.child[cells][cell])]
        values[node] = s @ problem.p[cells]
        drawn[:, cells] = s
    return drawn


def _needed(problem: Problem, wanted: BoolArray) -> BoolArray:
    """The nodes that are asked for, and those below them."""
    needed = wanted.copy()
    for node in range(problem.nodes):
        cell = problem.parent[node]
        if cell >= 0 and needed[problem.node[cell]]:
            needed[node] = True
    return needed


def _children(problem: Problem) -> list[list[tuple[int, int]]]:
    """By node, its cells that lead to another, and to which."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(problem.nodes)]
    for cell in np.flatnonzero(problem.child >= 0).tolist():
        found[problem.node[cell]].append((cell, int(problem.child[cell])))
    return found


def _counts(problem: Problem, cells: slice | IntArray, values: dict[int, Value]) -> Counts:
    n = problem.n[cells].copy()
    rewards = np.minimum(problem.reward_sum[cells], n)
    counts = Counts(n, rewards, problem.known[cells] & (n > 0))
    for cell, child in enumerate(problem.child[cells].tolist()):
        if child in values:
            counts = values[child].told_to(counts, cell)
    return counts


def _narrowed(
    problem: Problem, node: int, values: dict[int, Value]
) -> tuple[IntArray, Counts, FloatArray]:
    """A node's cells that matter, their counts and probabilities; the others are of the tail."""
    mine = problem.of(node)
    kept = (problem.p[mine] >= LEAST_P) | (problem.n[mine] > 0)
    kept[-1] = True
    cells = int(problem.start[node]) + np.flatnonzero(kept)
    p = problem.p[cells]
    p[-1] += problem.p[mine][~kept].sum()
    return cells, _counts(problem, cells, values), p


def _simple_draws(counts: Counts, count: int, rng: np.random.Generator) -> FloatArray:
    """Draws of s where the prior hardly matters, shape (count, cells)."""
    live = ~counts.exact
    n, won = counts.n[live], counts.reward_sum[live]
    level = rng.beta(0.5 + won.sum(), 0.5 + (n - won).sum(), size=(count, 1))
    drawn = np.empty((count, len(live)))
    drawn[:, live] = rng.beta(KAPPA * level + won + 1e-3, KAPPA * (1 - level) + n - won + 1e-3)
    drawn[:, ~live] = np.minimum(counts.reward_sum[~live] / counts.n[~live], 1.0)
    return drawn


def _half_width(believed: AnyBelieved, step: FloatArray | None, length: float | None) -> float:
    norms = np.sqrt(believed.gradient_norm2.clip(1e-300))
    if step is None or length is None:
        step = believed.gradient.mean(axis=0)
        length = float(np.linalg.norm(step))
    cosines = believed.gain(step) / (norms * max(length, 1e-300))
    return Interval.of(cosines.clip(-1.0, 1.0)).width / 2.0
