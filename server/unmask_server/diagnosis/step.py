"""The step d of an algorithm at one node, as far as it can be known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Form, Loss
from unmask_server.diagnosis.believed import AnyBelieved
from unmask_server.diagnosis.continuation import Continuations
from unmask_server.diagnosis.gradients import UnboundedLossError, descent
from unmask_server.diagnosis.node import NodePosterior
from unmask_server.diagnosis.noise import noise_norm, noise_response
from unmask_server.diagnosis.support import TAIL_RESOLUTION

FloatArray = NDArray[np.float64]

SCORING_NOISE = 1e-5
"""Noise in nats that float32 log-probabilities always have (up to 4e-6 was seen between a warm and
a cold prefix cache of one engine)."""

_MANY = 100.0
"""Tokens of a continuation over which noise may add up."""
_SMALLEST_NORM = 1e-12
_LARGEST = 1e100
"""A step with a component beyond this (T_y / P_y of a token the student all but never takes) counts
as infinite: its square would be."""


@dataclass(frozen=True, slots=True)
class Step:
    """d = base + `ideal_weight` g at a node, or why there is none.

    Without `base`, weight and `unbounded` there are no data yet.
    """

    base: FloatArray | None = None
    """What does not depend on success: shape (m + 1,) where it is certain, else (size, m + 1)."""
    ideal_weight: float = 0.0
    """Of the expected policy gradient, which is the ideal gradient."""
    is_noise: bool = False
    """Whether |d| is not above what scoring noise makes of it."""
    unbounded: int | None = None
    """Index of the token that makes the loss infinite."""
    gain_bias: float = 0.0
    """By how much g.d of estimates from the same rollouts is too high."""

    @property
    def is_known(self) -> bool:
        """Whether there is a step."""
        return self.base is not None or self.ideal_weight > 0.0

    def draws(self, believed: AnyBelieved) -> FloatArray | None:
        """Draws of d given those of g, shape (m + 1,) where d is certain; None if there is none."""
        if self.ideal_weight > 0.0:
            along = self.ideal_weight * believed.gradient
            return along if self.base is None else self.base + along
        return self.base


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step is computed from; see `alignment.measure`."""

    p: FloatArray
    t: FloatArray | None
    observed: int | None = None
    advantage: float | None = None
    reward_std: float | None = None
    noise: float = 0.0
    continuations: Continuations | None = None
    """EXPECTED sequence losses only: after each token."""
    later: float | None = None
    """SAMPLED sequence losses only: the value of the observed trajectory's own continuation."""


def step(posterior: NodePosterior, algorithm: Algorithm, inputs: StepInputs) -> Step:
    """The step of `algorithm`."""
    if algorithm.is_rewarded and inputs.advantage is None:
        return Step()
    if not algorithm.needs_teacher:
        return _policy_step(posterior, algorithm, inputs)
    found = _teacher_step(posterior, replace(algorithm, reward_weight=0.0), inputs)
    if algorithm.reward_weight == 0.0 or found.base is None:
        return found
    rewarded = _policy_step(posterior, Algorithm(algorithm.reward_loss, algorithm.form), inputs)
    if not rewarded.is_known:
        return Step()
    weight, base = algorithm.reward_weight, found.base
    if rewarded.base is not None:
        base = base + weight * rewarded.base
    return replace(found, base=base, ideal_weight=weight * rewarded.ideal_weight, is_noise=False)


def _policy_step(posterior: NodePosterior, algorithm: Algorithm, inputs: StepInputs) -> Step:
    """The step of a policy gradient. Its P is the policy's as it samples, like the ideal one's."""
    if algorithm.form is Form.EXPECTED:
        if not posterior.has_data:
            return Step()
        std = inputs.reward_std if algorithm.loss is Loss.GRPO else None
        return Step(ideal_weight=1.0 if std is None else 1.0 / std)
    d = descent(algorithm, posterior.p, observed=inputs.observed, advantage=inputs.advantage)
    return Step(d, is_noise=float(np.linalg.norm(d)) <= _SMALLEST_NORM)


def noise_draws(posterior: NodePosterior) -> FloatArray:
    """Standard normal errors of log-ratios, shape (size, m + 1); the same for the same node."""
    shape = (posterior.size, len(posterior.p))
    # 2 sets this stream apart from those of `NodePosterior`.
    return np.random.default_rng((posterior.seed, 2)).standard_normal(shape)


def certain_step(algorithm: Algorithm, inputs: StepInputs) -> Step:
    """The part of a loss's step that teacher and student alone decide, noise aside.

    That is without a reward, and of EXPECTED sequence losses that of the token's own log-ratio.
    """
    if inputs.t is None:
        raise ValueError("this loss compares with a teacher: t is missing")
    p, t = inputs.p, _floor_tail(inputs.p, inputs.t)
    own = replace(algorithm, reward_weight=0.0)
    try:
        d = descent(own, p, t, observed=inputs.observed, later=inputs.later)
    except UnboundedLossError as error:
        return Step(unbounded=error.index)
    large = ~(np.abs(d) <= _LARGEST)
    if large.any():
        return Step(unbounded=int(large.argmax()))
    response = float(noise_norm(algorithm, p, t, observed=inputs.observed))
    tolerance = 2.0 * (SCORING_NOISE + inputs.noise) * response
    is_noise = float(np.linalg.norm(d)) <= tolerance + _SMALLEST_NORM
    return Step(d, is_noise=is_noise)


def _teacher_step(posterior: NodePosterior, algorithm: Algorithm, inputs: StepInputs) -> Step:
    sequential = algorithm.is_sequential
    if sequential and algorithm.form is Form.SAMPLED and inputs.later is None:
        return Step()
    found = certain_step(algorithm, inputs)
    if found.base is None or inputs.t is None:
        return found
    t = _floor_tail(inputs.p, inputs.t)
    if inputs.noise > 0.0 and (sequential or not found.is_noise):
        errors = inputs.noise * noise_draws(posterior)
        observed = None if inputs.observed is None else np.full(len(errors), inputs.observed)
        moved = noise_response(algorithm, inputs.p, t, errors, observed=observed)
        found = replace(found, base=found.base + moved)
    if sequential and algorithm.form is Form.EXPECTED:
        return _with_continuations(posterior, found, inputs)
    return found


def _with_continuations(posterior: NodePosterior, own: Step, inputs: StepInputs) -> Step:
    """The step with what follows each token added."""
    known = inputs.continuations
    if known is None or not known.has_data or own.base is None:
        return Step()
    later = known.draws(size=posterior.size, seed=posterior.seed)
    added = inputs.p * (later - (later @ inputs.p)[:, np.newaxis])
    # Where teacher and student are one model in one context, all log-ratios are rounding.
    largest = float(np.abs(known.mean).max() + np.sqrt(known.variance.max()))
    tolerance = _MANY * (SCORING_NOISE + inputs.noise)
    return Step(
        own.base + added,
        is_noise=own.is_noise and largest <= tolerance,
        gain_bias=known.gain_bias(posterior.p, inputs.p, posterior.counts.n * posterior.dispersion),
    )


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
