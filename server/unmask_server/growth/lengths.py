"""How long a rollout will be: what it costs before it is sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask_server.tree import SeenLengths

PREFILL_SHARE = 0.02
"""A token of a prefix costs so much of a sampled one: it is computed in parallel with others, and
only once for all rollouts that begin alike."""
SHARING = 8.0
"""Rollouts of a batch that share a prefix, about."""
OTHERS = 1.0
"""Generations that other questions are worth together: questions differ in length by more than
generations on one do, so that two of a question's own say more than any number of others."""
NEAR = 3.0
"""A rollout that was forced so many tokens away tells a third (1/e) of one forced at the place."""
FIRST = 5.0
"""Forced rollouts near a place after which they count for half."""


class Lengths:
    """Lengths of rollouts on one question, as far as they were seen."""

    def __init__(self, seen: SeenLengths, limit: int) -> None:
        own = np.asarray(seen.own, dtype=np.float64)
        others = np.asarray(seen.others, dtype=np.float64)
        weights = np.ones(len(own) + len(others))
        weights[len(own) :] = OTHERS / max(1, len(others))
        found = np.concatenate([own, others])
        if not len(found):
            found, weights = np.array([float(limit)]), np.ones(1)
        order = np.argsort(found, kind="stable")
        self._ordered = found[order]
        # Sums from each length to the longest, to average those that got further.
        self._weight = _from_here(weights[order])
        self._above = _from_here((weights * found)[order])
        forced = np.asarray(seen.forced, dtype=np.float64).reshape(-1, 2)
        self._begun, self._sampled = forced[:, 0], forced[:, 1] - forced[:, 0]

    def tokens(self, depth: ArrayLike, prompt: int) -> NDArray[np.float64]:
        """Cost of rollouts from depths (generated tokens so far), in sampled tokens; above 0.

        Args:
            depth: shape (k,).
            prompt: tokens before the generation.

        """
        at = np.asarray(depth, dtype=np.float64)
        first = np.searchsorted(self._ordered, at, side="right")
        longer = self._weight[first] > 0.0
        mean = self._above[first] / np.where(longer, self._weight[first], 1.0)
        left = np.where(longer, mean - at, 1.0)
        if len(self._begun):
            near = np.exp(-np.abs(at[:, None] - self._begun) / NEAR)
            left = (FIRST * left + near @ self._sampled) / (FIRST + near.sum(axis=1))
        result: NDArray[np.float64] = np.maximum(left, 1.0)
        return result + PREFILL_SHARE / SHARING * (prompt + at)


def _from_here(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums from each to the last, and 0; shape (k + 1,)."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])
