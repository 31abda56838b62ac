"""Nodes whose chances of success are known, and rollouts at them.

A node here has what a served node has: candidates and a tail bucket, the probabilities of the
sampling policy, of the student and of a teacher at the loss's temperature, and end tokens, whose
outcome is known once it was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from unmask_server.diagnosis import Algorithm, Counts, Loss, descent
from unmask_server.diagnosis.allocation import (
    Objective,
    Problem,
    Statistic,
    believe,
    sensitivity,
    spend,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

REVERSE = Algorithm(Loss.REVERSE_KL)
LEAST_SPREAD = 0.01
"""Random nodes whose likeliest token has all but so much are trivially flat, and drawn again."""


@dataclass(frozen=True)
class Node:
    """Arrays have shape (m + 1,), tail last."""

    cluster: str
    """Nodes of one cluster are not independent of each other."""
    sampling: FloatArray
    """The policy's probabilities: of rollouts, and in g."""
    p: FloatArray
    """The student's at the loss's temperature."""
    t: FloatArray
    """The teacher's."""
    s: FloatArray
    """True chances of success."""
    ends: NDArray[np.bool_]
    """Tokens after which nothing is sampled."""

    @property
    def d(self) -> FloatArray:
        """The step of reverse KL."""
        return descent(REVERSE, self.p, self.t)

    def wins(self, n: IntArray, rng: np.random.Generator) -> IntArray:
        """How many of so many rollouts after each token succeed: they are independent."""
        return rng.binomial(n, self.s)

    def narrowed(self, candidates: int) -> Node:
        """The same over its first so many candidates; the others join the tail."""
        m = min(candidates, len(self.p) - 1)

        def narrow(p: FloatArray) -> FloatArray:
            return np.append(p[:m], p[m:].sum())

        rest = float(self.sampling[m:].sum())
        tail = float(self.sampling[m:] @ self.s[m:]) / rest if rest > 0.0 else 0.0
        return Node(
            self.cluster,
            narrow(self.sampling),
            narrow(self.p),
            narrow(self.t),
            np.append(self.s[:m], tail),
            np.append(self.ends[:m], False),
        )


Allocate = Callable[[Node, Counts, int, np.random.Generator], IntArray]
"""`allocate(node, counts, budget, rng)`: rollouts through each token, shape (m + 1,), in the next
batch, at most `budget` in all; asked again until the budget is spent or it gives none. It may look
at the counts, and at all of the node but the truth."""


def policy(node: Node, _counts: Counts, budget: int, rng: np.random.Generator) -> IntArray:
    """Free rollouts from the node."""
    return rng.multinomial(budget, node.sampling / node.sampling.sum())


def equal(node: Node, _counts: Counts, budget: int, rng: np.random.Generator) -> IntArray:
    """Forced rollouts, equally many through each candidate; a remainder falls at random."""
    m = len(node.p) - 1
    n = np.full(m + 1, budget // m)
    n[rng.permutation(m)[: budget % m]] += 1
    n[m] = 0
    return n


def adaptive(node: Node, counts: Counts, budget: int, rng: np.random.Generator) -> IntArray:
    """What the server plans for reverse KL's cosine, until the budget is spent."""
    return _planned(node, counts, budget, rng, Objective(Statistic.COSINE, 1e-3, flat_norm=0.0))


def stopping(node: Node, counts: Counts, budget: int, rng: np.random.Generator) -> IntArray:
    """The same, ended by what was seen: when the cosine seems sure to 0.2 or |g| small."""
    return _planned(node, counts, budget, rng, Objective(Statistic.COSINE, 0.2))


def _planned(
    node: Node, counts: Counts, budget: int, rng: np.random.Generator, objective: Objective
) -> IntArray:
    if (lacking := objective.pilot - int(counts.n.sum())) > 0:
        return policy(node, counts, min(budget, lacking), rng)
    cells = len(node.sampling)
    tail = np.arange(cells) == cells - 1
    problem = Problem(
        start=np.array([0, cells]),
        p=node.sampling / node.sampling.sum(),
        n=counts.n,
        reward_sum=counts.reward_sum,
        known=counts.exact,
        forceable=~tail,
        child=np.full(cells, -1),
        steps=node.d[None],
        defined=np.ones((1, 1), dtype=bool),
        group=np.zeros(1, dtype=np.int64),
        tokens=np.full(cells, 20.0),
        weight=np.ones(1),
    )
    beliefs = believe(problem)
    found = sensitivity(problem, beliefs, objective)
    if found.done:
        return np.zeros(cells, dtype=np.int64)
    batch = min(budget, max(1, int(counts.n.sum()) // 2))
    given = spend(problem, beliefs, found, rollouts=batch, seed=int(rng.integers(2**31)))
    free = rng.multinomial(given.free[0], problem.p)
    more = given.forced + free
    # What whole numbers and limits leave over goes where the policy goes.
    return more if more.any() else policy(node, counts, batch, rng)


ALLOCATIONS: dict[str, Allocate] = {
    "policy": policy,
    "equal": equal,
    "adaptive": adaptive,
    "stopping": stopping,
}
"""Another is tried by adding it here."""


def rolled_out(node: Node, rollouts: int, allocate: Allocate, rng: np.random.Generator) -> Counts:
    """Outcomes of so many rollouts in all."""
    n, rewards = np.zeros(len(node.p)), np.zeros(len(node.p))
    while True:
        counts = Counts(n.copy(), rewards.copy(), node.ends & (n > 0))
        left = rollouts - int(n.sum())
        if left <= 0:
            return counts
        more = allocate(node, counts, left, rng)
        if not more.any():
            return counts
        n += more
        rewards += node.wins(more, rng)


def random_node(seed: int, m: int, kind: str) -> Node:
    """A node of `m` candidates without a tail.

    Args:
        seed: equal arguments give equal nodes.
        m: candidates.
        kind: `exchangeable`: success is Beta-distributed around the node's, with strengths from 1
            to 1000; `likelier_better` and `likelier_worse`: it also rises or falls with log P;
            `atoms`: some tokens always fail, some always succeed; `informed`: as `exchangeable`,
            with a teacher that knows of success. The teachers of the others are blind.

    """
    rng = np.random.default_rng((seed, m))
    while True:
        p = rng.dirichlet(np.full(m, rng.choice([0.1, 0.3, 1.0]))).clip(1e-9)
        p /= p.sum()
        if 1.0 - p.max() >= LEAST_SPREAD:
            break
    centre = rng.random()
    strength = rng.choice([1.0, 3.0, 10.0, 50.0, 1000.0])
    if kind.startswith("likelier"):
        log_p = np.log(p)
        height = (log_p - log_p.mean()) / max(float(log_p.std()), 1e-9)
        slope = rng.choice([0.7, 1.5, 3.0]) * (1.0 if kind == "likelier_better" else -1.0)
        odds = np.log(centre / (1.0 - centre)) + slope * height
        centre = 1.0 / (1.0 + np.exp(-odds))
    s = rng.beta(centre * strength + 1e-3, (1.0 - centre) * strength + 1e-3, size=m)
    if kind == "atoms":
        fail, succeed = rng.choice([0.0, 0.2, 0.5]), rng.choice([0.0, 0.1, 0.3])
        u = rng.random(m)
        s = np.where(u < fail, 0.0, np.where(u > 1.0 - succeed, 1.0, s))
    t = p * np.exp(rng.normal(0.0, rng.choice([0.3, 1.0]), m))
    if kind == "informed":
        t *= np.exp(3.0 * s)
    p, t, s = (np.append(part, 0.0) for part in (p, t / t.sum(), s))
    return Node(f"{seed}", p, p, t, s, np.zeros(m + 1, dtype=bool))
