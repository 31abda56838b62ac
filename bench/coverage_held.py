"""Whether 90% intervals hold the truth, node by node, and how sure their share is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from unmask_server.diagnosis import Counts, NodePosterior, SuccessPosterior, ideal_gradient
from unmask_server.diagnosis.intervals import LEVEL

from bench.coverage_nodes import FloatArray, Node

QUANTITIES = ("success", "gradient", "cosine", "gain", "advantage", "value")
"""Success after each token and each component of g (a node's share of its candidates); the cosine
of g and the step of reverse KL; the gain g.d; the teacher's advantage; success of the node."""

_ROUNDING = 1e-9
_RESAMPLES = 1000


def held(node: Node, counts: Counts, model: SuccessPosterior, *, seed: int) -> FloatArray:
    """Which intervals hold the truth, in [0, 1], in the order of `QUANTITIES`; NaN: undefined.

    Intervals are those of the posterior draws, whatever the status: a node that the data call FLAT
    or that has no rollout yet counts as any other. Success that is known without sampling, and of
    tokens without probability (an empty tail), does not count.
    """
    posterior = NodePosterior(counts, node.sampling, seed=seed, model=model)
    s, g, d, p = posterior.success, posterior.gradient, node.d, node.sampling
    truth = ideal_gradient(p, node.s)
    believed = posterior.believed_of(node.p, node.t)
    asked = (p > 0.0) & ~counts.exact
    found = np.full(len(QUANTITIES), np.nan)
    if asked.any():
        found[0] = _inside(s[:, asked], node.s[asked]).mean()
        found[1] = _inside(g[:, asked], truth[asked]).mean()
    norm = float(np.linalg.norm(truth) * np.linalg.norm(d))
    if norm > _ROUNDING:
        norms = np.sqrt(believed.gradient_norm2.clip(1e-300)) * np.linalg.norm(d)
        found[2] = _inside(believed.gradient @ d / norms, truth @ d / norm)
    known = float(p[counts.exact].sum()) >= 1.0 - _ROUNDING
    if not known:
        found[3] = _inside(believed.gradient @ d, truth @ d)
        found[4] = _inside(believed.success @ (node.t - node.p), node.s @ (node.t - node.p))
        found[5] = _inside(s @ p, node.s @ p)
    return found


def _inside(draws: FloatArray, truth: FloatArray | float) -> FloatArray:
    """Whether equal-tailed intervals of draws, along the first axis, hold the truth."""
    tail = (1.0 - LEVEL) / 2.0
    last = len(draws) - 1
    at = (tail * last, (1.0 - tail) * last)
    ordered = np.sort(draws, axis=0)
    low, high = (
        ordered[int(q)] + (q - int(q)) * (ordered[min(int(q) + 1, last)] - ordered[int(q)])
        for q in at
    )
    result: FloatArray = ((truth >= low - _ROUNDING) & (truth <= high + _ROUNDING)).astype(float)
    return result


@dataclass(frozen=True)
class Share:
    """How many in all were held."""

    value: float
    """In [0, 1]."""
    low: float
    """90% bootstrap interval, of nodes or of the questions they belong to."""
    high: float
    n: int
    """Nodes times settings."""


def share(values: Sequence[float], clusters: Sequence[str]) -> Share | None:
    """The mean of what is defined; None if nothing is."""
    found = np.asarray(values)
    defined = ~np.isnan(found)
    if not defined.any():
        return None
    _, place = np.unique(np.asarray(clusters)[defined], return_inverse=True)
    sums = np.bincount(place, found[defined])
    counts = np.bincount(place).astype(np.float64)
    k = len(sums)
    times = np.random.default_rng(0).multinomial(k, np.full(k, 1.0 / k), size=_RESAMPLES)
    means = (times @ sums) / (times @ counts)
    low, high = np.quantile(means, (0.05, 0.95)).tolist()
    return Share(float(sums.sum() / counts.sum()), low, high, int(counts.sum()))
