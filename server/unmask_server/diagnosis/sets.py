"""Statements over sets of nodes: trajectories, questions, all that a teacher was asked about.

Over the nodes of a set, with g the ideal gradient and d the step:

* mean cosine: over the nodes that have one;
* pooled cosine: sum g.d / sqrt(sum |g|^2 sum |d|^2), the cosine of the whole set's gradient;
* gain per unit step: sum g.d / sqrt(sum |d|^2), linear in success and so not biased by noise;
* mean advantage: sum_j (T_j - P_j) s_j, over the nodes that have one.

90% intervals resample questions with replacement, then trajectories within each question, then
posterior draws: nodes of one question are not independent. With a single question, or a single
trajectory in each, that level cannot vary and the interval is about what was given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.alignment import Draws, Status
from unmask_server.diagnosis.intervals import Interval

FloatArray = NDArray[np.float64]

RESAMPLES = 1000
"""Resamples behind an interval."""


@dataclass(frozen=True, slots=True)
class NodeTerms:
    """One node's part in a set."""

    question: str
    """Any key; nodes of one question are resampled together."""
    trajectory: str
    """Any key within the question."""
    status: Status
    effective_support: float
    draws: Draws
    """As `measure` gave them; all nodes of a set must have the same number."""


@dataclass(frozen=True, slots=True)
class SetSummary:
    """Statistics of a set; a value is None where it is not defined."""

    nodes: int
    statuses: Mapping[Status, int]
    """How many nodes have which status; only those that occur."""
    support_quartiles: tuple[float, float, float] | None
    """25, 50 and 75% quantiles of the effective supports. Near 2, cosines are near +-1."""
    mean_cosine: Interval | None
    pooled_cosine: Interval | None
    """None where sum |g|^2, less its estimation variance, is not above zero."""
    gain_per_unit_step: Interval | None
    mean_advantage: Interval | None

    def share(self, status: Status) -> float:
        """Share of the nodes with `status`, in [0, 1]; 0 for an empty set."""
        return self.statuses.get(status, 0) / self.nodes if self.nodes else 0.0


@dataclass(frozen=True, slots=True)
class SetDifference:
    """One summary less another, on the same resamples: their shared noise cancels."""

    mean_cosine: Interval | None
    pooled_cosine: Interval | None
    gain_per_unit_step: Interval | None
    mean_advantage: Interval | None


class SetTerms:
    """Sums over a set's nodes, by trajectory: memory grows with trajectories, not with nodes."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], FloatArray] = {}
        self._statuses: Counter[Status] = Counter()
        self._supports: list[float] = []

    def add(self, node: NodeTerms) -> None:
        """Count a node in. The order of a trajectory's nodes matters only in rounding."""
        terms = _terms(node.draws)
        key = (node.question, node.trajectory)
        # A node without data has one column of zeros, which broadcasts.
        self._sums[key] = self._sums[key] + terms if key in self._sums else terms
        self._statuses[node.status] += 1
        self._supports.append(node.effective_support)

    def summarize(self, *, seed: int) -> SetSummary:
        """Summarize what was added. Equal content and seed give equal intervals."""
        quartiles = None
        if self._supports:
            low, middle, high = np.quantile(self._supports, (0.25, 0.5, 0.75)).tolist()
            quartiles = (low, middle, high)
        found = self._resampled(sorted(self._sums), seed)
        return SetSummary(
            nodes=len(self._supports),
            statuses=dict(self._statuses),
            support_quartiles=quartiles,
            mean_cosine=_interval(found[0]),
            pooled_cosine=_interval(found[1]),
            gain_per_unit_step=_interval(found[2]),
            mean_advantage=_interval(found[3]),
        )

    def less(self, other: SetTerms, *, seed: int) -> SetDifference:
        """This set less another of the same trajectories: another teacher, or a control.

        Raises:
            ValueError: the sets are not of the same questions and trajectories.

        """
        if self._sums.keys() != other._sums.keys():
            raise ValueError("sets can be compared only over the same trajectories")
        keys = sorted(self._sums)
        pairs = zip(self._resampled(keys, seed), other._resampled(keys, seed), strict=True)
        return SetDifference(*(_interval(a - b) for a, b in pairs))

    def _resampled(self, keys: Sequence[tuple[str, str]], seed: int) -> FloatArray:
        """The four statistics on every resample, shape (4, RESAMPLES); NaN where undefined."""
        if not keys:
            return np.full((4, RESAMPLES), np.nan)
        size = max(self._sums[key].shape[1] for key in keys)
        sums = np.stack([np.broadcast_to(self._sums[key], (len(_ROWS), size)) for key in keys])
        rng = np.random.default_rng(seed)
        weights = _weights(keys, rng)
        picked = rng.integers(0, size, size=weights.shape)
        totals = np.zeros((len(_ROWS), RESAMPLES))
        for k in range(len(keys)):
            totals += weights[:, k] * sums[k][:, picked[:, k]]
        is_positive = float(sums[:, _ROWS.index("ideal")].mean(axis=1).sum()) > 0.0
        return _statistics(totals, is_positive)


def summarize_set(nodes: Iterable[NodeTerms], *, seed: int) -> SetSummary:
    """The summary of some nodes, in one go; see `SetTerms`."""
    terms = SetTerms()
    for node in nodes:
        terms.add(node)
    return terms.summarize(seed=seed)


_ROWS = ("cosine", "cosines", "gain", "ideal", "descent", "advantage", "advantages")
"""What is summed: `cosines` and `advantages` count the nodes that have one; gain, |g|^2 and |d|^2
are over the nodes where all three are known."""


def _terms(draws: Draws) -> FloatArray:
    """A node's terms, shape (rows, size)."""
    size = max(
        (np.size(v) for v in (draws.cosine, draws.gain, draws.ideal_norm2) if v is not None),
        default=1,
    )
    rows: list[FloatArray | float] = [0.0] * len(_ROWS)
    if draws.cosine is not None:
        rows[0:2] = [draws.cosine, 1.0]
    if draws.gain is not None and draws.ideal_norm2 is not None and draws.descent_norm2 is not None:
        rows[2:5] = [draws.gain, draws.ideal_norm2, draws.descent_norm2]
    if draws.advantage is not None:
        rows[5:7] = [draws.advantage, 1.0]
        size = max(size, np.size(draws.advantage))
    return np.stack([np.broadcast_to(np.asarray(row, dtype=np.float64), (size,)) for row in rows])


def _weights(keys: Sequence[tuple[str, str]], rng: np.random.Generator) -> FloatArray:
    """How often each trajectory counts in each resample, shape (RESAMPLES, trajectories)."""
    inside: dict[str, list[int]] = {}
    for place, (question, _) in enumerate(keys):
        inside.setdefault(question, []).append(place)
    weights = np.zeros((RESAMPLES, len(keys)))
    count = len(inside)
    times = rng.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)
    for k, places in enumerate(inside.values()):
        size = len(places)
        # A question that came up twice has its trajectories drawn twice.
        weights[:, places] = rng.multinomial(times[:, k] * size, np.full(size, 1.0 / size))
    return weights


def _statistics(totals: FloatArray, ideal_is_positive: bool) -> FloatArray:
    """Mean cosine, pooled cosine, gain per unit step, mean advantage; shape (4, resamples)."""
    cosine, cosines, gain, ideal, descent, advantage, advantages = totals
    nan = np.full(totals.shape[1], np.nan)
    unit = np.divide(gain, np.sqrt(descent.clip(0.0)), out=nan.copy(), where=descent > 0.0)
    pooled = nan.copy()
    if ideal_is_positive:
        # Where a resample's |g|^2 is not above zero, the ratio has run to its bound.
        norm = np.sqrt(ideal.clip(1e-300))
        pooled = np.clip(unit / norm, -1.0, 1.0)
    return np.stack(
        [
            np.divide(cosine, cosines, out=nan.copy(), where=cosines > 0.0),
            pooled,
            unit,
            np.divide(advantage, advantages, out=nan.copy(), where=advantages > 0.0),
        ]
    )


def _interval(values: FloatArray) -> Interval | None:
    """Over the resamples where the statistic is defined; None if that is not most of them."""
    defined = values[np.isfinite(values)]
    return Interval.of(defined) if 2 * len(defined) > len(values) else None
