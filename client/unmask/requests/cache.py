"""Calls of CacheService."""

from __future__ import annotations

from unmask.calls import Unary, itself, path
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
