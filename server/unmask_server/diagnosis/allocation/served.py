"""What would be served: the real posteriors over a problem, where the crude beliefs say enough."""

from __future__ import annotations

import numpy as np

from unmask_server.diagnosis.allocation.problem import BoolArray, FloatArray, Problem
from unmask_server.diagnosis.counts import Counts
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.node import NodePosterior
from unmask_server.diagnosis.value import VALUE_DRAWS, Value

DRAWS = 400
"""Posterior draws behind a half width: good to a tenth."""

ALIKE = 0.1
"""Most nodes of the shipped students that are not flat by their bound have tokens more alike than
the prior of what is served thinks, which must be right at all kinds of nodes: |g| was a fifth of
its draws at the lower quartile, a third at the median, three fifths at the upper quartile. A
forecast is about many nodes, and would be too low by half."""
SOME = 16.0
"""Rollouts at a node after which its own data count for half."""


def half_widths(problem: Problem, wanted: BoolArray) -> FloatArray:
    """Half the widths of the cosines' 90% intervals, as they would be served; shape (A, N).

    Args:
        problem: without rollouts under way.
        wanted: shape (A, N): which; the others are 0. Without steps, shape (1, N): of the angle of
            the ideal gradient itself.

    """
    found = np.zeros(wanted.shape)
    values: dict[int, Value] = {}
    needed = _needed(problem, np.asarray(wanted.any(axis=0)))
    for node in range(problem.nodes - 1, -1, -1):
        if not needed[node]:
            continue
        cells = problem.of(node)
        counts = _counts(problem, cells, values)
        mine = bool(wanted[:, node].any())
        posterior = NodePosterior(
            counts, problem.p[cells], seed=node, size=DRAWS if mine else VALUE_DRAWS
        )
        values[node] = Value.of(posterior)
        if mine:
            for a in np.flatnonzero(wanted[:, node]).tolist():
                step = problem.steps[a, cells] if len(problem.steps) else None
                found[a, node] = _half_width(posterior, step)
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
        posterior = NodePosterior(
            _counts(problem, cells, {}), problem.p[cells], seed=node, size=max(2, count)
        )
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


def _counts(problem: Problem, cells: slice, values: dict[int, Value]) -> Counts:
    n = problem.n[cells].copy()
    rewards = np.minimum(problem.reward_sum[cells], n)
    counts = Counts(n, rewards, problem.known[cells] & (n > 0))
    for cell, child in enumerate(problem.child[cells].tolist()):
        if child in values:
            counts = values[child].told_to(counts, cell)
    return counts


def _half_width(posterior: NodePosterior, step: FloatArray | None) -> float:
    g = posterior.gradient
    norms = np.sqrt(posterior.gradient_norm2.clip(1e-300))
    if step is None:
        step = g.mean(axis=0)
    cosines = g @ step / (norms * max(float(np.linalg.norm(step)), 1e-300))
    return Interval.of(cosines.clip(-1.0, 1.0)).width / 2.0
