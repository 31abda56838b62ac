"""What a growth is for: a statistic, and how precisely it is wanted."""

from __future__ import annotations

import enum
from dataclasses import dataclass

FLAT_NORM = 0.05
"""Default of `Objective.flat_norm`."""


class Statistic(enum.Enum):
    """Which numbers must become precise. g is the ideal gradient, d the step of a loss."""

    COSINE = "cosine"
    """cos(g, d) at every node by itself."""
    MEAN_COSINE = "mean_cosine"
    """Its mean over all nodes that are not flat."""
    POOLED_COSINE = "pooled_cosine"
    """sum g.d / sqrt(sum |g|^2 sum |d|^2) over all nodes."""
    GAIN_PER_UNIT_STEP = "gain_per_unit_step"
    """sum g.d / sqrt(sum |d|^2) over all nodes."""
    RANKING = "ranking"
    """Which teacher has the highest gain per unit step, of those under the same algorithm."""

    @property
    def is_of_nodes(self) -> bool:
        """Whether every node has one of its own."""
        return self is Statistic.COSINE


@dataclass(frozen=True, slots=True)
class Objective:
    """A statistic and the precision at which it is good enough."""

    statistic: Statistic
    half_width: float
    """Half of the 90% interval's width; > 0. For RANKING: of a difference, at which a lead that is
    still not established no longer matters."""
    flat_norm: float = FLAT_NORM
    """A node is settled without a cosine once |g| is below this with 95% certainty: success there
    changes by less than so much along a logit step of length one."""
    confidence: float = 0.95
    """For RANKING: the probability that the teacher named best is the best, in (0.5, 1)."""

    @property
    def pilot(self) -> int:
        """Rollouts that each node has before anything is concluded from what they say."""
        return 8 if self.statistic.is_of_nodes else 2
