"""The ideal gradient at a node and the steps that losses take there.

Signs: losses are minimised, so what is compared with the ideal *ascent* direction g is the
*descent* direction d = -dL/dz, z the student's logits. Every array's last axis is the support (m
candidates and the tail bucket); leading axes broadcast.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Form
from unmask_server.diagnosis.families import FAMILIES, LossInputs, take

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
) -> FloatArray:
    """d = -dL/dz at a node, z the student's logits before the loss's temperature divides them.

    Args:
        algorithm: the loss, its form and settings.
        p: the student's probabilities at the loss's temperature, shape (..., k).
        t: the teacher's, likewise; needed if `algorithm.needs_teacher`.
        observed: SAMPLED only: index of the observed token in the support, shape (...).
        advantage: SAMPLED policy gradients only: (r - mean r) for Dr. GRPO, that over std r for
            GRPO; shape (...).
        s: EXPECTED policy gradients only: chances of success, shape (..., k).
        reward_std: EXPECTED GRPO only: std r, > 0; without it the step is left unscaled.

    Returns:
        Shape (..., k), finite.

    Raises:
        UnboundedLossError: the step is infinite somewhere.
        ValueError: an input that this algorithm needs is missing.

    """
    inputs = _inputs(p, t, advantage, s, reward_std)
    family = FAMILIES[algorithm.loss]
    if algorithm.form is Form.SAMPLED:
        y = _observed(observed)
        a_y = family.sampled(algorithm, inputs, y)
        if not np.all(np.isfinite(a_y)):
            raise UnboundedLossError(int(y.reshape(-1)[np.argmin(np.isfinite(a_y).reshape(-1))]))
        step = np.multiply(a_y[..., np.newaxis], _one_hot(y, inputs.p.shape[-1]) - inputs.p)
    else:
        infinite = family.unbounded(algorithm, inputs)
        if infinite.any():
            masses = np.where(infinite, inputs.p, -1.0).reshape(-1, inputs.p.shape[-1])
            raise UnboundedLossError(int(np.argmax(masses.max(axis=0))))
        weighted = family.weighted(algorithm, inputs)
        step = weighted - inputs.p * np.sum(weighted, axis=-1, keepdims=True)
    result: FloatArray = step / algorithm.temperature
    return result


def noise_response(
    algorithm: Algorithm,
    p: ArrayLike,
    t: ArrayLike,
    noise: ArrayLike,
    *,
    observed: ArrayLike | None = None,
) -> FloatArray:
    """How errors in the log-ratios log T_j - log P_j move d, to first order.

    Args:
        algorithm: a loss with a teacher.
        p: as in `descent`.
        t: as in `descent`.
        noise: the errors in nats, shape (..., k).
        observed: as in `descent`.

    Returns:
        The change of d (up to its sign, the same for all tokens), shape (..., k).

    """
    inputs = _inputs(p, t, None, None, None)
    moved = FAMILIES[algorithm.loss].sensitivity(algorithm, inputs) * np.asarray(noise)
    if algorithm.form is Form.SAMPLED:
        y = _observed(observed)
        p_y, moved_y = take(np.broadcast_to(inputs.p, moved.shape), y), take(moved, y)
        per_token = np.divide(moved_y, p_y, out=np.zeros_like(moved_y), where=p_y > 0)
        change = per_token[..., np.newaxis] * (_one_hot(y, inputs.p.shape[-1]) - inputs.p)
    else:
        change = moved - inputs.p * np.sum(moved, axis=-1, keepdims=True)
    result: FloatArray = change / algorithm.temperature
    return result


def noise_norm(
    algorithm: Algorithm, p: ArrayLike, t: ArrayLike, *, observed: ArrayLike | None = None
) -> FloatArray:
    """Root mean square of |`noise_response`| for independent errors of one nat; shape (...)."""
    inputs = _inputs(p, t, None, None, None)
    weights = FAMILIES[algorithm.loss].sensitivity(algorithm, inputs)
    p = inputs.p
    p_norm2 = np.sum(p * p, axis=-1)
    if algorithm.form is Form.SAMPLED:
        y = _observed(observed)
        p_y, w_y = take(p, y), take(weights, y)
        per_token = np.divide(w_y, p_y, out=np.zeros_like(w_y), where=p_y > 0)
        norm2 = per_token**2 * (1.0 - 2.0 * p_y + p_norm2)
    else:
        # Token j's error moves d by w_j (e_j - P).
        norm2 = np.sum(weights**2 * (1.0 - 2.0 * p + p_norm2[..., np.newaxis]), axis=-1)
    norm: FloatArray = np.sqrt(np.maximum(norm2, 0.0)) / algorithm.temperature
    return norm


def flat_bound(p: ArrayLike) -> float:
    """|g| is at most sqrt(2) (1 - max P), whatever the chances of success are.

    Args:
        p: probabilities under the sampling policy, shape (k,).

    """
    largest = float(np.max(np.asarray(p, dtype=np.float64)))
    return math.sqrt(2.0) * max(0.0, 1.0 - largest)


def _inputs(
    p: ArrayLike,
    t: ArrayLike | None,
    advantage: ArrayLike | None,
    s: ArrayLike | None,
    reward_std: float | None,
) -> LossInputs:
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
    )


def _observed(observed: ArrayLike | None) -> NDArray[np.intp]:
    if observed is None:
        raise ValueError("the sampled form needs the observed token")
    return np.asarray(observed, dtype=np.intp)


def _one_hot(y: NDArray[np.intp], size: int) -> FloatArray:
    result: FloatArray = np.equal(y[..., np.newaxis], np.arange(size)).astype(np.float64)
    return result
