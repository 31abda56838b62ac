"""A cell's scored tokens, by question, trajectory and teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unmask.findings.collect import Cell
from unmask.findings.finding import Range


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with a cosine under some teacher."""

    question: str
    trajectory: str
    position: int
    cosine: Range
    support: float
    """Effective support of the node."""
    divergence: float | None


def scored(cell: Cell, teacher: str) -> Iterator[Scored]:
    """Its scored tokens under a teacher, trajectory by trajectory, in order."""
    for trajectory, answers in cell.tokens.items():
        for answer in answers:
            for alignment in answer.alignments:
                if alignment.teacher_id == teacher and alignment.HasField("cosine"):
                    yield Scored(
                        answer.node.question_id,
                        trajectory,
                        answer.node.position,
                        Range.of(alignment.cosine),
                        answer.node.effective_support,
                        alignment.divergence if alignment.HasField("divergence") else None,
                    )
