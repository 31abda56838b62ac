"""Calls of CacheService."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unmask.calls import Paged, Unary, itself, path
from unmask.requests.refs import Ref, ref
from unmask.v1 import cache_pb2 as pb

_SERVICE = "CacheService"


def statistics() -> Unary[pb.GetStatisticsResponse]:
    """How much is stored, and what this server has computed since it started."""
    return Unary(
        path(_SERVICE, "GetStatistics"),
        pb.GetStatisticsRequest(),
        pb.GetStatisticsResponse,
        itself,
    )


def regrade(policy: Ref, question: Ref, verifier: Ref) -> Unary[int]:
    """Grade everything stored for a policy and a question by another verifier; samples nothing.

    Returns:
        How many rollouts were graded now; 0 if they were graded before.

    """
    request = pb.RegradeRolloutsRequest(
        policy=ref(policy), question=ref(question), verifier=ref(verifier)
    )
    return Unary(
        path(_SERVICE, "RegradeRollouts"),
        request,
        pb.RegradeRolloutsResponse,
        lambda r: int(r.graded),
    )


def list_rollouts(
    policy: Ref, question: Ref, *, missing: Ref = "", page_size: int = 0
) -> Paged[pb.Rollout]:
    """The rollouts of a policy on a question, as texts; pages are fetched as they are needed.

    Args:
        policy: whose.
        question: on which.
        missing: a verifier of kind `external`: only those that have no number of it yet.
        page_size: at most so many at once; 0: 100.

    """
    request = pb.ListRolloutsRequest(
        policy=ref(policy), question=ref(question), missing=ref(missing), page_size=page_size
    )
    return Paged(
        path(_SERVICE, "ListRollouts"), request, pb.ListRolloutsResponse, lambda r: r.rollouts
    )


def put_outcomes(
    verifier: Ref, outcomes: Mapping[str, float] | Iterable[tuple[Ref, float]]
) -> Unary[int]:
    """Give numbers in [0, 1] to rollouts, or trajectories, under a verifier of kind `external`.

    Args:
        verifier: whose numbers they are.
        outcomes: at most 10,000, by id. All or none are kept; the same ones again change nothing.

    Returns:
        How many are new.

    """
    pairs = outcomes.items() if isinstance(outcomes, Mapping) else outcomes
    request = pb.PutOutcomesRequest(
        verifier=ref(verifier),
        outcomes=[pb.RolloutOutcome(rollout=ref(what), reward=reward) for what, reward in pairs],
    )
    return Unary(
        path(_SERVICE, "PutOutcomes"), request, pb.PutOutcomesResponse, lambda r: int(r.added)
    )
