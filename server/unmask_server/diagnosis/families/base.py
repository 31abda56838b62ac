"""What a family of losses has to say about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss may look at. All arrays broadcast over leading axes; the last is the support."""

    p: FloatArray
    """The student's probabilities, at the loss's temperature."""
    t: FloatArray | None = None
    """The teacher's, likewise."""
    s: FloatArray | None = None
    """Chance of success after each token, in [0, 1]."""
    advantage: FloatArray | None = None
    """Advantage of the observed trajectory; no support axis."""
    reward_std: float | None = None
    """Standard deviation of the rewards in the group, > 0."""


class Family(Protocol):
    """Losses whose gradient at a node is dL/dz_j = P_j (f_j - sum_k P_k f_k).

    A family answers in terms of the token advantages A_j = -f_j: the expected step is
    P_j (A_j - sum_k P_k A_k), the step of a sampled token y is A_y (e_y - P).
    """

    def weighted(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """P_j A_j, finite also where P_j = 0; infinite only where `unbounded` is true."""
        ...

    def sampled(self, algorithm: Algorithm, inputs: LossInputs, y: NDArray[np.intp]) -> FloatArray:
        """A_y of observed tokens `y` (indices into the support, one per leading position)."""
        ...

    def unbounded(self, algorithm: Algorithm, inputs: LossInputs) -> BoolArray:
        """At which tokens A_j is infinite; in the expected form only if they carry weight."""
        ...

    def sensitivity(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """|dA_j / d log T_j| P_j: how far noise in a log-ratio moves the weighted advantage."""
        ...


def take(values: FloatArray, y: NDArray[np.intp]) -> FloatArray:
    """Entries `y`, shape (...), of the last axis of `values`, shape (..., k)."""
    index = np.broadcast_to(y, values.shape[:-1])[..., np.newaxis]
    taken: FloatArray = np.take_along_axis(values, index, axis=-1)[..., 0]
    return taken
