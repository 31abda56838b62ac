"""How a teacher's step aligns with the ideal gradient at a node, and whether one can tell.

Status, the first that holds:

1. UNBOUNDED: the loss is infinite (the teacher gives zero to a token the student may take).
2. NO_SIGNAL: |d| is not above what scoring noise alone would make of it.
3. FLAT by the bound: sqrt(2) (1 - max P) < `FLAT_TOLERANCE`, no rollout needed.
4. NO_DATA: no rollout yet.
5. FLAT by the data: they cannot tell g from zero (`NodePosterior.tells_gradient`).
6. LOW_COVERAGE: too much of the student's or the teacher's mass is outside of the candidates.
7. OK.

A cosine is given only with OK and LOW_COVERAGE; what adds up over nodes (gain, norms, advantage)
wherever it is known, because a set of flat nodes may be anything but flat.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.node import FLAT_TOLERANCE, NodePosterior
from unmask_server.diagnosis.step import Step, StepInputs, noise_draws, step
from unmask_server.diagnosis.support import Support, covered_mass

FloatArray = NDArray[np.float64]

MIN_COVERAGE = 0.9
"""Default of the mass, of student and teacher, that the candidates must cover."""


class Status(enum.Enum):
    """Whether a score can be read as one; see the module for which comes first."""

    OK = "ok"
    FLAT = "flat"
    NO_SIGNAL = "no_signal"
    LOW_COVERAGE = "low_coverage"
    UNBOUNDED = "unbounded"
    NO_DATA = "no_data"

    @property
    def is_scored(self) -> bool:
        """Whether there is a cosine."""
        return self in (Status.OK, Status.LOW_COVERAGE)


@dataclass(frozen=True, slots=True)
class Alignment:
    """One teacher under one algorithm at one node. No field is ever NaN or infinite."""

    status: Status
    cosine: Interval | None
    """cos(g, d), in [-1, 1]; None unless `status.is_scored`."""
    p_positive: float | None
    """Posterior probability that the cosine is above zero; None where the cosine is."""
    gain: Interval | None
    """g.d: first-order change of success along the step; None where d or all data lack."""
    advantage: Interval | None
    """sum_j (T_j - P_j) s_j; None without a teacher or data. P is the student's at the loss's
    temperature, as T is."""
    ideal_norm2: float | None
    """|g|^2 less its estimation variance: not above zero where data cannot tell; None without."""
    descent_norm2: float | None
    """|d|^2; None where d is unknown."""
    flat_bound: float
    """|g| is at most this, whatever the chances of success are."""
    effective_support: float
    """1 / sum P^2 over the candidates."""
    covered_student: float
    """Mass on the candidates, in [0, 1]: the lesser of the sampling policy's and the loss's P."""
    covered_teacher: float | None
    """The teacher's, likewise; None without a teacher."""
    unbounded_id: int | None
    """For UNBOUNDED: the likeliest token that the teacher gives zero."""

    @property
    def ideal_norm_is_known(self) -> bool:
        """Whether what is left of |g|^2 is above zero."""
        return self.ideal_norm2 is not None and self.ideal_norm2 > 0.0


@dataclass(frozen=True, slots=True)
class Draws:
    """What sets of nodes add up, beside an `Alignment`: shape (size,), or () where certain.

    All but the cosine are around the unshrunk estimates, see `NodePosterior.unshrunk_gradient`.
    """

    cosine: FloatArray | None
    gain: FloatArray | None
    ideal_norm2: FloatArray | None
    descent_norm2: FloatArray | None
    advantage: FloatArray | None


@dataclass(frozen=True)
class Measured:
    """An alignment, and the draws behind it where somebody asks for them."""

    alignment: Alignment
    draw: Callable[[], Draws]
    """Makes `draws`."""

    @cached_property
    def draws(self) -> Draws:
        """What sets of nodes add up."""
        # One node's answer has no use for them; they are a fifth of its cost.
        return self.draw()


def align(
    posterior: NodePosterior,
    algorithm: Algorithm,
    p: FloatArray,
    t: FloatArray | None = None,
    *,
    ids: NDArray[np.int32],
    observed: int | None = None,
    advantage: float | None = None,
    reward_std: float | None = None,
    min_coverage: float = MIN_COVERAGE,
    noise: float = 0.0,
) -> Alignment:
    """The alignment of one step; see `measure` for the arguments."""
    return measure(
        posterior,
        algorithm,
        p,
        t,
        ids=ids,
        observed=observed,
        advantage=advantage,
        reward_std=reward_std,
        min_coverage=min_coverage,
        noise=noise,
    ).alignment


def measure(
    posterior: NodePosterior,
    algorithm: Algorithm,
    p: FloatArray,
    t: FloatArray | None = None,
    *,
    ids: NDArray[np.int32],
    observed: int | None = None,
    advantage: float | None = None,
    reward_std: float | None = None,
    min_coverage: float = MIN_COVERAGE,
    noise: float = 0.0,
) -> Measured:
    """Compare one algorithm's step with the ideal gradient.

    Args:
        posterior: what is known of success, with the sampling policy's probabilities.
        algorithm: the loss.
        p: the student's probabilities at the loss's temperature, shape (m + 1,), tail last.
        t: the teacher's, likewise; exactly 0.0 at a candidate is probability zero. None only for
            algorithms without a teacher.
        ids: the candidates' token ids, shape (m,).
        observed: for SAMPLED: index of the observed token in the support.
        advantage: for SAMPLED policy gradients: r - mean r, for GRPO that over std r. None if the
            group has no reward yet: there is then no step (NO_DATA).
        reward_std: for EXPECTED GRPO: std r, > 0; None leaves the step unscaled.
        min_coverage: below it the answer says LOW_COVERAGE; in [0, 1].
        noise: scoring noise in nats beyond float32's, for engines that repeat themselves badly.

    Raises:
        ValueError: shapes differ, or the algorithm lacks an input.

    """
    _check(posterior, p, t, ids)
    taken = step(posterior, algorithm, StepInputs(p, t, observed, advantage, reward_std, noise))
    covered_student = min(posterior.covered, covered_mass(p))
    covered_teacher = None if t is None else covered_mass(t)
    covered = min(covered_student, 1.0 if covered_teacher is None else covered_teacher)
    status = _status(posterior, taken, covered < min_coverage)
    known = posterior.has_data
    gain = _product(posterior.gradient, taken.draws) if known else None
    gained = _advantage(posterior, posterior.success, p, t, noise) if known else None
    cosine = _cosine(posterior, taken, gain) if status.is_scored else None
    alignment = Alignment(
        status=status,
        cosine=None if cosine is None else Interval.of(cosine),
        p_positive=None if cosine is None else float(np.mean(cosine > 0.0)),
        gain=None if gain is None else Interval.of(gain),
        advantage=None if gained is None else Interval.of(gained),
        ideal_norm2=posterior.ideal_norm2 if known else None,
        descent_norm2=None if taken.draws is None else float(np.mean(_norm2(taken.draws))),
        flat_bound=posterior.flat_bound,
        effective_support=posterior.effective_support,
        covered_student=covered_student,
        covered_teacher=covered_teacher,
        unbounded_id=None if taken.unbounded is None else Support(ids).token(taken.unbounded),
    )
    return Measured(alignment, lambda: _draws(posterior, taken, cosine, p, t, noise))


def _status(posterior: NodePosterior, taken: Step, is_covered_badly: bool) -> Status:
    if taken.unbounded is not None:
        return Status.UNBOUNDED
    if taken.is_noise:
        return Status.NO_SIGNAL
    if posterior.flat_bound < FLAT_TOLERANCE:
        return Status.FLAT
    if taken.draws is None or not posterior.has_data:
        return Status.NO_DATA
    if not posterior.tells_gradient:
        return Status.FLAT
    return Status.LOW_COVERAGE if is_covered_badly else Status.OK


def _cosine(posterior: NodePosterior, taken: Step, gain: FloatArray | None) -> FloatArray | None:
    """Draws of cos(g, d); 0 where a draw of g is zero."""
    if taken.draws is None or gain is None:
        return None
    norms = np.sqrt(posterior.gradient_norm2 * _norm2(taken.draws))
    return np.divide(gain, norms, out=np.zeros_like(gain), where=norms > 0.0).clip(-1.0, 1.0)


def _draws(
    posterior: NodePosterior,
    taken: Step,
    cosine: FloatArray | None,
    p: FloatArray,
    t: FloatArray | None,
    noise: float,
) -> Draws:
    d_norm2 = None if taken.draws is None else _norm2(taken.draws)
    if not posterior.has_data:
        return Draws(cosine, None, None, d_norm2, None)
    ideal = posterior.ideal_norm2_draws
    gained = _advantage(posterior, posterior.unshrunk, p, t, noise)
    if taken.draws is not None and taken.follows_ideal:
        # d = c g: everything is a multiple of |g|^2, with its bias taken out.
        mean = float(posterior.gradient_norm2.mean())
        c = math.sqrt(float(_norm2(taken.draws).mean()) / mean) if mean > 0.0 else 0.0
        return Draws(cosine, c * ideal, ideal, c**2 * ideal, gained)
    gain = _product(posterior.unshrunk_gradient, taken.draws)
    return Draws(cosine, gain, ideal, d_norm2, gained)


def _product(g: FloatArray, d: FloatArray | None) -> FloatArray | None:
    """Draws of g.d, for one d or for one in each draw."""
    if d is None:
        return None
    result: FloatArray = g @ d if d.ndim == 1 else np.einsum("ij,ij->i", g, d)
    return result


def _norm2(d: FloatArray) -> FloatArray:
    """Squared norms: shape () of one step, (size,) of draws."""
    result: FloatArray = np.einsum("...j,...j->...", d, d)
    return result


def _advantage(
    posterior: NodePosterior, s: FloatArray, p: FloatArray, t: FloatArray | None, noise: float
) -> FloatArray | None:
    """Draws of sum_j (T_j - P_j) s_j, given draws of s."""
    if t is None:
        return None
    gained: FloatArray = s @ (t - p)
    if noise > 0.0:
        moved = t * (noise * noise_draws(posterior))
        gained = gained + np.einsum("ij,ij->i", s, moved - t * moved.sum(axis=1, keepdims=True))
    return gained


def _check(
    posterior: NodePosterior, p: FloatArray, t: FloatArray | None, ids: NDArray[np.int32]
) -> None:
    shape = posterior.p.shape
    if p.shape != shape or (t is not None and t.shape != shape) or len(ids) + 1 != shape[0]:
        raise ValueError("p, t, ids and the posterior must be over one support")
