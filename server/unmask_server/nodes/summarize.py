"""Alignments over sets of trajectories."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from unmask_server.diagnosis import Algorithm, NodeTerms, SetSummary, SetTerms
from unmask_server.nodes.diagnose import Group, alignments, posterior
from unmask_server.nodes.evidence import Evidence
from unmask_server.nodes.resolve import NodeSet


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One teacher under one algorithm over a set."""

    teacher: int | None
    algorithm: Algorithm
    summary: SetSummary


class Summarizer:
    """Adds up trajectories one at a time.

    A node that several trajectories share counts once for each of them: a training step on them
    would follow it as often.
    """

    def __init__(self, algorithms: Sequence[Algorithm], *, min_coverage: float) -> None:
        self._algorithms = algorithms
        self._min_coverage = min_coverage
        self._terms: dict[tuple[int | None, Algorithm], SetTerms] = {}
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, nodes: NodeSet, found: Sequence[Evidence], group: Group | None) -> None:
        """Count the nodes of a trajectory in."""
        trajectory = nodes.trajectory.id if nodes.trajectory else ""
        self._digest.update(trajectory.encode())
        for at in found:
            drawn = posterior(nodes, at)
            for scored in alignments(
                nodes, at, drawn, self._algorithms, group=group, min_coverage=self._min_coverage
            ):
                key = (scored.teacher, scored.algorithm)
                self._terms.setdefault(key, SetTerms()).add(
                    NodeTerms(
                        question=nodes.question.id,
                        trajectory=trajectory,
                        status=scored.alignment.status,
                        effective_support=scored.alignment.effective_support,
                        draws=scored.draws,
                    )
                )

    def rows(self) -> list[SummaryRow]:
        """A row for each teacher and algorithm, in the order of `alignments`."""
        seed = int.from_bytes(self._digest.digest(), "little")
        return [
            SummaryRow(teacher, algorithm, terms.summarize(seed=seed))
            for (teacher, algorithm), terms in self._terms.items()
        ]
