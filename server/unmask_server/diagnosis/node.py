"""What is known about success at a node, drawn once and used for every teacher and algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask_server.diagnosis.believed import AnyBelieved, Believed, Replaced
from unmask_server.diagnosis.counts import Counts
from unmask_server.diagnosis.gradients import flat_bound, ideal_gradient
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.posterior import DEFAULT_POSTERIOR, DRAWS, SuccessPosterior
from unmask_server.diagnosis.support import covered_mass, effective_support
from unmask_server.diagnosis.tilt import Opinion, Tilts

FloatArray = NDArray[np.float64]

FLAT_TOLERANCE = 1e-3
"""A node whose bound sqrt(2) (1 - max P) is below this is FLAT without any rollout: success cannot
change by a thousandth along a logit step of length one."""

SIGNAL_SHARE = 0.7
"""Data tell g from zero where more than this share of the posterior expectation of |g|^2 is the
square of the expected g; that is, where its signal is above two and a third times its noise.

Simulated on 80 nodes of 4 and 24 tokens (`tests/diagnosis/making.py`), rollouts drawn from P: of
nodes with no gradient at all 0, 1, 1 and 6% were taken to have one at 32, 128, 512 and 2048
rollouts; of the others, two in five of which have tokens nearly alike, 88, 66, 49 and 35% were
called FLAT. With a share of 0.6, and the prior of then, it was 5, 5, 3 and 9%, and the few nodes
that had a score at 8 rollouts had a mean cosine of 0.57 where 0.15 was true (`bench.selection`)."""

_MASS_NOISE = 1e-6
_MIN_VARIANCE_ROLLOUTS = 2


@dataclass(frozen=True)
class NodePosterior:
    """Draws of success and of the ideal gradient at a node; immutable, computed as needed.

    Raises:
        ValueError: shapes differ, or `p` is not a distribution (to 1e-3).

    """

    counts: Counts
    p: FloatArray
    """The sampling policy's probabilities, shape (m + 1,), tail last."""
    seed: int
    """>= 0; the same counts, p and seed give the same bytes."""
    size: int = DRAWS
    """How many draws."""
    dispersion: float = 1.0
    """Rollouts behind one of `counts.n`, in (0, 1]: below 1 where rewards are not 0 or 1."""
    model: SuccessPosterior = DEFAULT_POSTERIOR
    """Where the draws come from."""

    def __post_init__(self) -> None:
        if self.p.shape != self.counts.n.shape:
            raise ValueError(f"p has shape {self.p.shape}, the counts {self.counts.n.shape}")
        if not (np.all(self.p >= 0) and abs(float(self.p.sum()) - 1.0) < 1e-3):
            raise ValueError("p is no probability distribution")

    @cached_property
    def believed(self) -> Believed:
        """What is believed of success as long as no teacher is asked about."""
        return Believed(self.p, self._drawn[0])

    def believed_of(self, p: FloatArray, t: FloatArray | None) -> AnyBelieved:
        """What is believed of success where a teacher may know something of it, see `tilt`.

        The same as `believed` in all draws where it is not thought to; without a teacher, in all.

        Args:
            p: the student's probabilities at the loss's temperature, shape (m + 1,), tail last.
            t: the teacher's, likewise.

        """
        return self.believed_by(None if t is None else Opinion.of(p, t))

    def believed_by(self, opinion: Opinion | None) -> AnyBelieved:
        """The same for a teacher's opinion; None: it has none."""
        tilts = self._drawn[1]
        if opinion is None or tilts is None:
            return self.believed
        key = opinion.lean.tobytes() + opinion.weight.tobytes()
        if key not in self._believed_of:
            rows, success = tilts.draws(self.success, opinion, seed=self.seed)
            instead = Believed(self.p, success)
            self._believed_of[key] = Replaced(self.believed, rows, instead)
        return self._believed_of[key]

    @cached_property
    def _drawn(self) -> tuple[FloatArray, Tilts | None]:
        return self.model.draws_and_tilts(self.counts, self.p, size=self.size, seed=self.seed)

    @cached_property
    def _believed_of(self) -> dict[bytes, AnyBelieved]:
        """By opinion: a teacher is asked about under several algorithms."""
        return {}

    @property
    def success(self) -> FloatArray:
        """Draws of s, shape (size, m + 1), in [0, 1]."""
        return self.believed.success

    @cached_property
    def mean_success(self) -> FloatArray:
        """Draws of success from here on, sum_k P_k s_k; shape (size,)."""
        result: FloatArray = self.success @ self.p
        return result

    @property
    def gradient(self) -> FloatArray:
        """Draws of g, shape (size, m + 1)."""
        return self.believed.gradient

    @property
    def gradient_norm2(self) -> FloatArray:
        """Draws of |g|^2, shape (size,)."""
        return self.believed.gradient_norm2

    @cached_property
    def estimate(self) -> FloatArray:
        """Plug-in s, shape (m + 1,): R / n, and the posterior mean where n is 0."""
        n = self.counts.n
        result: FloatArray = np.where(
            n > 0, self.counts.reward_sum / np.maximum(n, 1e-300), self.success.mean(axis=0)
        )
        return np.clip(result, 0.0, 1.0)

    @cached_property
    def estimate_variance(self) -> FloatArray:
        """Estimated variance of `estimate`, shape (m + 1,).

        s (1 - s) / (n - 1), unbiased for rewards of 0 and 1 and too large for others, where
        n >= 2; of one rollout, that of the posterior means; 0 for exact outcomes and where
        there is no rollout (the estimate is then the node's and adds nothing to g by itself).
        """
        n = self.counts.n
        own = self.estimate * (1.0 - self.estimate) / np.maximum(n - 1.0, 1.0)
        middle = self.success.mean(axis=0)
        variance = np.where(n >= _MIN_VARIANCE_ROLLOUTS, own, middle * (1.0 - middle))
        variance[(n <= 0) | self.counts.exact] = 0.0
        return variance

    @cached_property
    def ideal_norm2(self) -> float:
        """|g|^2 of the plug-in estimates less the variance that is in it; may be negative.

        Unbiased where every token that matters has two rollouts or more.
        """
        g = ideal_gradient(self.p, self.estimate)
        return float(g @ g) - gradient_variance(self.p, self.estimate_variance)

    @cached_property
    def around_estimate(self) -> Believed:
        """Draws around `estimate` with its sampling noise, normal by the sums they are made for.

        For sums over many nodes: a prior pulls every node's gain towards zero, which is little at
        one node and adds up over many. Not for one node: s may leave [0, 1] here.
        """
        variance = np.where(self.counts.n > 0, self.estimate_variance, self.success.var(axis=0))
        spread = np.sqrt(variance)
        # 1 sets this stream apart from that of `success`.
        errors = np.random.default_rng((self.seed, 1)).standard_normal(self.success.shape)
        return Believed(self.p, self.estimate + spread * errors)

    @property
    def unshrunk_gradient(self) -> FloatArray:
        """Draws of g around `estimate`, shape (size, m + 1)."""
        return self.around_estimate.gradient

    @cached_property
    def ideal_norm2_draws(self) -> FloatArray:
        """Draws of |g|^2 around `ideal_norm2`, shape (size,); may be negative."""
        g = self.unshrunk_gradient
        norm2 = np.einsum("ij,ij->i", g, g)
        result: FloatArray = norm2 - norm2.mean() + self.ideal_norm2
        return result

    @cached_property
    def tells_gradient(self) -> bool:
        """Whether the data tell g from zero; see `SIGNAL_SHARE`."""
        mean = self.gradient.mean(axis=0)
        total = float(self.gradient_norm2.mean())
        # The mean of `size` draws has a share 1 / size of their variance in it.
        signal = float(mean @ mean)
        signal -= (total - signal) / max(1, self.size - 1)
        return total > FLAT_TOLERANCE**2 * 1e-6 and signal > SIGNAL_SHARE * total

    @cached_property
    def has_data(self) -> bool:
        """Whether any rollout says something, or everything is known without."""
        sampled = bool(np.any((self.counts.n > 0) & ~self.counts.exact))
        return sampled or float(self.p[self.counts.exact].sum()) >= 1.0 - _MASS_NOISE

    @cached_property
    def flat_bound(self) -> float:
        """|g| is at most this, whatever the data say."""
        return flat_bound(self.p)

    @cached_property
    def effective_support(self) -> float:
        """See `support.effective_support`."""
        return effective_support(self.p)

    @cached_property
    def covered(self) -> float:
        """The sampling policy's mass on the candidates, in [0, 1]."""
        return covered_mass(self.p)

    @cached_property
    def success_interval(self) -> Interval:
        """Of success from here on."""
        return Interval.of(self.mean_success)

    def candidate_intervals(self) -> list[Interval]:
        """Of each token's success, tail last; m + 1 of them."""
        return [Interval.of(column) for column in self.success.T]


def gradient_variance(p: ArrayLike, variance: ArrayLike) -> float:
    """Sum over j of Var[P_j (s_j - sum_k P_k s_k)] for independent s of the given variances."""
    p, v = np.asarray(p, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    shared = float((p * p) @ v)
    return float((p * p) @ (v - 2.0 * p * v + shared))
