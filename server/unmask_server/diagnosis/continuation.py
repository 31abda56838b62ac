"""What the tokens after a token add to its advantage in a sequence loss, from scored rollouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm
from unmask_server.diagnosis.families.minillm import has_own

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.intp]

_PRIOR_ROLLOUTS = 4.0
"""How many rollouts of its own the variance of the node's others is worth to a token."""


@dataclass(frozen=True, slots=True)
class Continuations:
    """Values of continuations (`families.minillm`: `later`) after each token of a node.

    Arrays have shape (m + 1,), tail last; values are in nats.
    """

    n: FloatArray
    """Rollouts that were scored; 0 where the value is exact."""
    mean: FloatArray
    """Of their values; 0 without any."""
    variance: FloatArray
    """Of one continuation's value, pooled with that of the node's other tokens."""
    covariance: FloatArray
    """Between one rollout's value and its reward, pooled over the node."""
    exact: BoolArray
    """Tokens after which nothing follows: the value is `mean`."""

    @classmethod
    def of(
        cls,
        token: IntArray,
        values: FloatArray,
        rewards: FloatArray,
        ends: BoolArray,
        end_values: FloatArray,
    ) -> Continuations:
        """Moments of scored rollouts.

        Args:
            token: index of each rollout's token in the support, shape (rollouts,).
            values: of the continuations, likewise; finite.
            rewards: in [0, 1], likewise.
            ends: tokens after which nothing is sampled, shape (m + 1,).
            end_values: what is added there, likewise.

        """
        size = len(ends)
        kept = ~ends[token]
        token, values, rewards = token[kept], values[kept], rewards[kept]
        n = np.bincount(token, minlength=size).astype(np.float64)
        at_least = np.maximum(n, 1.0)
        mean = np.bincount(token, values, minlength=size) / at_least
        reward = np.bincount(token, rewards, minlength=size) / at_least
        off, off_reward = values - mean[token], rewards - reward[token]
        squares = np.bincount(token, off * off, minlength=size)
        free = max(float((n - 1.0).clip(0.0).sum()), 0.0)
        # One rollout each says nothing of the spread after a token: that between them is at hand.
        spread = float(values.var()) if len(values) else 0.0
        pooled = float(squares.sum()) / free if free else spread
        own = squares + _PRIOR_ROLLOUTS * pooled
        variance = own / ((n - 1.0).clip(0.0) + _PRIOR_ROLLOUTS)
        together = float(off @ off_reward) / free if free else 0.0
        return cls(
            n=n,
            mean=np.where(ends, end_values, mean),
            variance=np.where(ends, 0.0, variance),
            covariance=np.where(ends, 0.0, together),
            exact=ends.copy(),
        )

    @property
    def has_data(self) -> bool:
        """Whether anything is known of what follows any token."""
        return bool(np.any(self.n > 0) or self.exact.all())

    def draws(self, *, size: int, seed: int) -> FloatArray:
        """Draws of the expected values, shape (size, m + 1).

        Normal, with each token's mean drawn towards the node's as far as their spread says: a
        token's mean is within one continuation's spread of the node's, or more where they differ
        more (DerSimonian and Laird's moments).
        """
        result = np.broadcast_to(self.mean, (size, len(self.mean))).copy()
        open_ = ~self.exact
        if not open_.any():
            return result
        seen = open_ & (self.n > 0)
        rng = np.random.default_rng((seed, 3))
        noise = self.variance[seen] / self.n[seen]
        between, centre = _between(self.mean[seen], noise)
        within = float(self.variance[seen].mean()) if seen.any() else 0.0
        between = max(between, within)
        weights = 1.0 / np.maximum(noise + between, 1e-300)
        centre_sd = np.sqrt(1.0 / weights.sum()) if between > 0.0 else 0.0
        middle = centre + centre_sd * rng.standard_normal((size, 1))
        towards = noise / np.maximum(noise + between, 1e-300)
        error = rng.standard_normal((size, int(open_.sum())))
        mean, sd = np.zeros((size, len(seen))), np.zeros(len(seen))
        mean[:, seen] = self.mean[seen] * (1.0 - towards) + middle * towards
        sd[seen] = np.sqrt(noise * (1.0 - towards))
        unseen = open_ & ~seen
        mean[:, unseen] = middle
        sd[unseen] = np.sqrt(between)
        result[:, open_] = mean[:, open_] + sd[open_] * error
        return result

    def gain_bias(self, sampling: FloatArray, p: FloatArray, n: FloatArray) -> float:
        """E[g.d] less g.d where both come from the same rollouts.

        With c_j the covariance of the means of reward and value after token j, it is
        sum_j c_j S_j P_j (1 - S_j - P_j + S.P): the derivatives of g_k by s_j and of d_k by the
        value of j, multiplied and summed over k.

        Args:
            sampling: S, the sampling policy's probabilities (which g has), shape (m + 1,).
            p: P, the student's in the loss, likewise.
            n: rollouts behind each token's success, likewise.

        """
        shared = self.covariance * (self.n > 0) / np.maximum(np.maximum(n, self.n), 1.0)
        both = sampling * p
        return float(shared @ (both * (1.0 - sampling - p + float(both.sum()))))


def value(algorithm: Algorithm, own: float, later: FloatArray) -> float:
    """The value of one continuation: `later` of `families.minillm`.

    Args:
        algorithm: a sequence loss.
        own: log T - log P of the token itself, cut as the algorithm says.
        later: those of the tokens after it, uncut, shape (tokens,).

    """
    clip = algorithm.ratio_clip
    total = float((np.clip(later, -clip, clip) if clip > 0.0 else later).sum())
    if not algorithm.length_normalized:
        return total
    if has_own(algorithm):
        return total / len(later) if len(later) else 0.0
    return (own + total) / (1 + len(later))


def _between(mean: FloatArray, noise: FloatArray) -> tuple[float, float]:
    """Variance between the tokens' expected values, and their centre."""
    if not len(mean):
        return 0.0, 0.0
    weights = 1.0 / np.maximum(noise, 1e-12)
    total = float(weights.sum())
    centre = float(weights @ mean) / total
    scale = total - float(weights @ weights) / total
    if len(mean) < 2 or scale <= 0.0:
        return 0.0, centre
    heterogeneity = float(weights @ (mean - centre) ** 2)
    between = max(0.0, (heterogeneity - (len(mean) - 1)) / scale)
    weights = 1.0 / np.maximum(noise + between, 1e-12)
    return between, float(weights @ mean) / float(weights.sum())
