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
    bucket: BoolArray | None = None
    """Tokens whose terms are one: those outside of a top k with a tail."""
    later: FloatArray | None = None
    """What a sequence loss adds to each token's advantage for the tokens after it, see
    `families.minillm`; in its SAMPLED form of the observed trajectory alone, without the last axis.
    """


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


def teacher(inputs: LossInputs) -> FloatArray:
    """The teacher's probabilities.

    Raises:
        ValueError: there are none.

    """
    if inputs.t is None:
        raise ValueError("this loss compares with a teacher: t is missing")
    return inputs.t


def log_ratio(p: FloatArray, t: FloatArray, clip: float) -> FloatArray:
    """log T - log P, cut to [-clip, clip] unless that is 0; 0 where P = 0."""
    p, t = np.broadcast_arrays(p, t)
    result = np.zeros(p.shape)
    live = p > 0.0
    with np.errstate(divide="ignore"):
        result[live] = np.log(t[live]) - np.log(p[live])
    return np.clip(result, -clip, clip) if clip > 0.0 else result


def times_log_ratio(p: FloatArray, q: FloatArray, clip: float = 0.0) -> FloatArray:
    """p log(q / p), 0 where p = 0, minus infinity where only q = 0 and nothing is clipped."""
    ratio = log_ratio(p, q, clip)
    result: FloatArray = np.multiply(p, ratio, out=np.zeros_like(ratio), where=p > 0.0)
    return result
