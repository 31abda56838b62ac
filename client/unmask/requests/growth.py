"""Calls of GrowthService."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from google.protobuf.message import Message

from unmask.calls import Paged, Streamed, Unary, path
from unmask.requests.refs import Ref, Target, options, ref, refs, target
from unmask.v1 import growth_pb2 as pb

_SERVICE = "GrowthService"

AllocationName = Literal["equal", "policy"]
ALLOCATIONS: dict[str, pb.Allocation.ValueType] = {
    "equal": pb.ALLOCATION_EQUAL,
    "policy": pb.ALLOCATION_POLICY,
}
"""Names of the allocations."""

ENDED = frozenset((pb.GROWTH_STATE_SUCCEEDED, pb.GROWTH_STATE_CANCELLED, pb.GROWTH_STATE_FAILED))
"""States that a growth does not leave."""


def start_growth(
    targets: Target | Iterable[Target],
    *,
    rollouts: int | None = None,
    tokens: int | None = None,
    rollouts_per_node: int = 0,
    allocation: AllocationName = "policy",
    teachers: Ref | Iterable[Ref] = (),
    request_id: str | None = None,
    verifier: Ref = "",
    top_k: int = 0,
) -> Unary[pb.Growth]:
    """Start a growth, or find the one of that request_id.

    Args:
        targets: trajectories, nodes (`unmask.node`) or questions (`unmask.question_target`).
        rollouts: how many may be sampled; at least one of `rollouts` and
        tokens: how many tokens may be sampled.
        rollouts_per_node: how many each node should rest on, the cache's counted first; 0: the
            budget is spent on top of what there is.
        allocation: `policy`, free rollouts from the node, or `equal`, the same number forced
            through every candidate (the paper's targeted rollouts, about ten times as costly).
        teachers: their likeliest tokens are candidates too.
        request_id: the same one is the same growth for ever, so that a retry spends nothing. None:
            a new one.
        verifier: grades the rollouts; empty: the questions' own.
        top_k: how many of the likeliest tokens are candidates; 0: 20.

    Raises:
        ValueError: no such allocation.

    """
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation: {allocation!r} is none of {', '.join(ALLOCATIONS)}")
    if request_id is None:
        import uuid  # here, because it makes importing the client 4 ms slower

        request_id = str(uuid.uuid4())
    request = pb.StartGrowthRequest(
        request_id=request_id,
        targets=_targets(targets),
        budget=pb.Budget(rollouts=rollouts, tokens=tokens),
        rollouts_per_node=rollouts_per_node,
        allocation=ALLOCATIONS[allocation],
        teachers=refs(teachers),
        options=options(verifier, top_k),
    )
    return Unary(path(_SERVICE, "StartGrowth"), request, pb.StartGrowthResponse, lambda r: r.growth)


def get_growth(growth: Ref) -> Unary[pb.Growth]:
    """One growth as it is now, by id."""
    request = pb.GetGrowthRequest(growth=ref(growth))
    return Unary(path(_SERVICE, "GetGrowth"), request, pb.GetGrowthResponse, lambda r: r.growth)


def list_growths(*, page_size: int = 0) -> Paged[pb.Growth]:
    """All growths, newest first; pages are fetched as they are needed."""
    request = pb.ListGrowthsRequest(page_size=page_size)
    return Paged(
        path(_SERVICE, "ListGrowths"), request, pb.ListGrowthsResponse, lambda r: r.growths
    )


def watch_growth(growth: Ref) -> Streamed[pb.Growth]:
    """A growth's progress, from now to its end. Losing the stream does not stop the growth."""
    request = pb.WatchGrowthRequest(growth=ref(growth))
    return Streamed(
        path(_SERVICE, "WatchGrowth"), request, pb.WatchGrowthResponse, lambda r: r.growth
    )


def cancel_growth(growth: Ref) -> Unary[pb.Growth]:
    """Stop a growth, keeping what it sampled. Harmless if it has ended."""
    request = pb.CancelGrowthRequest(growth=ref(growth))
    return Unary(
        path(_SERVICE, "CancelGrowth"), request, pb.CancelGrowthResponse, lambda r: r.growth
    )


def _targets(given: Target | Iterable[Target]) -> list[pb.GrowthTarget]:
    if isinstance(given, str | Message):
        return [target(given)]
    return [target(one) for one in given]
