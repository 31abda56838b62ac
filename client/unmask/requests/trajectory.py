"""Calls of TrajectoryService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from unmask.calls import Divided, Paged, Unary, itself, path
from unmask.requests.refs import Ref, ref, refs
from unmask.v1 import trajectory_pb2 as pb

_SERVICE = "TrajectoryService"
_OUTCOMES = {None: pb.OUTCOME_UNSPECIFIED, True: pb.OUTCOME_CORRECT, False: pb.OUTCOME_INCORRECT}
_FINISHES = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}


ITER_SAMPLED = "Sample generations of a policy, and iterate over them, each as soon as it is there."
"""What `iter_sampled_trajectories` does; the rest is as in `sample_trajectories`."""


def sample_trajectories(
    policy: Ref, questions: Ref | Iterable[Ref], *, count: int = 1, seed: int = 0
) -> Divided[pb.SampleTrajectoriesResponse]:
    """Sample generations of a policy: `trajectories`, and how many of them were `sampled` now.

    They come question by question, in the order asked. The same arguments give the same ones,
    sampled once. `sampled` may be too low where a connection broke meanwhile and the rest was
    asked for again: what had been sampled then, and had not come, was there.

    Args:
        policy: whose.
        questions: for which questions.
        count: how many for each; 1 to 10000, and over all questions at most 100000.
        seed: another seed gives others.

    """
    request = pb.SampleTrajectoriesRequest(
        policy=ref(policy), questions=refs(questions), count=count, seed=seed
    )
    return Divided(
        path(_SERVICE, "SampleTrajectories"),
        request,
        pb.SampleTrajectoriesResponse,
        itself,
        lambda part: part.trajectories,
        _add,
    )


def _add(whole: pb.SampleTrajectoriesResponse, part: pb.SampleTrajectoriesResponse) -> None:
    whole.trajectories.extend(part.trajectories)
    # Of a part that was asked for again, only what is new is left.
    whole.sampled += min(part.sampled, len(part.trajectories))


def submit_trajectory(
    policy: Ref,
    question: Ref,
    *,
    tokens: Sequence[int] | None = None,
    text: str | None = None,
    finish_reason: Literal["stop", "length"] | None = None,
) -> Unary[pb.Trajectory]:
    """Bring a generation along, as token ids (preferred) or as text.

    Args:
        policy: whose tokens these are.
        question: which question it answers.
        tokens: exactly the ids that were sampled, the stop token included.
        text: instead of `tokens`; tokenised by the server.
        finish_reason: why it ended; None: `stop` if it ends in a stop token, else not known.

    Raises:
        ValueError: not exactly one of `tokens` and `text`.

    """
    if (tokens is None) == (text is None):
        raise ValueError("submit_trajectory: give tokens or text")
    request = pb.SubmitTrajectoryRequest(
        policy=ref(policy),
        question=ref(question),
        tokens=None if tokens is None else pb.TokenIds(ids=tokens),
        finish_reason=_FINISHES[finish_reason],
    )
    if text is not None:
        request.text = text
    return Unary(
        path(_SERVICE, "SubmitTrajectory"),
        request,
        pb.SubmitTrajectoryResponse,
        lambda r: r.trajectory,
    )


def get_trajectory(trajectory: Ref) -> Unary[pb.Trajectory]:
    """One trajectory with the text of every token."""
    request = pb.GetTrajectoryRequest(trajectory=ref(trajectory))
    return Unary(
        path(_SERVICE, "GetTrajectory"), request, pb.GetTrajectoryResponse, lambda r: r.trajectory
    )


def list_trajectories(
    *, policy: Ref = "", question: Ref = "", correct: bool | None = None, page_size: int = 0
) -> Paged[pb.Trajectory]:
    """Trajectories, oldest first, without tokens; pages are fetched as they are needed.

    Args:
        policy: only of this policy.
        question: only of this question.
        correct: only with a reward above one half (True), or at most one half (False).
        page_size: at most so many a page; 0: 100.

    """
    request = pb.ListTrajectoriesRequest(
        policy=ref(policy),
        question=ref(question),
        outcome=_OUTCOMES[correct],
        page_size=page_size,
    )
    return Paged(
        path(_SERVICE, "ListTrajectories"),
        request,
        pb.ListTrajectoriesResponse,
        lambda r: r.trajectories,
    )
