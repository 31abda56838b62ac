"""Alignments over sets of trajectories."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unmask_server.diagnosis import (
    Algorithm,
    NodePosterior,
    NodeTerms,
    SetSummary,
    Status,
    effective_support,
    summarize_set,
)
from unmask_server.nodes.diagnose import Group, Scored, alignments, posterior
from unmask_server.nodes.evidence import Evidence
from unmask_server.nodes.resolve import NodeSet


@dataclass(slots=True)
class SummaryRow:
    """One teacher under one algorithm over a set."""

    teacher: int | None
    algorithm: Algorithm
    nodes: int = 0
    statuses: dict[Status, int] = field(default_factory=dict)
    supports: list[float] = field(default_factory=list)
    terms: list[NodeTerms] = field(default_factory=list)
    summary: SetSummary | None = None

    @property
    def support_quartiles(self) -> list[float]:
        """25, 50 and 75% quantiles of the nodes' effective supports."""
        return [float(q) for q in np.quantile(self.supports, (0.25, 0.5, 0.75))]


def summarize(
    sets: Sequence[tuple[NodeSet, Sequence[Evidence], Group | None]],
    algorithms: Sequence[Algorithm],
    *,
    min_coverage: float,
) -> list[SummaryRow]:
    """A row for each teacher and algorithm, in the order of `alignments`.

    A node that several trajectories share counts once for each of them: a training step on them
    would follow it as often.
    """
    rows: dict[tuple[int | None, Algorithm], SummaryRow] = {}
    digest = hashlib.blake2b(digest_size=8)
    for nodes, found, group in sets:
        digest.update((nodes.trajectory.id if nodes.trajectory else "").encode())
        for at in found:
            drawn = posterior(nodes, at)
            support = effective_support(at.scores.sampling)
            for scored in alignments(
                nodes, at, drawn, algorithms, group=group, min_coverage=min_coverage
            ):
                key = (scored.teacher, scored.algorithm)
                row = rows.setdefault(key, SummaryRow(*key))
                _add(row, nodes, at, drawn, scored, support)
    seed = int.from_bytes(digest.digest(), "little")
    for row in rows.values():
        row.summary = summarize_set(row.terms, seed=seed)
    return list(rows.values())


def _add(
    row: SummaryRow,
    nodes: NodeSet,
    at: Evidence,
    drawn: NodePosterior,
    scored: Scored,
    support: float,
) -> None:
    status = scored.alignment.status
    row.nodes += 1
    row.statuses[status] = row.statuses.get(status, 0) + 1
    row.supports.append(support)
    if scored.terms is None:
        return
    advantage = None
    if scored.teacher is not None:
        teacher = at.scores.teachers[scored.teacher][scored.algorithm.temperature]
        advantage = drawn.success @ (teacher - drawn.p)
    row.terms.append(
        NodeTerms(
            question=nodes.question.id,
            trajectory=nodes.trajectory.id if nodes.trajectory else "",
            gain=scored.terms.gain,
            cosine=scored.terms.cosine,
            advantage=advantage,
            ideal_norm2=drawn.norm2,
            descent_norm2=scored.terms.descent_norm2,
        )
    )
