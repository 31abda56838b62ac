"""Alignments over sets of trajectories."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unmask_server.diagnosis import (
    Algorithm,
    Alignment,
    NodeTerms,
    SetDifference,
    SetSummary,
    SetTerms,
)
from unmask_server.diagnosis.resampling import Resamples
from unmask_server.diagnosis.sets import ResampledSet, probabilities_best
from unmask_server.nodes.diagnose import Group, Scored, alignments, posterior
from unmask_server.nodes.evidence import Evidence
from unmask_server.nodes.resolve import NodeSet


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One teacher under one algorithm over a set."""

    teacher: int | None
    algorithm: Algorithm
    summary: SetSummary
    p_best: float | None
    """Probability that its gain per unit step is the highest of the teachers' under the algorithm,
    in [0, 1]; None with fewer than two, or without a gain."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One teacher less another, by their places in the request, over a set."""

    teacher: int
    other: int
    algorithm: Algorithm
    difference: SetDifference


@dataclass(frozen=True, slots=True)
class Summary:
    """All about a set."""

    rows: list[SummaryRow]
    """For each teacher and algorithm, in the order of `alignments`."""
    comparisons: list[Comparison]
    """Pair by pair, algorithm by algorithm; of those that need a teacher."""


Row = tuple[int | None, Algorithm]
"""A teacher, if the algorithm has one, under an algorithm."""


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """One group less another under a teacher; less the same under another teacher, if one is named.

    All by their places in the request.
    """

    group: int
    other: int
    teacher: int | None
    less_teacher: int | None
    algorithm: Algorithm
    difference: SetDifference


@dataclass(frozen=True, slots=True)
class GroupedSummary:
    """All about several groups of trajectories."""

    groups: list[Summary]
    differences: list[GroupDifference]
    """Pair by pair, each teacher (and what has none), then each pair of teachers."""


class Summarizer:
    """Adds up trajectories one at a time, in one group or several.

    A node that several trajectories share counts once for each of them: a training step on them
    would follow it as often.
    """

    def __init__(
        self, algorithms: Sequence[Algorithm], *, min_coverage: float, groups: int = 1
    ) -> None:
        self._algorithms = algorithms
        self._min_coverage = min_coverage
        self._terms: list[dict[Row, SetTerms]] = [{} for _ in range(groups)]
        self._digest = hashlib.blake2b(digest_size=8)

    def add(
        self, nodes: NodeSet, found: Sequence[Evidence], group: Group | None, place: int = 0
    ) -> list[dict[Row, Alignment]]:
        """Count the nodes of a trajectory in.

        Args:
            nodes: of the trajectory.
            found: evidence at them.
            group: rewards of the question's free rollouts.
            place: in which group of trajectories it is.

        Returns:
            Their alignments, node by node.

        """
        trajectory = nodes.trajectory.id if nodes.trajectory else ""
        self._digest.update(trajectory.encode())
        answers: list[dict[Row, Alignment]] = []
        for at in found:
            answers.append({})
            drawn = posterior(nodes, at)
            for scored in alignments(
                nodes, at, drawn, self._algorithms, group=group, min_coverage=self._min_coverage
            ):
                key = (scored.teacher, scored.algorithm)
                answers[-1][key] = scored.alignment
                self._terms[place].setdefault(key, SetTerms()).add(
                    NodeTerms(
                        question=nodes.question.id,
                        trajectory=trajectory,
                        status=scored.alignment.status,
                        effective_support=scored.alignment.effective_support,
                        draws=scored.draws,
                        sample_variance=_weighted(scored),
                    )
                )
        return answers

    def finish(self) -> Summary:
        """Everything about the one group, on one set of resamples."""
        return self.finish_groups().groups[0]

    def finish_groups(self) -> GroupedSummary:
        """Everything about the groups, on resamples in which the same questions come up."""
        seed = int.from_bytes(self._digest.digest(), "little")
        keys = [sorted({key for t in terms.values() for key in t.keys}) for terms in self._terms]
        groups = [
            {row: terms.on(resamples) for row, terms in of.items()}
            for of, resamples in zip(self._terms, Resamples.of_groups(keys, seed=seed), strict=True)
        ]
        return GroupedSummary(
            groups=[self._summary(sets) for sets in groups],
            differences=list(_differences(groups)),
        )

    def _summary(self, sets: Mapping[Row, ResampledSet]) -> Summary:
        best: dict[Row, float | None] = {}
        for algorithm in self._algorithms:
            rivals = [row for row in sets if row[1] == algorithm]
            found = probabilities_best([sets[row] for row in rivals])
            best |= zip(rivals, found, strict=True)
        return Summary(
            rows=[
                SummaryRow(*row, resampled.summary, best[row]) for row, resampled in sets.items()
            ],
            comparisons=list(self._compared(sets)),
        )

    def _compared(self, sets: Mapping[Row, ResampledSet]) -> Iterator[Comparison]:
        teachers = sorted({teacher for teacher, _ in sets if teacher is not None})
        for teacher, other in itertools.combinations(teachers, 2):
            for algorithm in self._algorithms:
                if algorithm.needs_teacher:
                    less = sets[teacher, algorithm].less(sets[other, algorithm])
                    yield Comparison(teacher, other, algorithm, less)


def _differences(groups: Sequence[Mapping[Row, ResampledSet]]) -> Iterator[GroupDifference]:
    for (i, first), (k, second) in itertools.combinations(enumerate(groups), 2):
        gaps = {
            row: first[row].contrast.less(second[row].contrast) for row in first if row in second
        }
        for (teacher, algorithm), gap in gaps.items():
            yield GroupDifference(i, k, teacher, None, algorithm, gap.difference)
        for (a, algorithm), (b, other) in itertools.combinations(gaps, 2):
            if a is not None and b is not None and algorithm == other:
                beyond = gaps[a, algorithm].less(gaps[b, algorithm])
                yield GroupDifference(i, k, a, b, algorithm, beyond.difference)


def _weighted(scored: Scored) -> float | None:
    """The variance of the step as the set counts it."""
    variance, weight = scored.alignment.sample_variance, scored.weight
    return variance if variance is None or weight is None else weight**2 * variance
