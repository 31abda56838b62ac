"""Diagnoses as messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from unmask.v1 import diagnosis_pb2 as pb
from unmask.v1 import sharing_pb2, trajectory_pb2

from unmask_server.api.algorithms import algorithm_message
from unmask_server.api.units import Units, scaled
from unmask_server.catalog import ModelTokenizer
from unmask_server.catalog.types import Teacher
from unmask_server.diagnosis import TAIL_ID, Interval, NodePosterior, Status, ideal
from unmask_server.diagnosis.selection import KeptNodes
from unmask_server.nodes.diagnose import Scored
from unmask_server.nodes.disagree import Disagreement
from unmask_server.nodes.evidence import Evidence
from unmask_server.nodes.resolve import NodeSet
from unmask_server.nodes.summarize import Comparison, GroupDifference, Summary, SummaryRow

_STATUSES = {
    Status.OK: pb.ALIGNMENT_STATUS_OK,
    Status.FLAT: pb.ALIGNMENT_STATUS_FLAT,
    Status.NO_SIGNAL: pb.ALIGNMENT_STATUS_NO_SIGNAL,
    Status.LOW_COVERAGE: pb.ALIGNMENT_STATUS_LOW_COVERAGE,
    Status.UNBOUNDED: pb.ALIGNMENT_STATUS_UNBOUNDED,
    Status.NO_DATA: pb.ALIGNMENT_STATUS_NO_DATA,
    Status.NOT_COVERED: pb.ALIGNMENT_STATUS_NOT_COVERED,
}


_PURE = Units(1.0, 0.0)
"""Of numbers that no objective's units concern."""


def interval(found: Interval | None) -> pb.Interval | None:
    """An interval without units, if there is one."""
    return _PURE.level(found)


def node(
    nodes: NodeSet,
    found: Evidence,
    drawn: NodePosterior,
    version: int,
    tokenizer: ModelTokenizer,
) -> pb.Node:
    """What an answer is about."""
    sampling = found.scores.sampling
    return pb.Node(
        policy_id=nodes.policy.id,
        question_id=nodes.question.id,
        verifier_id=nodes.verifier.id,
        trajectory_id=nodes.trajectory.id if nodes.trajectory else "",
        position=found.position,
        observed=None if found.observed is None else _token(found.observed, tokenizer),
        tree_version=version,
        rollouts=int(found.counts.n.sum()),
        candidates=len(found.scores.ids),
        covered_mass=drawn.covered,
        effective_support=drawn.effective_support,
        max_probability=float(sampling[:-1].max()),
        success=Units.of(nodes.verifier).level(drawn.success_interval),
    )


def candidates(
    found: Evidence, drawn: NodePosterior, tokenizer: ModelTokenizer, units: Units
) -> tuple[list[pb.Candidate], pb.Candidate | None]:
    """The candidates, likeliest first, and the tail if there is one."""
    order = _order(found)
    listed = [_candidate(found, drawn, j, units) for j in order]
    for message, j in zip(listed, order, strict=True):
        message.token.CopyFrom(_token(int(found.scores.ids[j]), tokenizer))
    if not _has_tail(found):
        return listed, None
    return listed, _candidate(found, drawn, len(order), units)


def _order(found: Evidence) -> list[int]:
    """The candidates, likeliest first."""
    order: list[int] = np.argsort(-found.scores.sampling[:-1], kind="stable").tolist()
    return order


def _has_tail(found: Evidence) -> bool:
    return bool(found.scores.sampling[-1] > 0 or found.scores.student[1.0][-1] > 0)


def teacher_probabilities(
    found: Evidence, teachers: Sequence[Teacher]
) -> list[sharing_pb2.TeacherProbabilities]:
    """What each teacher says, in the order of `candidates`; those that say nothing are left out."""
    places = [*_order(found), *([len(found.scores.ids)] if _has_tail(found) else [])]
    return [
        sharing_pb2.TeacherProbabilities(
            teacher_id=teacher.id, probabilities=views[1.0][places].tolist()
        )
        for teacher, views in zip(teachers, found.scores.teachers, strict=True)
        if views
    ]


def _candidate(found: Evidence, drawn: NodePosterior, j: int, units: Units) -> pb.Candidate:
    return pb.Candidate(
        probability=float(found.scores.sampling[j]),
        raw_probability=float(found.scores.student[1.0][j]),
        rollouts=int(found.counts.n[j]),
        reward_sum=units.total(float(found.counts.reward_sum[j]), float(found.counts.n[j])),
        truncated=int(found.truncated[j]),
        exact=bool(found.counts.exact[j]),
        success=units.level(Interval.of(drawn.success[:, j])),
    )


def ideal_gradient(
    found: Evidence,
    drawn: NodePosterior,
    tokenizer: ModelTokenizer,
    units: Units,
    *,
    min_coverage: float,
) -> pb.GetIdealGradientResponse:
    """The ideal gradient, without its node."""
    gradient = ideal(drawn, min_coverage=min_coverage)
    order = [*np.argsort(-found.scores.sampling[:-1], kind="stable").tolist(), len(drawn.p) - 1]
    components = []
    for j in order:
        if gradient.components is None:
            break
        component = pb.GradientComponent(value=units.change(gradient.components[j]))
        if j < len(found.scores.ids):
            component.token.CopyFrom(_token(int(found.scores.ids[j]), tokenizer))
        elif drawn.p[j] <= 0:
            continue
        components.append(component)
    return pb.GetIdealGradientResponse(
        status=_STATUSES[gradient.status],
        components=components,
        norm=units.change(gradient.norm),
        norm_bound=units.scale * gradient.bound,
    )


def alignment(
    scored: Scored,
    found: Evidence,
    teachers: Sequence[Teacher],
    tokenizer: ModelTokenizer,
    units: Units,
) -> pb.Alignment:
    """One alignment."""
    result = scored.alignment
    step = units.step(scored.algorithm)
    message = pb.Alignment(
        teacher_id="" if scored.teacher is None else teachers[scored.teacher].id,
        algorithm=algorithm_message(scored.algorithm),
        status=_STATUSES[result.status],
        cosine=interval(result.cosine),
        probability_positive=result.p_positive,
        gain=units.change(result.gain, step),
        advantage=units.change(result.advantage),
        ideal_norm_squared=scaled(result.ideal_norm2, units.scale**2),
        descent_norm_squared=scaled(result.descent_norm2, step**2),
        ideal_norm_bound=units.scale * result.flat_bound,
        teacher_covered_mass=result.covered_teacher,
        divergence=scored.divergence,
        probability_best=scored.p_best,
        sample_variance=scaled(result.sample_variance, step**2),
        path_weight=scored.weight,
    )
    if result.unbounded_id is not None and result.unbounded_id != TAIL_ID:
        message.unbounded_token.CopyFrom(_token(result.unbounded_id, tokenizer))
    return message


def summary(row: SummaryRow, teachers: Sequence[Teacher], units: Units) -> pb.AlignmentSummary:
    """One row of a summary."""
    found = row.summary
    count = found.statuses.get
    return pb.AlignmentSummary(
        teacher_id="" if row.teacher is None else teachers[row.teacher].id,
        algorithm=algorithm_message(row.algorithm),
        nodes=found.nodes,
        scored=count(Status.OK, 0) + count(Status.LOW_COVERAGE, 0),
        flat=count(Status.FLAT, 0),
        no_signal=count(Status.NO_SIGNAL, 0),
        unbounded=count(Status.UNBOUNDED, 0),
        no_data=count(Status.NO_DATA, 0),
        not_covered=count(Status.NOT_COVERED, 0),
        mean_cosine=interval(found.mean_cosine),
        pooled_cosine=interval(found.pooled_cosine),
        gain_per_unit_step=units.change(found.gain_per_unit_step),
        mean_advantage=units.change(found.mean_advantage),
        effective_support_quartiles=found.support_quartiles or (),
        kept=_kept(found.kept, units),
        probability_best=row.p_best,
        sample_noise=found.sample_noise,
    )


def _kept(found: KeptNodes | None, units: Units) -> pb.KeptTokens | None:
    if found is None:
        return None
    return pb.KeptTokens(
        share=found.share,
        mean_cosine=interval(found.mean_cosine),
        gain_per_unit_step=units.change(found.gain_per_unit_step),
    )


def comparison(pair: Comparison, teachers: Sequence[Teacher], units: Units) -> pb.TeacherComparison:
    """One teacher less another."""
    found = pair.difference
    return pb.TeacherComparison(
        teacher_id=teachers[pair.teacher].id,
        other_teacher_id=teachers[pair.other].id,
        algorithm=algorithm_message(pair.algorithm),
        mean_cosine=interval(found.mean_cosine),
        pooled_cosine=interval(found.pooled_cosine),
        gain_per_unit_step=units.change(found.gain_per_unit_step),
        mean_advantage=units.change(found.mean_advantage),
        probability_better=found.p_better,
    )


def group(name: str, found: Summary, teachers: Sequence[Teacher], units: Units) -> pb.GroupSummary:
    """One of several groups."""
    return pb.GroupSummary(
        name=name,
        summaries=[summary(row, teachers, units) for row in found.rows],
        comparisons=[comparison(pair, teachers, units) for pair in found.comparisons],
    )


def group_difference(
    found: GroupDifference, names: Sequence[str], teachers: Sequence[Teacher], units: Units
) -> pb.GroupDifference:
    """One group less another."""
    less = found.difference
    return pb.GroupDifference(
        group=names[found.group],
        other_group=names[found.other],
        teacher_id="" if found.teacher is None else teachers[found.teacher].id,
        less_teacher_id="" if found.less_teacher is None else teachers[found.less_teacher].id,
        algorithm=algorithm_message(found.algorithm),
        mean_cosine=interval(less.mean_cosine),
        pooled_cosine=interval(less.pooled_cosine),
        gain_per_unit_step=units.change(less.gain_per_unit_step),
        mean_advantage=units.change(less.mean_advantage),
    )


def disagreement(
    row: Disagreement, teachers: Sequence[Teacher], tokenizer: ModelTokenizer
) -> pb.ObjectiveDisagreement:
    """Where two objectives disagree about a teacher."""
    return pb.ObjectiveDisagreement(
        teacher_id="" if row.teacher is None else teachers[row.teacher].id,
        algorithm=algorithm_message(row.algorithm),
        objective=row.objective,
        other_objective=row.other,
        scored=row.scored,
        disagreeing=row.disagreeing,
        share=row.disagreeing / row.scored if row.scored else None,
        nodes=[
            pb.DisagreeingNode(
                trajectory_id=node.trajectory,
                position=node.position,
                token=_token(node.token, tokenizer),
                cosine=interval(node.cosine),
                other_cosine=interval(node.other_cosine),
                probability_positive=node.p_positive,
                other_probability_positive=node.other_p_positive,
            )
            for node in row.nodes
        ],
    )


def _token(token: int, tokenizer: ModelTokenizer) -> trajectory_pb2.Token:
    return trajectory_pb2.Token(id=token, text=tokenizer.token_text(token))
