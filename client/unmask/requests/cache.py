"""Calls of CacheService."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from unmask.calls import Paged, Streamed, Unary, itself, path
from unmask.objectives import Terms
from unmask.requests.refs import Ref, options, ref, refs
from unmask.v1 import cache_pb2 as pb
from unmask.v1 import catalog_pb2, sharing_pb2

_SERVICE = "CacheService"

ExportKindName = Literal["rollouts", "trajectories", "distributions", "estimates"]
EXPORT_KINDS: dict[ExportKindName, sharing_pb2.ExportKind.ValueType] = {
    "rollouts": sharing_pb2.EXPORT_KIND_ROLLOUTS,
    "trajectories": sharing_pb2.EXPORT_KIND_TRAJECTORIES,
    "distributions": sharing_pb2.EXPORT_KIND_DISTRIBUTIONS,
    "estimates": sharing_pb2.EXPORT_KIND_ESTIMATES,
}


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
    policy: Ref, question: Ref, *, missing_outcome_of: Ref = "", page_size: int = 0
) -> Paged[pb.Rollout]:
    """The rollouts of a policy on a question, as texts; pages are fetched as they are needed.

    Args:
        policy: whose.
        question: on which.
        missing_outcome_of: a verifier of kind `external`: only those that have no number of it yet.
        page_size: at most so many at once; 0: 100.

    """
    request = pb.ListRolloutsRequest(
        policy=ref(policy),
        question=ref(question),
        missing_outcome_of=ref(missing_outcome_of),
        page_size=page_size,
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


def export_cache(
    kinds: Iterable[ExportKindName] = (),
    *,
    policy: Ref = "",
    questions: Ref | Iterable[Ref] = (),
    teachers: Ref | Iterable[Ref] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    cursor: str = "",
) -> Streamed[sharing_pb2.ExportCacheResponse]:
    """What is stored, part by part; `unmask.sharing` writes it to files.

    Args:
        kinds: of `rollouts`, `trajectories`, `distributions`, `estimates`; none: all but the last.
        policy: only of this one.
        questions: only of these.
        teachers: for estimates: their tokens are candidates, too, and their probabilities are told.
        verifier: for estimates; see `get_node`.
        objective: likewise.
        top_k: likewise.
        cursor: of a part of the same export: go on behind it.

    """
    request = sharing_pb2.ExportCacheRequest(
        kinds=[EXPORT_KINDS[kind] for kind in kinds],
        policy=ref(policy),
        questions=refs(questions),
        teachers=refs(teachers),
        options=options(verifier, top_k, objective=objective),
        cursor=cursor,
    )
    return Streamed(path(_SERVICE, "ExportCache"), request, sharing_pb2.ExportCacheResponse, itself)


def import_cache(records: sharing_pb2.CacheRecords) -> Unary[sharing_pb2.ImportCacheResponse]:
    """Merge what `export_cache` gave, here or elsewhere; again, it changes nothing.

    Args:
        records: at most 10,000.

    """
    return Unary(
        path(_SERVICE, "ImportCache"),
        sharing_pb2.ImportCacheRequest(records=records),
        sharing_pb2.ImportCacheResponse,
        itself,
    )


def import_generations(
    policy: Ref,
    generations: Iterable[sharing_pb2.TrainerGeneration],
    *,
    run: str,
    temperature: float,
    max_new_tokens: int,
    top_p: float = 1.0,
    top_k: int = 0,
    questions: Ref | Iterable[Ref] = (),
    verifier: Ref = "",
    allow_text: bool = False,
    tolerance: float | None = None,
    scored: int | None = None,
    validate_only: bool = False,
) -> Unary[sharing_pb2.ImportGenerationsResponse]:
    """Take in generations that a trainer sampled from a policy, as free rollouts.

    Args:
        policy: who made them.
        generations: 1 to 10,000; `unmask.sharing.trainers` reads them from files.
        run: names the trainer's run or file; the same generation of the same run counts once.
        temperature: how the trainer sampled; must be the policy's, like the next three.
        max_new_tokens: its limit.
        top_p: its cut.
        top_k: its cut.
        questions: prompts are looked for among these only.
        verifier: of kind `external`, to keep the rewards under.
        allow_text: whether they may come as texts.
        tolerance: in nats, how far log-probabilities may be from the policy's; None: 0.05.
        scored: how many the policy's model scores; None: 16.
        validate_only: keep nothing.

    """
    request = sharing_pb2.ImportGenerationsRequest(
        policy=ref(policy),
        run=run,
        sampling=catalog_pb2.Sampling(temperature=temperature, top_p=top_p, top_k=top_k),
        max_new_tokens=max_new_tokens,
        generations=generations,
        questions=refs(questions),
        verifier=ref(verifier),
        allow_text=allow_text,
        tolerance=tolerance,
        scored=scored,
        validate_only=validate_only,
    )
    return Unary(
        path(_SERVICE, "ImportGenerations"),
        request,
        sharing_pb2.ImportGenerationsResponse,
        itself,
    )
