"""How a teacher's step aligns with the ideal gradient at a node, and whether one can tell.

Status, the first that holds:

0. NOT_COVERED: the teacher is a stored one, and nothing is stored for the node (`not_covered`).
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Required, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm
from unmask_server.diagnosis.believed import AnyBelieved
from unmask_server.diagnosis.continuation import Continuations
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.node import FLAT_TOLERANCE, NodePosterior
from unmask_server.diagnosis.noise import sample_variance
from unmask_server.diagnosis.step import Step, StepInputs, step
from unmask_server.diagnosis.support import Support, covered_mass
from unmask_server.diagnosis.terms import (
    DrawInputs,
    Draws,
    advantage_draws,
    draw_terms,
    squared_norm,
)

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
    NOT_COVERED = "not_covered"

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
    sample_variance: float | None
    """E|d_y - d|^2 of the step of one sampled token y, see `noise.sample_variance`; None where the
    loss is not trained on sampled tokens, or where it is not known."""

    @property
    def ideal_norm_is_known(self) -> bool:
        """Whether what is left of |g|^2 is above zero."""
        return self.ideal_norm2 is not None and self.ideal_norm2 > 0.0


@dataclass(frozen=True)
class Measured:
    """An alignment, and the draws behind it where somebody asks for them."""

    alignment: Alignment
    cosine: FloatArray | None
    """Posterior draws of cos(g, d), shape (size,); None where the alignment has no cosine."""
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
    **options: Unpack[Options],
) -> Alignment:
    """The alignment of one step; see `measure` for the arguments."""
    return measure(posterior, algorithm, p, t, **options).alignment


class Options(TypedDict, total=False):
    """What `measure` may be told; all but `ids` may be left out."""

    ids: Required[NDArray[np.int32]]
    """The candidates' token ids, shape (m,)."""
    observed: int | None
    """For SAMPLED: index of the observed token in the support."""
    advantage: float | None
    """For SAMPLED policy gradients and rewards: r - mean r, for GRPO that over std r. None if the
    group has no reward yet: there is then no step (NO_DATA)."""
    reward_std: float | None
    """For EXPECTED GRPO: std r, > 0; None leaves the step unscaled."""
    min_coverage: float
    """Below it the answer says LOW_COVERAGE; in [0, 1]."""
    noise: float
    """Scoring noise in nats beyond float32's, for engines that repeat themselves badly."""
    continuations: Continuations | None
    """For EXPECTED sequence losses: what follows each token. None: NO_DATA."""
    later: float | None
    """For SAMPLED sequence losses: what followed the observed token. None: NO_DATA."""
    mean_reward: float
    """Of the group; only for the noise of policy gradients."""
    weight: float
    """How often training meets this node, relative to the student's own data; sets count its step
    so. >= 0."""
    covered_teacher: float | None
    """For a teacher of whom only some tokens are known: its mass on them, in [0, 1]. None: its mass
    on the candidates."""


def measure(
    posterior: NodePosterior,
    algorithm: Algorithm,
    p: FloatArray,
    t: FloatArray | None = None,
    **options: Unpack[Options],
) -> Measured:
    """Compare one algorithm's step with the ideal gradient.

    Args:
        posterior: what is known of success, with the sampling policy's probabilities.
        algorithm: the loss.
        p: the student's probabilities at the loss's temperature, shape (m + 1,), tail last; of
            policy gradients, which are of the policy as it samples, the posterior's own.
        t: the teacher's, likewise; exactly 0.0 at a candidate is probability zero. None only for
            algorithms without a teacher.
        options: see `Options`.

    Raises:
        ValueError: shapes differ, or the algorithm lacks an input.

    """
    ids = options["ids"]
    inputs = StepInputs(
        p,
        t,
        observed=options.get("observed"),
        advantage=options.get("advantage"),
        reward_std=options.get("reward_std"),
        noise=options.get("noise", 0.0),
        continuations=options.get("continuations"),
        later=options.get("later"),
    )
    _check(posterior, p, t, ids)
    taken = step(posterior, algorithm, inputs)
    known = posterior.has_data
    believed = posterior.believed_of(p, t) if known else posterior.believed
    d = taken.draws(believed) if taken.is_known else None
    covered_student = min(posterior.covered, covered_mass(p))
    covered_teacher = options.get("covered_teacher")
    if covered_teacher is None and t is not None:
        covered_teacher = covered_mass(t)
    covered = min(covered_student, 1.0 if covered_teacher is None else covered_teacher)
    status = _status(posterior, taken, covered < options.get("min_coverage", MIN_COVERAGE))
    gain = believed.gain(d) if known and d is not None else None
    gained = advantage_draws(posterior, believed, p, t, inputs.noise) if known else None
    cosine = _cosine(believed, d, gain) if status.is_scored else None
    alignment = Alignment(
        status=status,
        cosine=None if cosine is None else Interval.of(cosine),
        p_positive=None if cosine is None else float(np.mean(cosine > 0.0)),
        gain=None if gain is None else Interval.of(gain),
        advantage=None if gained is None else Interval.of(gained),
        ideal_norm2=posterior.ideal_norm2 if known else None,
        descent_norm2=None if d is None else float(np.mean(squared_norm(d))),
        flat_bound=posterior.flat_bound,
        effective_support=posterior.effective_support,
        covered_student=covered_student,
        covered_teacher=covered_teacher,
        unbounded_id=None if taken.unbounded is None else Support(ids).token(taken.unbounded),
        sample_variance=_sample_variance(
            posterior, algorithm, inputs, options.get("mean_reward", 0.0)
        ),
    )
    terms = DrawInputs(posterior, taken, cosine, gain, inputs, options.get("weight", 1.0), believed)
    return Measured(alignment, cosine, lambda: draw_terms(terms))


def not_covered(posterior: NodePosterior, p: FloatArray) -> Measured:
    """The answer where nothing is known of the teacher: only what concerns the student.

    Args:
        posterior: what is known of success.
        p: the student's probabilities at the loss's temperature, shape (m + 1,), tail last.

    """
    alignment = Alignment(
        status=Status.NOT_COVERED,
        cosine=None,
        p_positive=None,
        gain=None,
        advantage=None,
        ideal_norm2=posterior.ideal_norm2 if posterior.has_data else None,
        descent_norm2=None,
        flat_bound=posterior.flat_bound,
        effective_support=posterior.effective_support,
        covered_student=min(posterior.covered, covered_mass(p)),
        covered_teacher=None,
        unbounded_id=None,
        sample_variance=None,
    )
    return Measured(alignment, None, lambda: Draws(None, None, None, None, None))


def _sample_variance(
    posterior: NodePosterior, algorithm: Algorithm, inputs: StepInputs, mean_reward: float
) -> float | None:
    known = inputs.continuations
    if algorithm.is_sequential and (known is None or not known.has_data):
        return None
    # One token is drawn for both parts: from one policy, and what follows it is in both.
    mixed = algorithm.needs_teacher and algorithm.reward_weight > 0.0
    if mixed and (algorithm.is_sequential or not np.array_equal(inputs.p, posterior.p)):
        return None
    return sample_variance(
        algorithm,
        inputs.p,
        inputs.t,
        s=posterior.estimate if posterior.has_data else None,
        mean_reward=mean_reward,
        reward_std=inputs.reward_std,
        later=None if known is None else known.mean,
        later_variance=None if known is None else known.variance,
    )


def _status(posterior: NodePosterior, taken: Step, is_covered_badly: bool) -> Status:
    if taken.unbounded is not None:
        return Status.UNBOUNDED
    if taken.is_noise:
        return Status.NO_SIGNAL
    if posterior.flat_bound < FLAT_TOLERANCE:
        return Status.FLAT
    if not taken.is_known or not posterior.has_data:
        return Status.NO_DATA
    if not posterior.tells_gradient:
        return Status.FLAT
    return Status.LOW_COVERAGE if is_covered_badly else Status.OK


def _cosine(
    believed: AnyBelieved, d: FloatArray | None, gain: FloatArray | None
) -> FloatArray | None:
    """Draws of cos(g, d); 0 where a draw of g is zero."""
    if d is None or gain is None:
        return None
    norms = np.sqrt(believed.gradient_norm2 * squared_norm(d))
    return np.divide(gain, norms, out=np.zeros_like(gain), where=norms > 0.0).clip(-1.0, 1.0)


def _check(
    posterior: NodePosterior, p: FloatArray, t: FloatArray | None, ids: NDArray[np.int32]
) -> None:
    shape = posterior.p.shape
    if p.shape != shape or (t is not None and t.shape != shape) or len(ids) + 1 != shape[0]:
        raise ValueError("p, t, ids and the posterior must be over one support")
