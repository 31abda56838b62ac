"""Before a growth ends: whether what is served is as sure as the plan's beliefs are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask_server.diagnosis.allocation.draws import Z90
from unmask_server.diagnosis.allocation.objectives import Objective
from unmask_server.diagnosis.allocation.problem import FloatArray, Problem
from unmask_server.diagnosis.allocation.sensitivity import Sensitivity
from unmask_server.diagnosis.allocation.served import half_widths

CHECKS = 8
"""So often a growth asks the posteriors that are served whether the plan's beliefs say enough."""
CLOSE = 0.5
"""Asked about are answers whose half width is believed to be above this much of what is wanted."""
SLACK = 1.05
"""A half width is good enough if it is at most so many times the one asked for."""
LEAST_RATIO = 0.8
"""A half width that is too large is made so much smaller at most before the next check. Where a
sign is open it falls from 1 to nearly nothing with few rollouts more; in proportion, 0.3 sometimes
cost more than 0.1."""


@dataclass(frozen=True, slots=True)
class Check:
    """What the posteriors that are served say."""

    tightened: FloatArray | float
    """What beliefs have to reach from now on, as a share of the variances asked for."""
    passed: bool
    """Whether all is precise enough."""
    easily: bool
    """Whether it is without `SLACK`."""


def check(
    problem: Problem,
    found: Sensitivity,
    objective: Objective,
    tightened: FloatArray | float = 1.0,
) -> Check:
    """Ask the posteriors that are served, and be stricter where they are less sure than beliefs.

    Args:
        problem: the nodes.
        found: of them, all of it settled.
        objective: a statistic of nodes.
        tightened: by the check before.

    """
    wanted = ~found.flat & (problem.weight > 0) & np.ones_like(found.settled)
    # Where the plan's beliefs are sure by far, the others are sure enough.
    wanted &= Z90 * np.sqrt(found.variance) > CLOSE * objective.half_width
    if len(problem.steps):
        wanted &= problem.defined
    widths = half_widths(problem, wanted, enough=SLACK * objective.half_width)
    easily = bool((widths <= objective.half_width).all())
    over = widths > SLACK * objective.half_width
    if not over.any():
        return Check(tightened, True, easily)
    # Relative to what is believed there now, which is at most what was to be reached.
    ratio = np.where(over, objective.half_width / np.maximum(widths, 1e-9), 1.0).clip(LEAST_RATIO)
    reached = (np.sqrt(found.variance) * Z90 / objective.half_width).clip(0.05, 1.0)
    stricter = np.where(over, (ratio * reached) ** 2, tightened).clip(1e-3, 1.0)
    return Check(stricter, False, False)
