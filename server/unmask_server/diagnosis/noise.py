"""How far steps are off: by noise in log-ratios, and by training on one sampled token."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Form, Loss
from unmask_server.diagnosis.families import FAMILIES, LossInputs, restricted, take
from unmask_server.diagnosis.gradients import loss_inputs, observed_index, one_hot

FloatArray = NDArray[np.float64]


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
    inputs = loss_inputs(p, t, None, None, None)
    inputs = restricted(algorithm, inputs) if algorithm.top_k else inputs
    moved = FAMILIES[algorithm.loss].sensitivity(algorithm, inputs) * np.asarray(noise)
    if _is_sampled(algorithm):
        y = observed_index(observed)
        p_y, moved_y = take(np.broadcast_to(inputs.p, moved.shape), y), take(moved, y)
        per_token = np.divide(moved_y, p_y, out=np.zeros_like(moved_y), where=p_y > 0)
        change = per_token[..., np.newaxis] * (one_hot(y, inputs.p.shape[-1]) - inputs.p)
    else:
        change = moved - inputs.p * np.sum(moved, axis=-1, keepdims=True)
    result: FloatArray = change / algorithm.temperature
    return result


def noise_norm(
    algorithm: Algorithm, p: ArrayLike, t: ArrayLike, *, observed: ArrayLike | None = None
) -> FloatArray:
    """Root mean square of |`noise_response`| for independent errors of one nat; shape (...)."""
    inputs = loss_inputs(p, t, None, None, None)
    inputs = restricted(algorithm, inputs) if algorithm.top_k else inputs
    weights = FAMILIES[algorithm.loss].sensitivity(algorithm, inputs)
    p = np.broadcast_to(inputs.p, weights.shape)
    p_norm2 = np.sum(p * p, axis=-1)
    if _is_sampled(algorithm):
        y = observed_index(observed)
        p_y, w_y = take(p, y), take(weights, y)
        per_token = np.divide(w_y, p_y, out=np.zeros_like(w_y), where=p_y > 0)
        norm2 = per_token**2 * (1.0 - 2.0 * p_y + p_norm2)
    else:
        # Token j's error moves d by w_j (e_j - P).
        norm2 = np.sum(weights**2 * (1.0 - 2.0 * p + p_norm2[..., np.newaxis]), axis=-1)
    norm: FloatArray = np.sqrt(np.maximum(norm2, 0.0)) / algorithm.temperature
    return norm


def sample_variance(
    algorithm: Algorithm,
    p: ArrayLike,
    t: ArrayLike | None = None,
    *,
    s: ArrayLike | None = None,
    mean_reward: float = 0.0,
    reward_std: float | None = None,
    later: ArrayLike | None = None,
    later_variance: ArrayLike | None = None,
) -> float | None:
    """E|d_y - d|^2: how far the step of one sampled token lies from the expected step.

    y is drawn from P. With A_y of mean a_y and variance v_y (of the outcome or the continuation
    after y), it is sum_y P_y (a_y^2 + v_y) |e_y - P|^2 - |sum_y P_y a_y (e_y - P)|^2.

    Args:
        algorithm: the loss; its form does not matter.
        p: as in `descent`, shape (k,), as are t, s and later (which is of the EXPECTED form).
        t: see above.
        s: for policy gradients and rewards: chances of success.
        mean_reward: of the group, in [0, 1].
        reward_std: for GRPO: of the group, > 0; None leaves it unscaled.
        later: for sequence losses: see above.
        later_variance: of what one continuation adds to the advantage, after each token.

    Returns:
        None where the loss is no sum over sampled tokens (a top k, a cut of terms), where it is
        infinite, or where an input is missing.

    """
    if algorithm.top_k or algorithm.token_clip:
        return None
    inputs = loss_inputs(p, t, None, s, reward_std, later)
    family = FAMILIES[algorithm.loss]
    live = inputs.p > 0.0
    mean, variance = np.zeros(len(inputs.p)), np.zeros(len(inputs.p))
    if algorithm.needs_teacher:
        if inputs.t is None or (algorithm.is_sequential and inputs.later is None):
            return None
        if family.unbounded(algorithm, inputs).any():
            return None
        weighted = family.weighted(algorithm, inputs)
        if algorithm.is_sequential and algorithm.single_step:
            weighted = inputs.p * later_of(inputs)
        np.divide(weighted, inputs.p, out=mean, where=live)
        if later_variance is not None:
            variance += np.asarray(later_variance, dtype=np.float64)
        mean, variance = mean / algorithm.temperature, variance / algorithm.temperature**2
    weight = algorithm.reward_weight if algorithm.needs_teacher else 1.0 / algorithm.temperature
    if weight > 0.0:
        if inputs.s is None:
            return None
        loss = algorithm.reward_loss if algorithm.needs_teacher else algorithm.loss
        if loss is Loss.GRPO:
            weight = weight / reward_std if reward_std is not None else weight
        mean = mean + weight * (inputs.s - mean_reward)
        variance = variance + weight**2 * inputs.s * (1.0 - inputs.s)
    norm2 = 1.0 - 2.0 * inputs.p + float(inputs.p @ inputs.p)
    step = inputs.p * (mean - float(inputs.p @ mean))
    with np.errstate(over="ignore", invalid="ignore"):
        second = float((inputs.p * norm2) @ (np.where(live, mean, 0.0) ** 2 + variance))
        found = second - float(step @ step)
    return max(0.0, found) if math.isfinite(found) else None


def later_of(inputs: LossInputs) -> FloatArray:
    """What the tokens after each token add to its advantage.

    Raises:
        ValueError: it is not given.

    """
    if inputs.later is None:
        raise ValueError("a sequence loss needs what the later tokens add")
    return np.broadcast_to(inputs.later, inputs.p.shape)


def _is_sampled(algorithm: Algorithm) -> bool:
    """Whether scoring noise enters through the observed token's own log-ratio alone."""
    exact = algorithm.is_sequential and algorithm.single_step
    return algorithm.form is Form.SAMPLED and not exact
