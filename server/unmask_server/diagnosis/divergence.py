"""How far two next-token distributions are apart."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def kl(p: ArrayLike, q: ArrayLike) -> float | None:
    """KL(p|q) = sum p log(p / q) in nats, over candidates and tail bucket; None where infinite.

    The tail bucket belongs in it: truncated to candidates alone the sum can be negative.

    Args:
        p: shape (k,).
        q: shape (k,).

    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    live = p > 0.0
    if np.any(q[live] <= 0.0):
        return None
    return max(0.0, math.fsum(p[live] * (np.log(p[live]) - np.log(q[live]))))
