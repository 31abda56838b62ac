"""Statements over sets of nodes: trajectories, questions, all that a teacher was asked about.

Over the nodes of a set, with g the ideal gradient and d the step:

* mean cosine: over the nodes that have one;
* pooled cosine: sum g.d / sqrt(sum |g|^2 sum |d|^2), the cosine of the whole set's gradient;
* gain per unit step: sum g.d / sqrt(sum |d|^2), linear in success and so not biased by noise;
* mean advantage: sum_j (T_j - P_j) s_j, over the nodes that have one.

90% intervals resample questions with replacement, then trajectories within each question, then
posterior draws: nodes of one question are not independent. With a single question, or a single
trajectory in each, that level cannot vary and the interval is about what was given.

Sets of the same trajectories, one for each teacher, are compared on the same resamples. What is
kept because its estimate looks good is evaluated by shrunk posterior draws, see `selection`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.alignment import Status
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.resampling import (
    Key,
    Resamples,
    Statistics,
    Sums,
    added,
    interval,
    node_sums,
)
from unmask_server.diagnosis.selection import KeptNodes, shares_of_defined
from unmask_server.diagnosis.terms import Draws

FloatArray = NDArray[np.float64]


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
    sample_variance: float | None = None
    """As `measure` gave it, of the step as it counts in the set."""


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
    kept: KeptNodes | None
    """What is left if only nodes are kept that more likely help than not; None if none is scored.
    """
    sample_noise: float | None = None
    """sum E|d_y - d|^2 / sum |d|^2 over nodes where both are known; None without one."""

    def share(self, status: Status) -> float:
        """Share of the nodes with `status`, in [0, 1]; 0 for an empty set."""
        return self.statuses.get(status, 0) / self.nodes if self.nodes else 0.0


@dataclass(frozen=True, slots=True)
class SetDifference:
    """One summary less another, on the same resamples: their shared noise cancels.

    A statistic is None where one of them is. Both are over the nodes where they have a value: a
    node where only one teacher has a cosine (NO_SIGNAL) or a step (UNBOUNDED) counts for that one.
    """

    mean_cosine: Interval | None
    pooled_cosine: Interval | None
    gain_per_unit_step: Interval | None
    mean_advantage: Interval | None
    p_better: float | None
    """Share of the resamples where the gain per unit step is higher, in [0, 1]; a tie is half."""


class SetTerms:
    """Sums over a set's nodes, by trajectory: memory grows with trajectories, not with nodes."""

    def __init__(self) -> None:
        self._sums: dict[Key, Sums] = {}
        self._statuses: Counter[Status] = Counter()
        self._supports: list[float] = []
        self._sample_variance = self._sampled_norm2 = 0.0

    @property
    def keys(self) -> list[Key]:
        """Questions and trajectories so far."""
        return sorted(self._sums)

    def add(self, node: NodeTerms) -> None:
        """Count a node in. The order of a trajectory's nodes matters only in rounding."""
        terms = node_sums(node.draws)
        key = (node.question, node.trajectory)
        self._sums[key] = added(self._sums[key], terms) if key in self._sums else terms
        self._statuses[node.status] += 1
        self._supports.append(node.effective_support)
        norm2 = node.draws.descent_norm2
        if node.sample_variance is not None and norm2 is not None:
            self._sample_variance += node.sample_variance
            self._sampled_norm2 += float(np.mean(norm2))

    def on(self, resamples: Resamples) -> ResampledSet:
        """The set on resamples that it may share with others.

        Raises:
            ValueError: they are not of the set's own trajectories.

        """
        if set(resamples.keys) != self._sums.keys():
            raise ValueError("sets can be compared only over the same trajectories")
        quartiles = None
        if self._supports:
            low, middle, high = np.quantile(self._supports, (0.25, 0.5, 0.75)).tolist()
            quartiles = (low, middle, high)
        found = resamples.statistics(self._sums)
        summary = SetSummary(
            nodes=len(self._supports),
            statuses=dict(self._statuses),
            support_quartiles=quartiles,
            mean_cosine=interval(found.mean_cosine),
            pooled_cosine=interval(found.pooled_cosine),
            gain_per_unit_step=interval(found.gain_per_unit_step),
            mean_advantage=interval(found.mean_advantage),
            kept=_kept(found),
            sample_noise=(
                self._sample_variance / self._sampled_norm2 if self._sampled_norm2 > 0.0 else None
            ),
        )
        return ResampledSet(summary, found, resamples)

    def summarize(self, *, seed: int) -> SetSummary:
        """Summarize what was added. Equal content and seed give equal intervals."""
        return self.on(Resamples.of(self.keys, seed=seed)).summary

    def less(self, other: SetTerms, *, seed: int) -> SetDifference:
        """This set less another of the same trajectories: another teacher, or a control.

        Raises:
            ValueError: the sets are not of the same questions and trajectories.

        """
        resamples = Resamples.of(self.keys, seed=seed)
        return self.on(resamples).less(other.on(resamples))


@dataclass(frozen=True, slots=True)
class ResampledSet:
    """A set on resamples: its summary, and what it takes to compare it."""

    summary: SetSummary
    statistics: Statistics
    resamples: Resamples

    @property
    def contrast(self) -> Contrast:
        """Its statistics, to be compared."""
        found = self.statistics
        return Contrast(
            found.mean_cosine, found.pooled_cosine, found.gain_per_unit_step, found.mean_advantage
        )

    def less(self, other: ResampledSet) -> SetDifference:
        """This set less another on the same resamples.

        Raises:
            ValueError: they are on different ones.

        """
        if self.resamples is not other.resamples:
            raise ValueError("sets can be compared only on the same resamples")
        return self.contrast.less(other.contrast).difference


@dataclass(frozen=True, slots=True)
class Contrast:
    """Statistics of sets, or differences of such, on resamples; shape (RESAMPLES,), NaN where
    undefined.

    Contrasts may be taken wherever the same questions and draws came up: of teachers over one set,
    of groups of trajectories under one teacher (`Resamples.of_groups`), and of these differences.
    """

    mean_cosine: FloatArray
    pooled_cosine: FloatArray
    gain_per_unit_step: FloatArray
    mean_advantage: FloatArray

    def less(self, other: Contrast) -> Contrast:
        """This one less another."""
        return Contrast(
            self.mean_cosine - other.mean_cosine,
            self.pooled_cosine - other.pooled_cosine,
            self.gain_per_unit_step - other.gain_per_unit_step,
            self.mean_advantage - other.mean_advantage,
        )

    @property
    def difference(self) -> SetDifference:
        """With intervals."""
        above = shares_of_defined([self.gain_per_unit_step, np.zeros_like(self.mean_cosine)])
        return SetDifference(
            mean_cosine=interval(self.mean_cosine),
            pooled_cosine=interval(self.pooled_cosine),
            gain_per_unit_step=interval(self.gain_per_unit_step),
            mean_advantage=interval(self.mean_advantage),
            p_better=above[0],
        )


def probabilities_best(sets: Sequence[ResampledSet]) -> list[float | None]:
    """How likely each set's gain per unit step is the highest of them.

    Gains are unbiased, not shrunk: of teachers that are alike the lucky one is told too sure over a
    single trajectory, where only its rollouts vary; not where questions are resampled
    (`bench.selection` measures both).

    Args:
        sets: one for each teacher, on the same resamples.

    Returns:
        One a set, in [0, 1]; ties are shared equally. None for sets that have no gain, and for all
        if fewer than two have one.

    """
    return shares_of_defined([one.statistics.gain_per_unit_step for one in sets])


def summarize_set(nodes: Iterable[NodeTerms], *, seed: int) -> SetSummary:
    """The summary of some nodes, in one go; see `SetTerms`."""
    terms = SetTerms()
    for node in nodes:
        terms.add(node)
    return terms.summarize(seed=seed)


def _kept(found: Statistics) -> KeptNodes | None:
    if not found.scored:
        return None
    return KeptNodes(
        share=found.kept / found.scored,
        # They may all be in one trajectory, which few resamples need have.
        mean_cosine=interval(found.kept_cosine, least=0.0),
        gain_per_unit_step=interval(found.kept_gain_per_unit_step, least=0.0),
    )
