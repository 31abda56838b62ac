"""What the nodes' cosines may be, by draws from the beliefs, and how they turn with each s."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from unmask_server.diagnosis.allocation.beliefs import Beliefs
from unmask_server.diagnosis.allocation.problem import BoolArray, Cells, FloatArray, Problem
from unmask_server.diagnosis.intervals import LEVEL

DRAWS = 64
"""Enough to know a variance to a fifth; derivatives are averaged over them, because a cosine bends
where g is hardly known."""
LEAST_P = 5e-4
"""Tokens that are unlikelier move no gradient enough to be worth a rollout or a draw."""
Z90 = NormalDist().inv_cdf((1.0 + LEVEL) / 2.0)
"""Half of an interval, in standard deviations: 1.645."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Of every node; zero where it is flat by its bound."""

    slopes2: FloatArray
    """Shape (A, C), or (1, C) without steps: mean squares of d cos / d s."""
    variance: FloatArray
    """Shape (A, N), or (1, N): of the cosines drawn."""
    flat: BoolArray
    """Shape (N,): |g| is certainly small."""


def draw(problem: Problem, beliefs: Beliefs, flat_norm: float) -> Drawn:
    """Draws at the nodes that are not flat by their bound.

    Args:
        problem: the nodes; without steps the direction of g itself stands for a cosine.
        beliefs: of them.
        flat_norm: a node is flat when |g| is below this with 95% certainty.

    """
    actions = max(1, len(problem.steps))
    slopes2 = np.zeros((actions, len(problem.p)))
    variance = np.zeros((actions, problem.nodes))
    flat = problem.bound < flat_norm
    live = np.flatnonzero(~flat)
    if not len(live):
        return Drawn(slopes2, variance, flat)
    part = _Part.taken(problem, ~flat)
    mean, spread = beliefs.mean[part.cells], np.sqrt(beliefs.variance[part.cells])
    together = beliefs.shared[part.cells] * part.spread(_normals(len(live)))
    s = (mean + spread * _normals(len(mean)) + together).clip(0.0, 1.0)
    g = part.through_softmax(s)
    norm2 = part.sums(g * g)
    norms = np.sqrt(norm2)
    sure = norms.mean(axis=0) + Z90 * norms.std(axis=0) < flat_norm
    large = np.logical_or.reduceat(_alone(problem, beliefs) > flat_norm, problem.start[:-1])
    flat[live] = sure & ~large[live]
    # One norm for all draws: where a draw of g is by chance near zero its own would run away.
    typical = np.sqrt(norm2.mean(axis=0).clip(1e-18))
    unit = g / part.spread(norms.clip(1e-9))
    if not len(problem.steps):
        slopes2[0, part.cells], variance[0, live] = _direction(part, unit, typical)
        return Drawn(slopes2, variance, flat)
    lengths = np.sqrt(problem.sums(problem.steps**2)[:, live].clip(1e-300))
    for a, step in enumerate(problem.steps[:, part.cells]):
        d = step / part.spread(lengths[a])
        cosine = part.sums(unit * d)
        q = (d - part.spread(cosine) * unit) / part.spread(typical)
        slope = part.through_softmax(q)
        mine = problem.defined[a, live]
        squares = np.einsum("kc,kc->c", slope, slope) / DRAWS
        slopes2[a, part.cells] = np.where(part.spread(mine), squares, 0.0)
        seen = np.maximum(cosine.var(axis=0), _flips(norms * cosine, cosine))
        variance[a, live] = np.where(mine, seen, 0.0)
    return Drawn(slopes2, variance, flat)


def _flips(gain: FloatArray, cosine: FloatArray) -> FloatArray:
    """What a sign that may still change adds to a cosine's variance, shape (N,).

    Few draws do not show what happens once in a hundred, but a cosine near 1 that is -1 once in a
    hundred is off by 0.2. Draws of the gain, shape (DRAWS, N), are nearly normal, so their mean and
    deviation tell how likely the other sign is (normal tail by a logistic in z and z^3).
    """
    z = np.abs(gain.mean(axis=0)) / gain.std(axis=0).clip(1e-12)
    other = 1.0 / (1.0 + np.exp((1.5976 * z + 0.070566 * z**3).clip(max=700.0)))
    result: FloatArray = 4.0 * other * (1.0 - other) * (cosine**2).mean(axis=0)
    return result


def _alone(problem: Problem, beliefs: Beliefs) -> FloatArray:
    """How large each token alone could make |g| if nothing were concluded from the others.

    That its neighbours fail says little about a token that was never tried: at 95%, by its own
    rollouts and Beta(1/2, 1/2), P_j |s_j - V|. Shape (C,).
    """
    own = (problem.reward_sum + 0.5) / (problem.n + 1.0)
    spread = Z90 * np.sqrt(own * (1.0 - own).clip(0.0) / (problem.n + 2.0))
    level = problem.spread(beliefs.value)
    least = np.where(beliefs.inner | problem.known, beliefs.mean, own - spread)
    most = np.where(beliefs.inner | problem.known, beliefs.mean, own + spread)
    off = np.maximum(most.clip(0.0, 1.0) - level, level - least.clip(0.0, 1.0))
    result: FloatArray = problem.p * (1.0 - problem.p) * off
    return result


@lru_cache(maxsize=4)
def _normals(size: int) -> FloatArray:
    """Shape (DRAWS, size); the same for the same size."""
    return np.random.default_rng(0).standard_normal((DRAWS, size))


@dataclass(frozen=True)
class _Part(Cells):
    """Some of a problem's nodes, without their unlikeliest cells."""

    cells: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    """Shape (C,): which of the problem's they are."""

    @staticmethod
    def taken(problem: Problem, chosen: BoolArray) -> _Part:
        kept = chosen[problem.node] & (problem.p >= LEAST_P)
        cells = np.flatnonzero(kept)
        sizes = problem.sums(kept.astype(np.float64))[chosen].astype(np.int64)
        return _Part(np.concatenate([[0], np.cumsum(sizes)]), problem.p[cells], cells)


def _direction(part: _Part, unit: FloatArray, typical: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How far g itself turns, as if it were a cosine.

    Mean squares of |d g / d s_j| / |g|, over cells, and the variances of the draws' direction about
    their mean, over nodes.
    """
    p = part.p
    moved = p**2 * (1.0 - 2.0 * p + part.spread(part.sums(p * p)))
    about = unit - unit.mean(axis=0)
    turned = part.sums(np.einsum("kc,kc->c", about, about) / len(unit))
    return moved / part.spread(typical) ** 2, turned
