"""Draws of success and what follows from them: a node's own, or as a teacher changes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.gradients import ideal_gradient

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Believed:
    """Draws of success and of the ideal gradient."""

    p: FloatArray
    """The sampling policy's probabilities, shape (m + 1,), tail last."""
    success: FloatArray
    """Draws of s, shape (size, m + 1)."""

    @cached_property
    def gradient(self) -> FloatArray:
        """Draws of g, shape (size, m + 1)."""
        return ideal_gradient(self.p, self.success)

    @cached_property
    def gradient_norm2(self) -> FloatArray:
        """Draws of |g|^2, shape (size,)."""
        g = self.gradient
        result: FloatArray = np.einsum("ij,ij->i", g, g)
        return result

    def gain(self, d: FloatArray) -> FloatArray:
        """Draws of g.d, for one d or for one in each draw; shape (size,)."""
        result: FloatArray = _product(self.gradient, d)
        return result

    def weighed(self, weights: FloatArray) -> FloatArray:
        """Draws of sum_j w_j s_j, shape (size,)."""
        result: FloatArray = self.success @ weights
        return result


@dataclass(frozen=True)
class Replaced:
    """The same where some draws are others; most things need not be computed again."""

    base: Believed
    rows: NDArray[np.int64]
    """Which draws are replaced."""
    instead: Believed
    """By what, one row for each of them."""

    @cached_property
    def success(self) -> FloatArray:
        """See `Believed`; likewise below."""
        return self._with(self.base.success, self.instead.success)

    @cached_property
    def gradient(self) -> FloatArray:
        """Draws of g."""
        return self._with(self.base.gradient, self.instead.gradient)

    @cached_property
    def gradient_norm2(self) -> FloatArray:
        """Draws of |g|^2."""
        return self._with(self.base.gradient_norm2, self.instead.gradient_norm2)

    def gain(self, d: FloatArray) -> FloatArray:
        """Draws of g.d."""
        if d.ndim > 1:
            return _product(self.gradient, d)
        return self._with(self.base.gain(d), self.instead.gain(d))

    def weighed(self, weights: FloatArray) -> FloatArray:
        """Draws of sum_j w_j s_j."""
        return self._with(self.base.weighed(weights), self.instead.weighed(weights))

    def _with(self, all_: FloatArray, some: FloatArray) -> FloatArray:
        result = all_.copy()
        result[self.rows] = some
        return result


AnyBelieved = Believed | Replaced


def _product(g: FloatArray, d: FloatArray) -> FloatArray:
    result: FloatArray = g @ d if d.ndim == 1 else np.einsum("ij,ij->i", g, d)
    return result
