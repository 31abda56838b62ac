"""The ideal gradient at a node and the steps that losses take there.

Signs: losses are minimised, so what is compared with the ideal *ascent* direction g is the
*descent* direction d = -dL/dz, z the student's logits. Every array's last axis is the support (m
candidates and the tail bucket); leading axes broadcast.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Form
from unmask_server.diagnosis.families import FAMILIES, LossInputs, restricted

FloatArray = NDArray[np.float64]


class UnboundedLossError(ValueError):
    """The loss is infinite: the teacher gives zero to a token that the student may take."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the loss is infinite at index {index} of the support")
        self.index = index
        """The likeliest such token, as an index into the support."""


def ideal_gradient(p: ArrayLike, s: ArrayLike) -> FloatArray:
    """g_j = P_j (s_j - sum_k P_k s_k): the logit update that most increases success.

    Args:
        p: probabilities under the sampling policy, shape (..., k).
        s: chance of success after each token, in [0, 1], shape (..., k).

    Returns:
        Shape (..., k); sums to zero as far as `p` sums to one. Source: arXiv 2605.10889.

    """
    p, s = np.asarray(p, dtype=np.float64), np.asarray(s, dtype=np.float64)
    result: FloatArray = p * (s - np.sum(p * s, axis=-1, keepdims=True))
    return result


def descent(
    algorithm: Algorithm,
    p: ArrayLike,
    t: ArrayLike | None = None,
    *,
    observed: ArrayLike | None = None,
    advantage: ArrayLike | None = None,
    s: ArrayLike | None = None,
    reward_std: float | None = None,
    later: ArrayLike | None = None,
) -> FloatArray:
    """d = -dL/dz at a node, z the student's logits before the loss's temperature divides them.

    Args:
        algorithm: the loss, its form and settings. `student_share` is none of a node's concern.
        p: the student's probabilities at the loss's temperature, shape (..., k).
        t: the teacher's, likewise; needed if `algorithm.needs_teacher`.
        observed: SAMPLED only: index of the observed token in the support, shape (...).
        advantage: SAMPLED policy gradients, and SAMPLED with a reward: (r - mean r) for Dr. GRPO,
            that over std r for GRPO; shape (...).
        s: EXPECTED policy gradients, and EXPECTED with a reward: chances of success, shape
            (..., k).
        reward_std: EXPECTED GRPO only: std r, > 0; without it the step is left unscaled.
        later: sequence losses only, see `families.minillm`: EXPECTED, shape (..., k), SAMPLED,
            shape (...). Without it, EXPECTED is the part of the token's own log-ratio.

    Returns:
        Shape (..., k), finite.

    Raises:
        UnboundedLossError: the step is infinite somewhere.
        ValueError: an input that this algorithm needs is missing.

    """
    inputs = loss_inputs(p, t, advantage, s, reward_std, later)
    family = FAMILIES[algorithm.loss]
    if algorithm.top_k:
        inputs = restricted(algorithm, inputs)
    step = np.zeros(())
    if algorithm.form is Form.SAMPLED:
        y = observed_index(observed)
        a_y = family.sampled(algorithm, inputs, y)
        if not np.all(np.isfinite(a_y)):
            raise UnboundedLossError(int(y.reshape(-1)[np.argmin(np.isfinite(a_y).reshape(-1))]))
        step = np.multiply(a_y[..., np.newaxis], one_hot(y, inputs.p.shape[-1]) - inputs.p)
    if algorithm.form is Form.EXPECTED or (algorithm.is_sequential and algorithm.single_step):
        whole = inputs if algorithm.form is Form.EXPECTED else replace(inputs, later=None)
        step = step + _expected(algorithm, whole)
    result: FloatArray = step / algorithm.temperature
    if algorithm.reward_weight > 0.0:
        reward = Algorithm(algorithm.reward_loss, algorithm.form)
        rewarded = descent(
            reward, p, observed=observed, advantage=advantage, s=s, reward_std=reward_std
        )
        result = result + algorithm.reward_weight * rewarded
    return result


def _expected(algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
    """P_j (A_j - sum_k P_k A_k)."""
    family = FAMILIES[algorithm.loss]
    infinite = family.unbounded(algorithm, inputs)
    if infinite.any():
        masses = np.where(infinite, inputs.p, -1.0).reshape(-1, inputs.p.shape[-1])
        raise UnboundedLossError(int(np.argmax(masses.max(axis=0))))
    weighted = family.weighted(algorithm, inputs)
    step: FloatArray = weighted - inputs.p * np.sum(weighted, axis=-1, keepdims=True)
    return step


def flat_bound(p: ArrayLike) -> float:
    """|g| is at most sqrt(2) (1 - max P), whatever the chances of success are.

    Args:
        p: probabilities under the sampling policy, shape (k,).

    """
    largest = float(np.max(np.asarray(p, dtype=np.float64)))
    return math.sqrt(2.0) * max(0.0, 1.0 - largest)


def loss_inputs(
    p: ArrayLike,
    t: ArrayLike | None,
    advantage: ArrayLike | None,
    s: ArrayLike | None,
    reward_std: float | None,
    later: ArrayLike | None = None,
) -> LossInputs:
    """The inputs of a loss as arrays. Raises: ValueError, `reward_std` is not above 0."""

    def array(values: ArrayLike | None) -> FloatArray | None:
        return None if values is None else np.asarray(values, dtype=np.float64)

    if reward_std is not None and not reward_std > 0.0:
        raise ValueError(f"reward_std {reward_std} is not above 0")
    return LossInputs(
        p=np.asarray(p, dtype=np.float64),
        t=array(t),
        s=array(s),
        advantage=array(advantage),
        reward_std=reward_std,
        later=array(later),
    )


def observed_index(observed: ArrayLike | None) -> NDArray[np.intp]:
    """The index of the observed token. Raises: ValueError, there is none."""
    if observed is None:
        raise ValueError("the sampled form needs the observed token")
    return np.asarray(observed, dtype=np.intp)


def one_hot(y: NDArray[np.intp], size: int) -> FloatArray:
    """e_y, shape (..., size)."""
    result: FloatArray = np.equal(y[..., np.newaxis], np.arange(size)).astype(np.float64)
    return result
