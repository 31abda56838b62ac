"""Messages as a server might send them, from a few characters."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.v1 import diagnosis_pb2 as pb
from unmask.v1 import growth_pb2

STATUSES = {
    ".": pb.ALIGNMENT_STATUS_FLAT,
    "~": pb.ALIGNMENT_STATUS_NO_SIGNAL,
    "!": pb.ALIGNMENT_STATUS_UNBOUNDED,
    "_": pb.ALIGNMENT_STATUS_NO_DATA,
}


def interval(median: float, half_width: float = 0.1) -> pb.Interval:
    return pb.Interval(
        median=median, low=max(-1.0, median - half_width), high=min(1.0, median + half_width)
    )


def alignment(
    score: float | str, *, teacher: str = "tea-1", loss: pb.Loss.ValueType = pb.LOSS_REVERSE_KL
) -> pb.Alignment:
    """A decided cosine (a number), an undecided one (a number as text), or a mark without one."""
    made = pb.Alignment(
        teacher_id=teacher,
        algorithm=pb.Algorithm(loss=loss, form=pb.FORM_EXPECTED, temperature=1.0),
    )
    if isinstance(score, str) and score in STATUSES:
        made.status = STATUSES[score]
        return made
    cosine = float(score)
    decided = not isinstance(score, str)
    made.status = pb.ALIGNMENT_STATUS_OK
    made.cosine.CopyFrom(interval(cosine, 0.1 if decided else 1.0))
    made.probability_positive = (0.99 if cosine > 0 else 0.01) if decided else 0.6
    made.gain.CopyFrom(interval(cosine / 100, 0.001))
    made.advantage.CopyFrom(interval(cosine / 10, 0.01))
    return made


def answers(
    *pushes: Sequence[float | str], trajectory: str = "trj-1"
) -> list[pb.StreamTrajectoryAlignmentsResponse]:
    """The answers about a trajectory; one sequence of scores for each teacher, tea-1, tea-2, ..."""
    return [
        pb.StreamTrajectoryAlignmentsResponse(
            node=pb.Node(
                trajectory_id=trajectory,
                position=position,
                success=interval(0.5),
                rollouts=32,
                candidates=20,
            ),
            alignments=[
                alignment(score, teacher=f"tea-{i}") for i, score in enumerate(scores, start=1)
            ],
        )
        for position, scores in enumerate(zip(*pushes, strict=True))
    ]


def around(median: float) -> growth_pb2.Range:
    """A range from half to twice the median."""
    return growth_pb2.Range(median=median, low=median / 2, high=median * 2)


def summary(
    gains: dict[str, float], *, best: str, losses: Sequence[pb.Loss.ValueType]
) -> pb.SummarizeAlignmentsResponse:
    """What is said of teachers with these gains per unit step, the same under every loss."""
    response = pb.SummarizeAlignmentsResponse()
    for loss in losses:
        algorithm = pb.Algorithm(loss=loss, form=pb.FORM_EXPECTED, temperature=1.0)
        for teacher, gain in gains.items():
            kept = pb.KeptTokens(
                share=0.71, mean_cosine=interval(0.6), gain_per_unit_step=interval(gain + 0.1)
            )
            response.summaries.add(
                teacher_id=teacher, algorithm=algorithm, nodes=100, scored=90, flat=10,
                mean_cosine=interval(0.4), pooled_cosine=interval(0.3),
                gain_per_unit_step=interval(gain), mean_advantage=interval(0.02), kept=kept,
                probability_best=0.97 if teacher == best else 0.01,
            )  # fmt: skip
        teachers = list(gains)
        for i, one in enumerate(teachers):
            for other in teachers[i + 1 :]:
                response.comparisons.add(
                    teacher_id=one, other_teacher_id=other, algorithm=algorithm,
                    gain_per_unit_step=interval(gains[one] - gains[other]),
                    probability_better=0.99 if gains[one] > gains[other] else 0.01,
                )  # fmt: skip
    return response
