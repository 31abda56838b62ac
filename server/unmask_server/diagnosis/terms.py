"""What sets of nodes add up: a node's terms, drawn from what is known of success there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.node import NodePosterior
from unmask_server.diagnosis.step import Step, noise_draws

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
    p: FloatArray
    t: FloatArray | None
    noise: float


def draw_terms(inputs: DrawInputs) -> Draws:
    """A node's terms; None where d, or all data, lack."""
    posterior, taken, cosine = inputs.posterior, inputs.taken, inputs.cosine
    norm2 = None if taken.draws is None else squared_norm(taken.draws)
    if not posterior.has_data:
        return Draws(cosine, None, None, norm2, None)
    ideal = posterior.ideal_norm2_draws
    gained = advantage_draws(posterior, posterior.unshrunk, inputs.p, inputs.t, inputs.noise)
    if taken.draws is not None and norm2 is not None and taken.follows_ideal:
        # d = c g: everything is a multiple of |g|^2, with its bias taken out.
        mean = float(posterior.gradient_norm2.mean())
        c = math.sqrt(float(norm2.mean()) / mean) if mean > 0.0 else 0.0
        return Draws(cosine, c * ideal, ideal, c**2 * ideal, gained, inputs.gain, norm2)
    gain = product(posterior.unshrunk_gradient, taken.draws)
    return Draws(cosine, gain, ideal, norm2, gained, inputs.gain, norm2)


def product(g: FloatArray, d: FloatArray | None) -> FloatArray | None:
    """Draws of g.d, for one d or for one in each draw."""
    if d is None:
        return None
    result: FloatArray = g @ d if d.ndim == 1 else np.einsum("ij,ij->i", g, d)
    return result


def squared_norm(d: FloatArray) -> FloatArray:
    """Squared norms: shape () of one step, (size,) of draws."""
    result: FloatArray = np.einsum("...j,...j->...", d, d)
    return result


def advantage_draws(
    posterior: NodePosterior, s: FloatArray, p: FloatArray, t: FloatArray | None, noise: float
) -> FloatArray | None:
    """Draws of sum_j (T_j - P_j) s_j, given draws of s; None without a teacher."""
    if t is None:
        return None
    gained: FloatArray = s @ (t - p)
    if noise > 0.0:
        moved = t * (noise * noise_draws(posterior))
        gained = gained + np.einsum("ij,ij->i", s, moved - t * moved.sum(axis=1, keepdims=True))
    return gained
