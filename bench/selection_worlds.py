"""Nodes with known success, and rollouts at them, for `bench.selection`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from unmask_server.diagnosis import Counts, NodePosterior, ideal_gradient

FloatArray = NDArray[np.float64]

TOKENS = 8
DRAWS = 250
"""Posterior draws a node: their noise averages out over the nodes."""


@dataclass(frozen=True)
class World:
    """Nodes, shape (nodes, TOKENS + 1): the tail, last, is empty."""

    p: FloatArray
    s: FloatArray
    rng: np.random.Generator

    @property
    def g(self) -> FloatArray:
        return ideal_gradient(self.p, self.s)

    def teacher(self, exponent: float, noise: float) -> FloatArray:
        """P to a power, with random log-ratios."""
        t = self.p**exponent * np.exp(noise * self.rng.standard_normal(self.p.shape))
        t[:, -1] = 0.0
        result: FloatArray = t / t.sum(axis=1, keepdims=True)
        return result

    def rollouts(self, each: int) -> tuple[FloatArray, FloatArray]:
        """How many through each token, and how many of them succeed."""
        n = self.rng.multinomial(each, self.p)
        return n.astype(float), self.rng.binomial(n, self.s).astype(float)

    def posteriors(self, n: FloatArray, wins: FloatArray) -> list[NodePosterior]:
        none = np.zeros(TOKENS + 1, dtype=bool)
        return [
            NodePosterior(Counts(a, b, none), p, seed=i, size=DRAWS)
            for i, (a, b, p) in enumerate(zip(n, wins, self.p, strict=True))
        ]


def world(seed: int, nodes: int, *, concentration: float, spread: float | None = 0.1) -> World:
    """P from a Dirichlet, s normal around a uniform level and cut to [0, 1]; spread None: mixed."""
    rng = np.random.default_rng((seed, 11))
    p = rng.dirichlet(np.full(TOKENS, concentration), nodes).clip(1e-9)
    spreads = np.exp(rng.uniform(np.log(0.01), np.log(0.5), (nodes, 1)))
    if spread is not None:
        spreads[:] = spread
    s = rng.random((nodes, 1)) + spreads * rng.standard_normal((nodes, TOKENS))
    empty = np.zeros((nodes, 1))
    p = np.concatenate([p / p.sum(axis=1, keepdims=True), empty], axis=1)
    return World(p, np.concatenate([s.clip(0.0, 1.0), empty], axis=1), rng)


def cosines(g: FloatArray, d: FloatArray) -> FloatArray:
    """Along the last axis; 0 where one of them is zero."""
    norms = np.linalg.norm(g, axis=-1) * np.linalg.norm(d, axis=-1)
    dots = np.sum(g * d, axis=-1)
    result: FloatArray = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0.0)
    return result


def mean_gain(g: FloatArray, d: FloatArray) -> float:
    """Of a node, where the steps have a root mean square length of one."""
    return float(np.sum(g * d) / np.sqrt(len(d) * np.sum(d * d)))


def plug_in(nodes: World, n: FloatArray, wins: FloatArray) -> FloatArray:
    """g of counted success; tokens without a rollout have the node's."""
    level = wins.sum(axis=1, keepdims=True) / n.sum(axis=1, keepdims=True)
    return ideal_gradient(nodes.p, np.where(n > 0, wins / np.maximum(n, 1.0), level))


@dataclass(frozen=True)
class Gap:
    """Means over correct less over incorrect generations."""

    chance: FloatArray
    """Of being correct, one a node."""

    def __call__(self, correct: FloatArray, incorrect: FloatArray | None = None) -> float:
        """Of values if the generation was correct and, where they differ, if it was not."""
        # Each generation counts as both, by its chance: less noise than drawing its outcome.
        other, lost = correct if incorrect is None else incorrect, 1.0 - self.chance
        return float(np.average(correct, weights=self.chance) - np.average(other, weights=lost))


def with_generations(nodes: World) -> tuple[FloatArray, Gap]:
    """Each node's own token, one-hot, drawn from P."""
    u = nodes.rng.random((len(nodes.p), 1))
    token = (nodes.p.cumsum(axis=1) < u).sum(axis=1).clip(max=TOKENS - 1)
    own = np.eye(TOKENS + 1)[token]
    return own, Gap(np.sum(own * nodes.s, axis=1))
