"""A teacher of whom only the likeliest tokens are known, as a distribution over a node's support.

What the listed tokens lack to 1, R, is spread over all other tokens in proportion to the student's
probabilities: T_j = R P_j / P_B, with P_B the student's mass on the others. Then a divergence's
gradient is exactly that of the divergence over the listed tokens and one bucket B of the others:
with P_B = sum_{j in B} P_j and a term f(P_B, R) for the bucket, dP_B/dz_j = P_j (1[j in B] - P_B),
so that a logit z_j in B has the gradient P_j (f' - sum_k P_k f'_k), where f' depends on P_B and R
through their ratio alone, as it does for one token: the same as if each token of B had a term of
its own with ratio T_j / P_j = R / P_B. Nobody need know how the teacher shares R out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.support import TAIL_RESOLUTION

FloatArray = NDArray[np.float64]


def with_spread_rest(p: FloatArray, t: FloatArray, listed: NDArray[np.bool_]) -> FloatArray:
    """The teacher's probabilities over the support, what it did not list being spread.

    Args:
        p: the student's, shape (m + 1,), tail last.
        t: the teacher's where `listed`, shape (m + 1,); other entries are not looked at.
        listed: shape (m + 1,); the tail never is.

    Returns:
        Shape (m + 1,), adding up to 1. What is not listed has at least `TAIL_RESOLUTION` together:
        a list that adds up to 1 within rounding rules nothing out.

    """
    known = np.where(listed, t, 0.0)
    rest = max(TAIL_RESOLUTION, 1.0 - float(known.sum()))
    others = np.where(listed, 0.0, p)
    if others.sum() <= 0.0:
        others[-1] = 1.0
    result: FloatArray = known + rest * (others / others.sum())
    result /= result.sum()
    return result
