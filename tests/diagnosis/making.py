"""Random nodes with known truth, for tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from unmask_server.diagnosis import Counts, NodePosterior, SuccessPosterior
from unmask_server.diagnosis.posterior import DEFAULT_POSTERIOR

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TrueNode:
    """Student, teacher and true chances of success; no tail."""

    p: FloatArray
    t: FloatArray
    s: FloatArray

    @property
    def ids(self) -> NDArray[np.int32]:
        return np.arange(len(self.p) - 1, dtype=np.int32)


def true_node(seed: int, m: int, *, spread: float | None = None) -> TrueNode:
    """A node of `m` candidates. `spread` 0: success does not depend on the token."""
    rng = np.random.default_rng((seed, m))
    p = rng.dirichlet(np.full(m, rng.choice([0.1, 0.3, 1.0]))).clip(1e-9)
    centre = rng.random()
    strength = rng.choice([1.0, 3.0, 10.0, 50.0, 1000.0])
    s = rng.beta(centre * strength + 1e-3, (1 - centre) * strength + 1e-3, size=m)
    if spread == 0.0:
        s = np.full(m, centre)
    t = p * np.exp(rng.normal(0.0, rng.choice([0.3, 1.0]), m))
    return TrueNode(_with_empty_tail(p / p.sum()), _with_empty_tail(t / t.sum()), np.append(s, 0))


def rolled_out(node: TrueNode, seed: int, rollouts: int, allocation: str = "policy") -> Counts:
    """Outcomes of so many rollouts: drawn from P, or forced equally."""
    rng = np.random.default_rng((seed, rollouts, 7))
    m = len(node.p) - 1
    if allocation == "policy":
        n = rng.multinomial(rollouts, node.p)
    else:
        n = np.append(np.full(m, max(1, rollouts // m)), 0)
    wins = rng.binomial(n, node.s)
    return counts(n, wins)


def counts(n: object, wins: object, exact: object = None) -> Counts:
    n = np.asarray(n, dtype=np.float64)
    known = np.zeros(n.shape, dtype=bool) if exact is None else np.asarray(exact, dtype=bool)
    return Counts(n, np.asarray(wins, dtype=np.float64), known)


def posterior_of(
    node: TrueNode,
    seed: int,
    rollouts: int,
    allocation: str = "policy",
    model: SuccessPosterior = DEFAULT_POSTERIOR,
) -> NodePosterior:
    found = rolled_out(node, seed, rollouts, allocation)
    return NodePosterior(found, node.p, seed=seed, model=model)


def _with_empty_tail(p: FloatArray) -> FloatArray:
    return np.append(p, 0.0)
