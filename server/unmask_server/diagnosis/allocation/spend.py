"""Where the next rollouts lower the requested uncertainty most per token.

With W the weight of a cell times its noise, N what is known of it in rollouts and c its cost, k
more rollouts leave W / (N + k) of variance. The best way to spend a budget makes the marginal gain
per token, W / (N + k)^2 / c, the same wherever k > 0: k = L sqrt(W / c) - N for one level L
(Neyman's allocation, with what is there already taken into account). A tail bucket cannot be
forced: rollouts from the node reach it by chance, and serve the node's other cells on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask_server.diagnosis.allocation.beliefs import Beliefs
from unmask_server.diagnosis.allocation.problem import FloatArray, IntArray, Problem
from unmask_server.diagnosis.allocation.sensitivity import Sensitivity

LEAST_STEP = 8.0
"""In one batch a cell gets at most as many rollouts as it has, or so many: what is believed of a
cell that has few may be quite wrong."""
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Spending:
    """Rollouts to sample."""

    forced: IntArray
    """Shape (C,): through each cell."""
    free: IntArray
    """Shape (N,): from each node."""

    @property
    def total(self) -> int:
        """Rollouts in all."""
        return int(self.forced.sum() + self.free.sum())


def spend(
    problem: Problem, beliefs: Beliefs, sensitivity: Sensitivity, *, rollouts: int, seed: int
) -> Spending:
    """About so many rollouts, where they are worth most.

    Args:
        problem: the nodes.
        beliefs: of them.
        sensitivity: what matters.
        rollouts: how many, >= 1. Fewer are given where `LEAST_STEP` forbids more.
        seed: shares below one are drawn; equal arguments give equal plans.

    """
    share = _fractions(problem, beliefs, sensitivity, float(rollouts))
    tail = ~problem.forceable
    free = problem.sums(np.where(tail, share / problem.p.clip(1e-12), 0.0))
    forced = np.where(tail, 0.0, (share - problem.spread(free) * problem.p).clip(0.0))
    both = _rounded(np.concatenate([forced, free]), seed)
    return Spending(both[: len(forced)], both[len(forced) :])


def needed(problem: Problem, beliefs: Beliefs, sensitivity: Sensitivity) -> float:
    """Rollouts after which what is open should be precise enough, if beliefs are right."""
    worth = sensitivity.weight * beliefs.noise
    live = worth > 0.0
    open_ = float((~sensitivity.settled).sum())
    if not live.any() or not open_:
        return 0.0
    worth, strength = worth[live], beliefs.strength[live]
    tries = np.where(problem.forceable, 1.0, 1.0 / problem.p.clip(1e-12))[live]
    root = np.sqrt(worth / (problem.tokens[live] * tries))
    # The variances, each over what is wanted of it, add up to `open_` when all are reached. They
    # fall with the level, of which the logarithm is halved in on.
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2.0
        level = np.exp(middle) * root
        if float((worth / np.maximum(strength, level)).sum()) > open_:
            low = middle
        else:
            high = middle
    return float((tries * (np.exp(high) * root - strength).clip(0.0)).sum())


def _fractions(
    problem: Problem, beliefs: Beliefs, sensitivity: Sensitivity, rollouts: float
) -> FloatArray:
    """Rollouts wanted through each cell, not yet whole ones; shape (C,)."""
    worth = sensitivity.weight * beliefs.noise
    # A rollout through the tail costs as many as it takes to come by one.
    tries = np.where(problem.forceable, 1.0, 1.0 / problem.p.clip(1e-12))
    root = np.sqrt(worth / (problem.tokens * tries))
    most = np.maximum(problem.n, LEAST_STEP) / np.where(problem.forceable, 1.0, tries)
    given = np.zeros(len(root))
    for _ in range(_ROUNDS):
        left = rollouts - float((given * tries).sum())
        can = (root > 0.0) & (given < most)
        if left < 0.5 or not can.any():
            break
        more = _water(root * can, beliefs.strength + given, tries, left)
        given = np.minimum(given + more, most)
    return given


def _water(root: FloatArray, strength: FloatArray, tries: FloatArray, amount: float) -> FloatArray:
    """max(0, L root - strength) with L so that it takes `amount` rollouts; shape (C,)."""
    live = np.flatnonzero(root > 0.0)
    begin = strength[live] / root[live]
    order = np.argsort(begin, kind="stable")
    live, begin = live[order], begin[order]
    level = (amount + np.cumsum(tries[live] * strength[live])) / np.cumsum(tries[live] * root[live])
    # The last one that is below its own level is the last to get anything.
    last = int(np.flatnonzero(level > begin)[-1])
    result = np.zeros(len(root))
    chosen = live[: last + 1]
    result[chosen] = (level[last] * root[chosen] - strength[chosen]).clip(0.0)
    return result


def _rounded(amounts: FloatArray, seed: int) -> IntArray:
    """Whole numbers whose expectations are `amounts`, their sum off by less than one."""
    marks = np.cumsum(amounts) + np.random.default_rng(seed).random()
    whole = np.floor(np.concatenate([[0.0], marks]))
    result: IntArray = np.diff(whole).astype(np.int64)
    return result
