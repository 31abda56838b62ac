"""Control teachers, made from the student alone and so knowing nothing of success.

Statements that select generations by their outcome show a gap for any teacher that is flatter or
sharper than the student. What counts is a teacher's alignment beyond its controls.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

PERMUTED_BLOCK = 4
"""Candidates of like probability whose log-ratios change places: neighbours by probability."""

_MAX_EXPONENT = 1e4
_BISECTIONS = 200


def entropy(p: ArrayLike) -> float:
    """-sum P log P in nats; entries of zero count nothing."""
    values = np.asarray(p, dtype=np.float64)
    live = values[values > 0.0]
    return max(0.0, -float(live @ np.log(live)))


def powered(p: ArrayLike, exponent: float) -> FloatArray:
    """T proportional to P^exponent; the tail bucket is taken as one token, as everywhere.

    Args:
        p: the student's probabilities, shape (m + 1,), tail last.
        exponent: below 1 flattens, above 1 sharpens; >= 0.

    Returns:
        Shape (m + 1,), zero where P is.

    """
    values = np.asarray(p, dtype=np.float64)
    live = values > 0.0
    log_p = np.log(values, out=np.zeros_like(values), where=live)
    log_p -= np.max(log_p, where=live, initial=-np.inf)
    weights = np.exp(exponent * log_p, out=np.zeros_like(values), where=live)
    result: FloatArray = weights / weights.sum()
    return result


def tempered(p: ArrayLike, target: float) -> FloatArray:
    """The student flattened or sharpened to an entropy: T proportional to P^a.

    Args:
        p: the student's probabilities, shape (m + 1,), tail last.
        target: entropy in nats. Beyond what P^a can reach (from that of the likeliest token alone,
            or of its ties, to that of all tokens with P > 0 alike), the nearest is taken.

    Returns:
        Shape (m + 1,), zero where P is.

    """

    def power(exponent: float) -> FloatArray:
        return powered(p, exponent)

    low, high = 0.0, 1.0
    while entropy(power(high)) > target and high < _MAX_EXPONENT:
        low, high = high, 2.0 * high
    # Entropy falls with the exponent.
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if entropy(power(middle)) > target else (low, middle)
    return power(high if entropy(power(low)) > target else low)


def permuted(p: ArrayLike, t: ArrayLike, *, seed: int) -> FloatArray:
    """The teacher with its log-ratios to the student permuted among tokens of like probability.

    Candidates are sorted by the student's probability and cut into blocks of `PERMUTED_BLOCK`
    neighbours (the last takes a remainder of one); within a block log T - log P change places. The
    tail bucket and tokens with P = 0 keep theirs.

    Args:
        p: the student's probabilities, shape (m + 1,), tail last.
        t: the teacher's, likewise.
        seed: any non-negative integer; equal arguments give equal controls.

    Returns:
        Shape (m + 1,), renormalised.

    """
    student, teacher = np.asarray(p, dtype=np.float64), np.asarray(t, dtype=np.float64)
    rng = np.random.default_rng(seed)
    order = np.argsort(-student[:-1], kind="stable")
    order = order[student[order] > 0.0]
    control = teacher.copy()
    ends = list(range(PERMUTED_BLOCK, len(order) - 1, PERMUTED_BLOCK))
    for block in np.split(order, ends):
        shuffled = rng.permutation(block)
        control[block] = student[block] * (teacher[shuffled] / student[shuffled])
    total = control.sum()
    # A ratio times a tiny probability may overflow to infinity or leave nothing.
    if not (np.isfinite(total) and total > 0.0):
        return teacher.copy()
    control /= total
    return control
