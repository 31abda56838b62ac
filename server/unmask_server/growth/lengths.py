"""How long a rollout will be: what it costs before it is sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PREFILL_SHARE = 0.02
"""A token of a prefix costs so much of a sampled one: it is computed in parallel with others, and
only once for all rollouts that begin alike."""
SHARING = 8.0
"""Rollouts of a batch that share a prefix, about."""


class Lengths:
    """Lengths of generations on one question, as far as they were seen."""

    def __init__(self, seen: ArrayLike, limit: int) -> None:
        ordered = np.sort(np.asarray(seen, dtype=np.float64))
        self._ordered = ordered if len(ordered) else np.array([float(limit)])
        # Sums from each length to the longest, to average those that got further.
        self._above = np.concatenate([np.cumsum(self._ordered[::-1])[::-1], [0.0]])

    def tokens(self, depth: ArrayLike, prompt: int) -> NDArray[np.float64]:
        """Cost of rollouts from depths (generated tokens so far), in sampled tokens; above 0.

        Args:
            depth: shape (k,).
            prompt: tokens before the generation.

        """
        at = np.asarray(depth, dtype=np.float64)
        first = np.searchsorted(self._ordered, at, side="right")
        longer = len(self._ordered) - first
        mean = self._above[first] / np.maximum(longer, 1)
        left = np.where(longer > 0, mean - at, 1.0)
        result: NDArray[np.float64] = np.maximum(left, 1.0)
        return result + PREFILL_SHARE / SHARING * (prompt + at)
