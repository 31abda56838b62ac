"""The step d of an algorithm at one node, as far as it can be known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Form
from unmask_server.diagnosis.gradients import (
    UnboundedLossError,
    descent,
    noise_norm,
    noise_response,
)
from unmask_server.diagnosis.node import NodePosterior
from unmask_server.diagnosis.support import TAIL_RESOLUTION

FloatArray = NDArray[np.float64]

SCORING_NOISE = 1e-5
"""Noise in nats that float32 log-probabilities always have (up to 4e-6 was seen between a warm and
a cold prefix cache of one engine)."""

_SMALLEST_NORM = 1e-12
_LARGEST = 1e100
"""A step with a component beyond this (T_y / P_y of a token the student all but never takes) counts
as infinite: its square would be."""


@dataclass(frozen=True, slots=True)
class Step:
    """d at a node, or why there is none (`draws` and `unbounded` both None: no data yet)."""

    draws: FloatArray | None = None
    """Shape (m + 1,) where d is certain, else (size, m + 1)."""
    is_noise: bool = False
    """Whether |d| is not above what scoring noise makes of it."""
    follows_ideal: bool = False
    """Whether d is a multiple of g by its definition."""
    unbounded: int | None = None
    """Index of the token that makes the loss infinite."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step is computed from; see `alignment.measure`."""

    p: FloatArray
    t: FloatArray | None
    observed: int | None
    advantage: float | None
    reward_std: float | None
    noise: float


def step(posterior: NodePosterior, algorithm: Algorithm, inputs: StepInputs) -> Step:
    """The step of `algorithm`."""
    if algorithm.needs_teacher:
        return _teacher_step(posterior, algorithm, inputs)
    if algorithm.form is Form.EXPECTED:
        if not posterior.has_data:
            return Step()
        d = descent(algorithm, posterior.p, s=posterior.success, reward_std=inputs.reward_std)
        return Step(d, follows_ideal=True)
    if inputs.advantage is None:
        return Step()
    d = descent(algorithm, inputs.p, observed=inputs.observed, advantage=inputs.advantage)
    return Step(d, is_noise=float(np.linalg.norm(d)) <= _SMALLEST_NORM)


def noise_draws(posterior: NodePosterior) -> FloatArray:
    """Standard normal errors of log-ratios, shape (size, m + 1); the same for the same node."""
    shape = (posterior.size, len(posterior.p))
    # 2 sets this stream apart from those of `NodePosterior`.
    return np.random.default_rng((posterior.seed, 2)).standard_normal(shape)


def certain_step(algorithm: Algorithm, inputs: StepInputs) -> Step:
    """The step of a loss with a teacher, without what the engine's noise does to it."""
    if inputs.t is None:
        raise ValueError("this loss compares with a teacher: t is missing")
    p, t = inputs.p, _floor_tail(inputs.p, inputs.t)
    try:
        d = descent(algorithm, p, t, observed=inputs.observed)
    except UnboundedLossError as error:
        return Step(unbounded=error.index)
    if np.abs(d).max() > _LARGEST:
        return Step(unbounded=int(np.abs(d).argmax()))
    response = float(noise_norm(algorithm, p, t, observed=inputs.observed))
    tolerance = 2.0 * (SCORING_NOISE + inputs.noise) * response
    return Step(d, is_noise=float(np.linalg.norm(d)) <= tolerance + _SMALLEST_NORM)


def _teacher_step(posterior: NodePosterior, algorithm: Algorithm, inputs: StepInputs) -> Step:
    found = certain_step(algorithm, inputs)
    if found.draws is None or found.is_noise or inputs.noise <= 0.0 or inputs.t is None:
        return found
    t = _floor_tail(inputs.p, inputs.t)
    errors = inputs.noise * noise_draws(posterior)
    observed = None if inputs.observed is None else np.full(len(errors), inputs.observed)
    return Step(found.draws + noise_response(algorithm, inputs.p, t, errors, observed=observed))


def _floor_tail(p: FloatArray, t: FloatArray) -> FloatArray:
    """T with a tail that is at least what its rounding hides, and no more than the student's.

    Without this a sharp teacher's tail, lost in rounding, would make reverse KL infinite.
    """
    least = min(float(p[-1]), TAIL_RESOLUTION)
    if t[-1] >= least:
        return t
    floored = t.copy()
    floored[-1] = least
    return floored
