"""Calls of DiagnosisService."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unmask.algorithms import AlgorithmLike, parse_algorithms
from unmask.calls import Streamed, Unary, itself, path
from unmask.objectives import Terms, parse_objective
from unmask.requests.refs import Prefix, Ref, node, options, ref, refs
from unmask.v1 import diagnosis_pb2 as pb

_SERVICE = "DiagnosisService"


def get_node(
    *,
    trajectory: Ref | None = None,
    position: int | None = None,
    policy: Ref | None = None,
    question: Ref | None = None,
    prefix: Prefix | None = None,
    observed_token: int | None = None,
    teachers: Ref | Iterable[Ref] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
) -> Unary[pb.GetNodeResponse]:
    """Success estimates of a node's candidate tokens.

    The node is named by `trajectory` and `position` or by `policy`, `question` and `prefix`, see
    `unmask.node`; for the other arguments see `alignment`.

    Returns:
        `node`, what this is about; `candidates`, likeliest first; `tail`, everything else.

    """
    request = pb.GetNodeRequest(
        node=node(
            trajectory=trajectory,
            position=position,
            policy=policy,
            question=question,
            prefix=prefix,
            observed_token=observed_token,
        ),
        options=options(verifier, top_k, min_coverage, latest, objective),
        teachers=refs(teachers),
    )
    return Unary(path(_SERVICE, "GetNode"), request, pb.GetNodeResponse, itself)


def ideal_gradient(
    *,
    trajectory: Ref | None = None,
    position: int | None = None,
    policy: Ref | None = None,
    question: Ref | None = None,
    prefix: Prefix | None = None,
    observed_token: int | None = None,
    teachers: Ref | Iterable[Ref] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
) -> Unary[pb.GetIdealGradientResponse]:
    """The logit update that most increases the chance of success at a node.

    The node is named by `trajectory` and `position` or by `policy`, `question` and `prefix`, see
    `unmask.node`; for the other arguments see `alignment`.

    Returns:
        `node`, `status`, `norm`, `norm_bound` and `components`, which are
        g_j = P_j (Psucc_j - sum_k P_k Psucc_k).

    """
    request = pb.GetIdealGradientRequest(
        node=node(
            trajectory=trajectory,
            position=position,
            policy=policy,
            question=question,
            prefix=prefix,
            observed_token=observed_token,
        ),
        options=options(verifier, top_k, min_coverage, latest, objective),
        teachers=refs(teachers),
    )
    return Unary(path(_SERVICE, "GetIdealGradient"), request, pb.GetIdealGradientResponse, itself)


def alignment(
    *,
    trajectory: Ref | None = None,
    position: int | None = None,
    policy: Ref | None = None,
    question: Ref | None = None,
    prefix: Prefix | None = None,
    observed_token: int | None = None,
    teachers: Ref | Iterable[Ref] = (),
    algorithms: AlgorithmLike | Iterable[AlgorithmLike] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
) -> Unary[pb.GetAlignmentResponse]:
    """How teachers' and algorithms' updates align with the ideal one at a node.

    Args:
        trajectory: names the node together with
        position: the token of the trajectory that is in question, from 0.
        policy: or names the node together with
        question: the question and
        prefix: the tokens generated so far, as ids or as text; None: none.
        observed_token: the id of the token in question; `sampled` algorithms need it.
        teachers: may be empty if no algorithm needs one.
        algorithms: messages or texts, see `unmask.parse_algorithm`; empty: `reverse_kl`.
        verifier: grades the rollouts; empty: the question's own.
        objective: instead of a verifier, a weighted sum of several: `own=1,length=-0.1`, or a
            mapping. "Success" is then its expectation, in its own units; see docs/objectives.md.
        top_k: how many of the likeliest tokens are candidates; 0: 20.
        min_coverage: mass on the candidates below which the answer says LOW_COVERAGE; None: 0.9.
        latest: whether to read everything committed before the call, also by other servers.

    Returns:
        `node`, what this is about; `alignments`, teacher by teacher, algorithm by algorithm.

    """
    request = pb.GetAlignmentRequest(
        node=node(
            trajectory=trajectory,
            position=position,
            policy=policy,
            question=question,
            prefix=prefix,
            observed_token=observed_token,
        ),
        options=options(verifier, top_k, min_coverage, latest, objective),
        teachers=refs(teachers),
        algorithms=parse_algorithms(algorithms),
    )
    return Unary(path(_SERVICE, "GetAlignment"), request, pb.GetAlignmentResponse, itself)


def trajectory_alignments(
    trajectory: Ref,
    *,
    teachers: Ref | Iterable[Ref] = (),
    algorithms: AlgorithmLike | Iterable[AlgorithmLike] = (),
    positions: Iterable[int] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
) -> Streamed[pb.StreamTrajectoryAlignmentsResponse]:
    """The alignments at every token of a trajectory, in order, as they are computed.

    Args:
        trajectory: which.
        teachers: as for `alignment`.
        algorithms: as for `alignment`.
        positions: only these, from 0; empty: all.
        verifier: as for `alignment`.
        objective: as for `alignment`.
        top_k: as for `alignment`.
        min_coverage: as for `alignment`.
        latest: as for `alignment`.

    """
    request = pb.StreamTrajectoryAlignmentsRequest(
        trajectory=ref(trajectory),
        options=options(verifier, top_k, min_coverage, latest, objective),
        teachers=refs(teachers),
        algorithms=parse_algorithms(algorithms),
        positions=positions,
    )
    return Streamed(
        path(_SERVICE, "StreamTrajectoryAlignments"),
        request,
        pb.StreamTrajectoryAlignmentsResponse,
        itself,
    )


def summarize(
    trajectories: Ref | Iterable[Ref],
    *,
    teachers: Ref | Iterable[Ref] = (),
    algorithms: AlgorithmLike | Iterable[AlgorithmLike] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
) -> Unary[pb.SummarizeAlignmentsResponse]:
    """Statements over a set of trajectories of one policy: each teacher's, and which is better.

    Args:
        trajectories: 1 to 1000 of them.
        teachers: as for `alignment`.
        algorithms: as for `alignment`.
        verifier: as for `alignment`.
        objective: as for `alignment`.
        top_k: as for `alignment`.
        min_coverage: as for `alignment`.
        latest: as for `alignment`.

    Returns:
        `summaries`, one for each teacher and algorithm, with `probability_best` and `kept`, what is
        left if only tokens are kept whose push more likely helps; `comparisons`, every pair of
        teachers under each algorithm, over the same nodes and rollouts.

    """
    request = pb.SummarizeAlignmentsRequest(
        trajectories=refs(trajectories),
        options=options(verifier, top_k, min_coverage, latest, objective),
        teachers=refs(teachers),
        algorithms=parse_algorithms(algorithms),
    )
    return Unary(
        path(_SERVICE, "SummarizeAlignments"),
        request,
        pb.SummarizeAlignmentsResponse,
        itself,
    )


def compare_groups(
    groups: Mapping[str, Ref | Iterable[Ref]],
    *,
    teachers: Ref | Iterable[Ref] = (),
    algorithms: AlgorithmLike | Iterable[AlgorithmLike] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
) -> Unary[pb.CompareGroupsResponse]:
    """Statements over groups of trajectories, and the differences between them.

    Where groups are sorted by outcome, ask about controls beside each teacher: a teacher that knows
    nothing of success shows a difference, too.

    Args:
        groups: 2 to 8 by name; 1 to 1000 trajectories of one policy in all.
        teachers: as for `alignment`.
        algorithms: as for `alignment`.
        verifier: as for `alignment`.
        objective: as for `alignment`.
        top_k: as for `alignment`.
        min_coverage: as for `alignment`.
        latest: as for `alignment`.

    Returns:
        `groups`, each with what `summarize` returns; `differences`, every pair of groups for each
        teacher and algorithm, and that difference less the one under each other teacher.

    """
    request = pb.CompareGroupsRequest(
        groups=[
            pb.TrajectoryGroup(name=name, trajectories=refs(trajectories))
            for name, trajectories in groups.items()
        ],
        options=options(verifier, top_k, min_coverage, latest, objective),
        teachers=refs(teachers),
        algorithms=parse_algorithms(algorithms),
    )
    return Unary(path(_SERVICE, "CompareGroups"), request, pb.CompareGroupsResponse, itself)


def compare_objectives(
    trajectories: Ref | Iterable[Ref],
    objectives: Iterable[Ref | Mapping[str, float] | pb.Objective],
    *,
    teachers: Ref | Iterable[Ref] = (),
    algorithms: AlgorithmLike | Iterable[AlgorithmLike] = (),
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
) -> Unary[pb.CompareObjectivesResponse]:
    """`summarize` under several objectives, and where these disagree about a teacher.

    From the rollouts that are there, regraded; nothing is sampled.

    Args:
        trajectories: 1 to 1000 of one policy.
        objectives: 2 to 8, each a verifier (`own`: the question's own) or a weighted sum, as a text
            `own=1,length=-0.1` or a mapping.
        teachers: as for `alignment`.
        algorithms: as for `alignment`.
        top_k: as for `alignment`.
        min_coverage: as for `alignment`.
        latest: as for `alignment`.

    Returns:
        `objectives`, each with the `summaries` and `comparisons` of `summarize`; `disagreements`,
        for every pair of objectives, teacher and algorithm: at which `share` of the tokens one of
        them is sure that the teacher's push helps and the other that it hurts, and which those are.

    """
    request = pb.CompareObjectivesRequest(
        trajectories=refs(trajectories),
        options=options("", top_k, min_coverage, latest),
        teachers=refs(teachers),
        algorithms=parse_algorithms(algorithms),
        objectives=[parse_objective(objective) for objective in objectives],
    )
    return Unary(path(_SERVICE, "CompareObjectives"), request, pb.CompareObjectivesResponse, itself)
