"""Counted outcomes at a node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """Outcomes by next token, tail last; all of shape (m + 1,).

    Raises:
        ValueError: shapes differ, or a count is negative, not finite or less than its rewards.

    """

    n: NDArray[np.float64]
    """Rollouts that are valid for the token; >= 0. For the tail: those that drew a tail token."""
    reward_sum: NDArray[np.float64]
    """Sum of their rewards, each in [0, 1]."""
    exact: NDArray[np.bool_]
    """Where the outcome is known without sampling (a terminal token): it is reward_sum / n."""

    def __post_init__(self) -> None:
        n, rewards = self.n, self.reward_sum
        if n.ndim != 1 or not n.shape == rewards.shape == self.exact.shape:
            raise ValueError("n, reward_sum and exact must be vectors of one length")
        # Sums of fractional rewards may exceed n by rounding.
        if not (np.all(n >= 0) and np.all(rewards >= 0) and np.all(rewards <= n + 1e-6)):
            raise ValueError("counts need 0 <= reward_sum <= n")
        if not np.all(np.isfinite(n)):
            raise ValueError("counts must be finite")
        if np.any(self.exact & (n <= 0)):
            raise ValueError("an exact outcome needs its reward: n is 0 there")

    def worth(self, factor: float) -> Counts:
        """The same shares of success from `factor` times as many rollouts."""
        if factor == 1.0:
            return self
        return Counts(n=factor * self.n, reward_sum=factor * self.reward_sum, exact=self.exact)

    @classmethod
    def empty(cls, size: int) -> Counts:
        """No rollout at all, over `size` entries (tail included)."""
        return cls(np.zeros(size), np.zeros(size), np.zeros(size, dtype=bool))
