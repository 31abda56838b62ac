"""Success from a node on, as a number of rollouts that would tell as much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask_server.diagnosis.counts import Counts
from unmask_server.diagnosis.node import NodePosterior

VALUE_DRAWS = 256
"""Posterior draws enough for a node's value: its variance is then good to a tenth."""
_PRIOR = 1.0
"""Rollouts that the prior of a value is worth: its centre is as good as Beta(1/2, 1/2)."""


@dataclass(frozen=True, slots=True)
class Value:
    """V = sum_k P_k s_k at a node, as known by so many rollouts from there."""

    n: float
    """Rollouts that it is worth, >= 0."""
    reward_sum: float
    """Of them, in [0, n]."""

    @staticmethod
    def of(posterior: NodePosterior) -> Value:
        """The rollouts whose Beta posterior has the mean and the variance of V's."""
        drawn = posterior.mean_success
        return Value.like(float(np.mean(drawn)), float(np.var(drawn)))

    @staticmethod
    def like(mean: float, variance: float) -> Value:
        """The rollouts whose Beta posterior has this mean and this variance."""
        mean = min(max(mean, 1e-6), 1.0 - 1e-6)
        worth = mean * (1.0 - mean) / max(variance, 1e-12) - 1.0
        n = max(0.0, worth - _PRIOR)
        return Value(n, min(max(mean * worth - _PRIOR / 2, 0.0), n))

    def told_to(self, parent: Counts, token: int) -> Counts:
        """The parent's counts with this for those of its `token` that leads here.

        Either this or what was counted, whichever is worth more: they share rollouts.
        """
        if parent.exact[token] or self.n <= parent.n[token]:
            return parent
        n, rewards = parent.n.copy(), parent.reward_sum.copy()
        n[token], rewards[token] = self.n, self.reward_sum
        return Counts(n=n, reward_sum=rewards, exact=parent.exact)
