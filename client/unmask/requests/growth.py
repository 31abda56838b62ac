"""Calls of GrowthService."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from google.protobuf.message import Message

from unmask.algorithms import AlgorithmLike, parse_algorithms
from unmask.calls import Paged, Streamed, Unary, itself, path
from unmask.objectives import Terms
from unmask.requests.refs import Ref, Target, options, ref, refs, target
from unmask.v1 import growth_pb2 as pb

_SERVICE = "GrowthService"

AllocationName = Literal["adaptive", "policy", "equal", "depth_windows"]
ALLOCATIONS: dict[str, pb.Allocation.ValueType] = {
    "adaptive": pb.ALLOCATION_ADAPTIVE,
    "policy": pb.ALLOCATION_POLICY,
    "equal": pb.ALLOCATION_EQUAL,
    "depth_windows": pb.ALLOCATION_DEPTH_WINDOWS,
}
"""Names of the allocations."""

StatisticName = Literal["cosine", "mean_cosine", "pooled_cosine", "gain_per_unit_step", "ranking"]
STATISTICS: dict[str, pb.Statistic.ValueType] = {
    "cosine": pb.STATISTIC_COSINE,
    "mean_cosine": pb.STATISTIC_MEAN_COSINE,
    "pooled_cosine": pb.STATISTIC_POOLED_COSINE,
    "gain_per_unit_step": pb.STATISTIC_GAIN_PER_UNIT_STEP,
    "ranking": pb.STATISTIC_RANKING,
}
"""Names of what a growth can make precise."""

STATES: dict[str, pb.GrowthState.ValueType] = {
    "queued": pb.GROWTH_STATE_QUEUED,
    "running": pb.GROWTH_STATE_RUNNING,
    "paused": pb.GROWTH_STATE_PAUSED,
    "succeeded": pb.GROWTH_STATE_SUCCEEDED,
    "cancelled": pb.GROWTH_STATE_CANCELLED,
    "failed": pb.GROWTH_STATE_FAILED,
}
"""Names of where a growth is."""

ENDED = frozenset((pb.GROWTH_STATE_SUCCEEDED, pb.GROWTH_STATE_CANCELLED, pb.GROWTH_STATE_FAILED))
"""States that a growth does not leave."""


def start_growth(
    targets: Target | Iterable[Target],
    *,
    rollouts: int | None = None,
    tokens: int | None = None,
    rollouts_per_node: int = 0,
    allocation: AllocationName = "adaptive",
    teachers: Ref | Iterable[Ref] = (),
    algorithms: AlgorithmLike | Iterable[AlgorithmLike] = (),
    half_width: float | None = None,
    statistic: StatisticName = "cosine",
    flat_norm: float | None = None,
    confidence: float | None = None,
    request_id: str | None = None,
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
) -> Unary[pb.Growth]:
    """Start a growth, or find the one of that request_id.

    It ends when the budget is spent or, before that, when every node rests on `rollouts_per_node`
    or the answers are as precise as `half_width` says.

    Args:
        targets: trajectories, nodes (`unmask.node`) or questions (`unmask.question_target`).
        rollouts: how many may be sampled, at least 1; at least one of `rollouts` and
        tokens: how many tokens may be sampled, at least 1.
        rollouts_per_node: how many each node should rest on, the cache's counted first; with
            `adaptive` on average over the nodes that are not flat. 0: no such goal.
        allocation: `adaptive`: each batch goes where it lowers the uncertainty of the answers most
            per token. `policy`: free rollouts from every node. `equal`: the same number forced
            through every candidate (the paper's targeted rollouts, about ten times as costly).
            `depth_windows`: as `equal`, with the same number for every window of positions, windows
            that double in length.
        teachers: their alignments are what `adaptive` makes precise, and their likeliest tokens are
            candidates too.
        algorithms: whose alignments matter; messages or texts, see `unmask.parse_algorithm`.
            Empty: `reverse_kl`.
        half_width: for `adaptive`: stop when the 90% intervals reach this far to either side, at
            least 0.001. In units of the statistic: a cosine lies in [-1, 1]; a gain per unit step
            is a change of the chance of success for a step of length one.
        statistic: what is to be so precise: `cosine`, the alignment at every node by itself;
            `mean_cosine`, its mean over the nodes that are not flat; `pooled_cosine`, that of all
            nodes' steps as one; `gain_per_unit_step`, likewise; `ranking`, only which teacher's
            gain per unit step is the highest: much cheaper, for what the teachers share cancels.
        flat_norm: a node is settled without a cosine when the length of its ideal gradient is below
            this with 95% certainty; in [0, 1]. None: 0.05, where a logit step of length one changes
            the chance of success by less than 0.05.
        confidence: for `ranking`: how sure to be of the best teacher, in (0.5, 1). None: 0.95.
            `half_width` is then the interval of a lead too narrow to matter, established or not.
        request_id: the same one is the same growth for ever, so that a retry spends nothing. None:
            a new one.
        verifier: grades the rollouts; empty: the questions' own.
        objective: instead of a verifier, a weighted sum of several; see `alignment`. Of precisions
            in units of success it is its scale, the sum of its weights' sizes, that counts as 1.
        top_k: how many of the likeliest tokens are candidates, 1 to 1000; 0: 20.

    Raises:
        ValueError: no such allocation, statistic or algorithm; a statistic, flat_norm or confidence
            without a half_width.

    """
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation: {allocation!r} is none of {', '.join(ALLOCATIONS)}")
    precision = _precision(half_width, statistic, flat_norm, confidence)
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
        options=options(verifier, top_k, objective=objective),
        algorithms=parse_algorithms(algorithms),
        precision=precision,
    )
    return Unary(path(_SERVICE, "StartGrowth"), request, pb.StartGrowthResponse, lambda r: r.growth)


def predict_growth(
    targets: Target | Iterable[Target],
    *,
    half_width: float,
    statistic: StatisticName = "cosine",
    teachers: Ref | Iterable[Ref] = (),
    algorithms: AlgorithmLike | Iterable[AlgorithmLike] = (),
    flat_norm: float | None = None,
    confidence: float | None = None,
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
) -> Unary[pb.PredictGrowthResponse]:
    """What an adaptive growth to a wanted precision will cost from now on. Samples nothing.

    The arguments are those of `start_growth`; targets are trajectories and nodes. The less is
    known there, the wider the ranges.

    Returns:
        `forecast`, with ranges of `rollouts`, `tokens` and, where the server knows its pace,
        `seconds`: less than `low` one time in ten, more than `high` one time in ten; `nodes`,
        `nodes_settled`, those that need nothing more; `rollouts_cached`, what counts there
        already; `may_be_more`, whether some simulated growths gave up.

    """
    request = pb.PredictGrowthRequest(
        targets=_targets(targets),
        teachers=refs(teachers),
        options=options(verifier, top_k, objective=objective),
        algorithms=parse_algorithms(algorithms),
        precision=_precision(half_width, statistic, flat_norm, confidence),
    )
    return Unary(path(_SERVICE, "PredictGrowth"), request, pb.PredictGrowthResponse, itself)


def get_growth(growth: Ref) -> Unary[pb.Growth]:
    """One growth as it is now, by id."""
    request = pb.GetGrowthRequest(growth=ref(growth))
    return Unary(path(_SERVICE, "GetGrowth"), request, pb.GetGrowthResponse, lambda r: r.growth)


def list_growths(
    *,
    states: str | Iterable[str] = (),
    policy: Ref = "",
    question: Ref = "",
    page_size: int = 0,
) -> Paged[pb.Growth]:
    """Growths, newest first; pages are fetched as they are needed.

    Args:
        states: only those in one of these: `queued`, `running`, `paused`, `succeeded`, `cancelled`,
            `failed`. Empty: in any.
        policy: only those with a target under this policy.
        question: only those with a target on this question.
        page_size: how many are fetched at once; 0: the server's default.

    Raises:
        ValueError: no such state.

    """
    names = [states] if isinstance(states, str) else list(states)
    for name in names:
        if name not in STATES:
            raise ValueError(f"states: {name!r} is none of {', '.join(STATES)}")
    request = pb.ListGrowthsRequest(
        page_size=page_size,
        states=[STATES[name] for name in names],
        policy=ref(policy),
        question=ref(question),
    )
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


def pause_growth(growth: Ref) -> Unary[pb.Growth]:
    """Stop a growth until it is resumed, keeping what it sampled. Harmless if it is paused."""
    request = pb.PauseGrowthRequest(growth=ref(growth))
    return Unary(path(_SERVICE, "PauseGrowth"), request, pb.PauseGrowthResponse, lambda r: r.growth)


def resume_growth(growth: Ref) -> Unary[pb.Growth]:
    """Go on with a growth that is paused or has failed. Harmless if it is at work."""
    request = pb.ResumeGrowthRequest(growth=ref(growth))
    return Unary(
        path(_SERVICE, "ResumeGrowth"), request, pb.ResumeGrowthResponse, lambda r: r.growth
    )


def extend_growth(
    growth: Ref,
    *,
    rollouts: int | None = None,
    tokens: int | None = None,
    rollouts_per_node: int | None = None,
    half_width: float | None = None,
    statistic: StatisticName | None = None,
    flat_norm: float | None = None,
    confidence: float | None = None,
) -> Unary[pb.Growth]:
    """Give a growth more to spend or more to reach; one that has ended goes on.

    All values are totals, so that a retry changes nothing; what is None stays as it is.

    Args:
        growth: which.
        rollouts: how many may be sampled in all, those that were included; not less than before.
        tokens: likewise.
        rollouts_per_node: how many each node should rest on.
        half_width: the same answers, so precise; `adaptive` only, as the following.
        statistic: what is to be so precise.
        flat_norm: see `start_growth`.
        confidence: see `start_growth`.

    Raises:
        ValueError: no such statistic; a half_width of 0 or less; nothing is given.

    """
    if statistic is not None and statistic not in STATISTICS:
        raise ValueError(f"statistic: {statistic!r} is none of {', '.join(STATISTICS)}")
    if half_width is not None and not half_width > 0.0:
        raise ValueError(f"half_width: {half_width} is not above 0")
    precision = None
    if {half_width, statistic, flat_norm, confidence} != {None}:
        precision = pb.Precision(
            statistic=STATISTICS[statistic] if statistic else pb.STATISTIC_UNSPECIFIED,
            half_width=half_width or 0.0,
            flat_norm=flat_norm,
            confidence=confidence,
        )
    budget = None
    if rollouts is not None or tokens is not None:
        budget = pb.Budget(rollouts=rollouts, tokens=tokens)
    if budget is None and precision is None and rollouts_per_node is None:
        raise ValueError("rollouts: give a budget, rollouts_per_node or a half_width")
    request = pb.ExtendGrowthRequest(
        growth=ref(growth),
        budget=budget,
        rollouts_per_node=rollouts_per_node,
        precision=precision,
    )
    return Unary(
        path(_SERVICE, "ExtendGrowth"), request, pb.ExtendGrowthResponse, lambda r: r.growth
    )


def _targets(given: Target | Iterable[Target]) -> list[pb.GrowthTarget]:
    if isinstance(given, str | Message):
        return [target(given)]
    return [target(one) for one in given]


def _precision(
    half_width: float | None,
    statistic: StatisticName,
    flat_norm: float | None,
    confidence: float | None,
) -> pb.Precision | None:
    if statistic not in STATISTICS:
        raise ValueError(f"statistic: {statistic!r} is none of {', '.join(STATISTICS)}")
    if half_width is None:
        if statistic != "cosine" or flat_norm is not None or confidence is not None:
            raise ValueError(f"half_width: say how precise to make the {statistic}, as in 0.1")
        return None
    return pb.Precision(
        statistic=STATISTICS[statistic],
        half_width=half_width,
        flat_norm=flat_norm,
        confidence=confidence,
    )
