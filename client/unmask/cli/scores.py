"""What is known about a token, sorted for the eye: does the push help here, or hurt, or neither?"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unmask.algorithms import format_algorithm
from unmask.v1 import diagnosis_pb2 as pb

SURE = 0.95
"""P(cosine > 0) from which on, or 1 minus which and less, a token counts as decided: then the 90%
interval lies on one side of zero."""

STATUS_NAMES = {
    number: name.removeprefix("ALIGNMENT_STATUS_") for name, number in pb.AlignmentStatus.items()
}
"""OK, FLAT, NO_SIGNAL, ..."""


class Verdict(enum.Enum):
    """Of one token, one teacher and one algorithm. The value is the mark for plain text."""

    HELPS = "+"
    HURTS = "-"
    UNDECIDED = "?"
    FLAT = "."
    NO_SIGNAL = "~"
    UNBOUNDED = "!"
    NO_DATA = "_"
    NOT_COVERED = "/"


MEANINGS = {
    Verdict.HELPS: "pushes towards success",
    Verdict.HURTS: "pushes away from it",
    Verdict.UNDECIDED: "undecided: the interval includes 0",
    Verdict.FLAT: "flat: no effect on success to be seen",
    Verdict.NO_SIGNAL: "the teacher says nothing here",
    Verdict.UNBOUNDED: "infinite loss: the teacher excludes a token",
    Verdict.NO_DATA: "no rollout yet",
    Verdict.NOT_COVERED: "nothing is stored of the teacher here",
}
"""What the marks mean, one short line each."""

_BY_STATUS = {
    pb.ALIGNMENT_STATUS_FLAT: Verdict.FLAT,
    pb.ALIGNMENT_STATUS_NO_SIGNAL: Verdict.NO_SIGNAL,
    pb.ALIGNMENT_STATUS_UNBOUNDED: Verdict.UNBOUNDED,
    pb.ALIGNMENT_STATUS_NO_DATA: Verdict.NO_DATA,
    pb.ALIGNMENT_STATUS_NOT_COVERED: Verdict.NOT_COVERED,
}


@dataclass(frozen=True, slots=True)
class Push:
    """Who pushes, and how: a teacher (empty if the algorithm has none) and an algorithm."""

    teacher: str
    """As the user calls it."""
    algorithm: str
    """See `unmask.parse_algorithm`."""

    def __str__(self) -> str:
        """For headings."""
        return f"{self.teacher} · {self.algorithm}" if self.teacher else self.algorithm


def push_of(
    alignment: pb.Alignment | pb.AlignmentSummary | pb.ObjectiveDisagreement,
    names: Mapping[str, str] | None = None,
) -> Push:
    """Whose alignment this is; `names` maps teachers' ids to what the user calls them."""
    teacher = (names or {}).get(alignment.teacher_id, alignment.teacher_id)
    return Push(teacher, format_algorithm(alignment.algorithm))


def verdict(alignment: pb.Alignment) -> Verdict:
    """How to sort an alignment."""
    if not alignment.HasField("cosine"):
        return _BY_STATUS.get(alignment.status, Verdict.NO_DATA)
    if alignment.probability_positive >= SURE:
        return Verdict.HELPS
    if alignment.probability_positive <= 1 - SURE:
        return Verdict.HURTS
    return Verdict.UNDECIDED


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of a trajectory under one push."""

    position: int
    node: pb.Node
    alignment: pb.Alignment

    @property
    def verdict(self) -> Verdict:
        """How to sort it."""
        return verdict(self.alignment)


def by_push(
    answers: Iterable[pb.StreamTrajectoryAlignmentsResponse], names: Mapping[str, str]
) -> dict[Push, dict[int, TokenScore]]:
    """The answers about a trajectory, for each push by position."""
    sorted_: dict[Push, dict[int, TokenScore]] = {}
    for answer in answers:
        position = answer.node.position
        for alignment in answer.alignments:
            scores = sorted_.setdefault(push_of(alignment, names), {})
            scores[position] = TokenScore(position, answer.node, alignment)
    return sorted_
