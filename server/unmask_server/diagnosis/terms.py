"""What sets of nodes add up: a node's terms, drawn from what is known of success there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.believed import AnyBelieved
from unmask_server.diagnosis.node import NodePosterior
from unmask_server.diagnosis.step import Step, StepInputs, noise_draws

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draws:
    """What sets of nodes add up, beside an `Alignment`: shape (size,), or () where certain.

    The cosine and what is called shrunk are posterior draws; all else is around the unshrunk
    estimates, see `NodePosterior.unshrunk_gradient`.
    """

    cosine: FloatArray | None
    gain: FloatArray | None
    ideal_norm2: FloatArray | None
    descent_norm2: FloatArray | None
    advantage: FloatArray | None
    shrunk_gain: FloatArray | None = None
    """g.d of the posterior draws. Unshrunk draws lie around the plug-in estimate: where a node was
    chosen by its estimate, they repeat what flattered it. These allow for it, as far as the prior
    describes the node."""
    shrunk_descent_norm2: FloatArray | None = None
    """|d|^2 that goes with `shrunk_gain`."""


@dataclass(frozen=True, slots=True)
class DrawInputs:
    """What the terms are computed from; see `alignment.measure`."""

    posterior: NodePosterior
    taken: Step
    cosine: FloatArray | None
    """Posterior draws, as the alignment states them; likewise the gain."""
    gain: FloatArray | None
    step: StepInputs
    weight: float
    """The step's size is multiplied by it."""
    believed: AnyBelieved
    """The posterior draws behind cosine and gain."""


def draw_terms(inputs: DrawInputs) -> Draws:
    """A node's terms; None where d, or all data, lack."""
    posterior, taken, cosine = inputs.posterior, inputs.taken, inputs.cosine
    w, c = inputs.weight, taken.ideal_weight
    base2 = None if taken.base is None else _norm2(taken.base)
    if not posterior.has_data:
        return Draws(cosine, None, None, None if base2 is None else w**2 * base2, None)
    ideal = posterior.ideal_norm2_draws
    step = inputs.step
    unshrunk = posterior.around_estimate
    gained = advantage_draws(posterior, unshrunk, step.p, step.t, step.noise)
    if not taken.is_known:
        return Draws(cosine, None, ideal, None, gained)
    # d = base + c g, where c g adds multiples of |g|^2 with its bias taken out.
    along = None if taken.base is None else unshrunk.gain(taken.base)
    gain, norm2 = c * ideal, c**2 * ideal
    if along is not None and base2 is not None:
        along = along - taken.gain_bias
        gain, norm2 = gain + along, norm2 + 2.0 * c * along + base2
        if c == 0.0:
            norm2 = base2
    d = taken.draws(inputs.believed)
    return Draws(
        cosine,
        w * gain,
        ideal,
        w**2 * norm2,
        gained,
        None if inputs.gain is None else w * inputs.gain,
        None if d is None else w**2 * squared_norm(d),
    )


def _norm2(base: FloatArray) -> FloatArray:
    """|base|^2, around its estimate less the variance that is in it; shape () or (size,).

    Draws lie around an estimate that is itself as far from the truth: the variance is in it twice.
    """
    norm2 = squared_norm(base)
    if base.ndim == 1:
        return norm2
    mean = base.mean(axis=0)
    result: FloatArray = norm2 - 2.0 * (float(norm2.mean()) - float(mean @ mean))
    return result


def squared_norm(d: FloatArray) -> FloatArray:
    """Squared norms: shape () of one step, (size,) of draws."""
    result: FloatArray = np.einsum("...j,...j->...", d, d)
    return result


def advantage_draws(
    posterior: NodePosterior,
    believed: AnyBelieved,
    p: FloatArray,
    t: FloatArray | None,
    noise: float,
) -> FloatArray | None:
    """Draws of sum_j (T_j - P_j) s_j, given draws of s; None without a teacher."""
    if t is None:
        return None
    gained = believed.weighed(t - p)
    if noise > 0.0:
        moved = t * (noise * noise_draws(posterior))
        moved = moved - t * moved.sum(axis=1, keepdims=True)
        gained = gained + np.einsum("ij,ij->i", believed.success, moved)
    return gained
