"""A value and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.9
"""Posterior mass of every interval; the rest is split equally."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Posterior median, 5% and 95% quantiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: NDArray[np.float64]) -> Interval:
        """Equal-tailed interval of draws, shape (size,); linear between order statistics."""
        # Sorting a thousand numbers is several times faster than np.quantile.
        ordered = np.sort(draws)
        tail = (1.0 - LEVEL) / 2.0
        return cls(_at(ordered, 0.5), _at(ordered, tail), _at(ordered, 1.0 - tail))

    @classmethod
    def point(cls, value: float) -> Interval:
        """A value without spread."""
        return cls(value, value, value)

    @property
    def width(self) -> float:
        """From low to high."""
        return self.high - self.low


def _at(ordered: NDArray[np.float64], quantile: float) -> float:
    place = quantile * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    lower, upper = float(ordered[below]), float(ordered[above])
    return lower + (place - below) * (upper - lower)
