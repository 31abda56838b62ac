"""The ideal gradient at a node, with how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.alignment import MIN_COVERAGE, Status
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.node import FLAT_TOLERANCE, NodePosterior

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class IdealGradient:
    """g_j = P_j (s_j - sum_k P_k s_k), component by component. Never NaN or infinite."""

    status: Status
    """OK, FLAT, LOW_COVERAGE or NO_DATA, by the rules of `alignment`."""
    components: tuple[Interval, ...] | None
    """m + 1, tail last; None for NO_DATA. The medians need not add up to zero, the draws do."""
    norm: Interval | None
    """|g| of the draws, which noise makes larger; None for NO_DATA."""
    norm2: float | None
    """|g|^2 less its estimation variance, see `NodePosterior.ideal_norm2`."""
    success: Interval | None
    """Success from here on, sum_k P_k s_k; None for NO_DATA."""
    bound: float
    """|g| is at most this, whatever the data say."""
    effective_support: float
    """1 / sum P^2 over the candidates."""
    covered: float
    """The sampling policy's mass on the candidates, in [0, 1]."""


def ideal(posterior: NodePosterior, *, min_coverage: float = MIN_COVERAGE) -> IdealGradient:
    """The ideal gradient from what is known of success."""
    known = posterior.has_data
    status = Status.OK
    if posterior.flat_bound < FLAT_TOLERANCE:
        status = Status.FLAT
    elif not known:
        status = Status.NO_DATA
    elif not posterior.tells_gradient:
        status = Status.FLAT
    elif posterior.covered < min_coverage:
        status = Status.LOW_COVERAGE
    return IdealGradient(
        status=status,
        components=tuple(Interval.of(g) for g in posterior.gradient.T) if known else None,
        norm=Interval.of(np.sqrt(posterior.gradient_norm2)) if known else None,
        norm2=posterior.ideal_norm2 if known else None,
        success=posterior.success_interval if known else None,
        bound=posterior.flat_bound,
        effective_support=posterior.effective_support,
        covered=posterior.covered,
    )
