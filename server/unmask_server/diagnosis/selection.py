"""What is chosen by an estimate, and what can honestly be said of it.

The number by which something was chosen flatters it: of teachers that are alike the luckiest looks
best, and tokens whose estimated alignment is positive look better than they are. What was chosen
must be evaluated on rollouts that had no part in the choice, or by what a posterior expects of it,
which does not depend on how it was chosen. Here it is the posterior, with its shrunk draws: those
around the plug-in estimate are centred on the number that chose. A posterior is as good as its
prior; `bench/selection.py` measures how far it is from the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.intervals import Interval

FloatArray = NDArray[np.float64]

KEPT_ABOVE = 0.5
"""A token is kept if its cosine is above zero with more than this probability."""

_ROUNDING = 1e-9
"""Values this near to each other, as a share of the largest, are ties: with two tokens in the
support every cosine is +-1 but for rounding."""


@dataclass(frozen=True, slots=True)
class KeptNodes:
    """Nodes that were kept because their cosine is more likely positive than not.

    Evaluated by posterior draws, which allow for the choice; never by what chose them.

    Which nodes are kept is fixed while draws, trajectories and questions are resampled. Draws: the
    choice was made from the data, and the posterior given the data is the same whether one chose by
    it or not; choosing anew in every draw, by that draw's cosine, would be the flattery again.
    Trajectories and questions: whether a node is kept depends on this node alone, so that choosing
    anew in a resample would keep the same of those that came up. The intervals are about the nodes
    kept here; other rollouts would keep others.
    """

    share: float
    """Of the scored nodes, in [0, 1]."""
    mean_cosine: Interval | None
    """Over those kept; None if none is. Likewise the gain."""
    gain_per_unit_step: Interval | None
    """sum g.d / sqrt(sum |d|^2), with g of the posterior: a prior pulls it towards zero."""


def is_kept(cosine: FloatArray) -> bool:
    """Whether a node is kept, by posterior draws of its cosine, shape (size,)."""
    return float(np.mean(cosine > 0.0)) > KEPT_ABOVE


def shares_of_best(values: Sequence[FloatArray]) -> list[float]:
    """How often each is the highest: the probability that it is the best.

    Args:
        values: one array for each rival, all of shape (size,): the same draws of what they share.

    Returns:
        One share for each rival, in [0, 1]; they add up to one. Ties are shared equally.

    """
    if not values:
        return []
    stacked = np.stack(values)
    nearly = stacked.max(axis=0) - _ROUNDING * np.abs(stacked).max(axis=0)
    best = stacked >= nearly
    shares: list[float] = (best / best.sum(axis=0)).mean(axis=1).tolist()
    return shares


def shares_of_defined(values: Sequence[FloatArray]) -> list[float | None]:
    """`shares_of_best` where some draws, NaN, are not defined.

    Args:
        values: as there. A rival that is defined in no more than half of its draws is left out.

    Returns:
        None for rivals left out, and for all of them if fewer than two are left or these are
        defined together in no draw.

    """
    fit = [i for i, v in enumerate(values) if 2 * int(np.isfinite(v).sum()) > len(v)]
    shares: list[float | None] = [None] * len(values)
    if len(fit) < 2:
        return shares
    together = np.isfinite(np.stack([values[i] for i in fit])).all(axis=0)
    if together.any():
        found = shares_of_best([values[i][together] for i in fit])
        for i, share in zip(fit, found, strict=True):
            shares[i] = share
    return shares
