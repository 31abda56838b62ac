"""Control teachers at a node, by name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog.types import Control
from unmask_server.diagnosis import entropy, permuted, powered, tempered

FloatArray = NDArray[np.float64]

FLATTENED, SHARPENED = 0.5, 1.5
"""Exponents of the student's probabilities."""


def control(kind: Control, p: FloatArray, t: FloatArray | None, *, seed: int) -> FloatArray:
    """A control's probabilities.

    Args:
        kind: how it is made.
        p: the student's, shape (m + 1,), tail last.
        t: those of the teacher it is of, likewise; None for controls that are of none.
        seed: for permutations.

    """
    if kind is Control.FLATTENED:
        return powered(p, FLATTENED)
    if kind is Control.SHARPENED:
        return powered(p, SHARPENED)
    assert t is not None
    if kind is Control.ENTROPY_MATCHED:
        return tempered(p, entropy(t))
    return permuted(p, t, seed=seed)
