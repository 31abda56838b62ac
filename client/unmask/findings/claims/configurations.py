"""No configuration is best everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from unmask.findings.collect import NO_CONTEXT, Cell
from unmask.findings.finding import Finding, Value, Verdict, given

ERROR = 0.05
"""Of all statements about pairs together."""


def examine(cells: Sequence[Cell]) -> Finding:
    """Every teacher on every student and task."""
    rows: list[tuple[Value, ...]] = []
    for cell in cells:
        for summary in cell.summary.summaries:
            label = cell.teachers[summary.teacher_id]
            if label == NO_CONTEXT:
                continue
            gain = given(summary, "gain_per_unit_step")
            best = summary.probability_best if summary.HasField("probability_best") else None
            rows.append((cell.name, label, gain, best))
    return Finding(
        claim="No configuration is best everywhere",
        says="The best teacher changes with the task and the student's size.",
        columns=("student, task", "teacher", "gain per unit step", "P(best)"),
        rows=tuple(rows),
        verdict=_verdict([_labels(cell) for cell in cells], _leads(cells)),
        rule="Supported if each of them surely trails some other one on some student and task; "
        "contradicted if one surely leads all others on each of two or more. Surely: so sure of "
        "the paired difference of gains per unit step that over all pairs that were looked at one "
        "in twenty would be wrong (Bonferroni).",
        reading=(
            "One algorithm, reverse KL. A teacher that is shown the answer to the question can do "
            "what no teacher of a new question could.",
        ),
    )


Pair = tuple[int, str, str]
"""Of which cell, who leads, whom."""


def _labels(cell: Cell) -> frozenset[str]:
    return frozenset(cell.teachers.values()) - {NO_CONTEXT}


def _leads(cells: Sequence[Cell]) -> set[Pair]:
    """Who surely leads whom."""
    better = {}
    for i, cell in enumerate(cells):
        for pair in cell.summary.comparisons:
            first, second = cell.teachers[pair.teacher_id], cell.teachers[pair.other_teacher_id]
            if NO_CONTEXT not in (first, second) and pair.HasField("probability_better"):
                better[i, first, second] = pair.probability_better
    allowed = ERROR / max(1, len(better))
    return {
        (i, first, second) if p > 0.5 else (i, second, first)
        for (i, first, second), p in better.items()
        if min(p, 1.0 - p) < allowed
    }


def _verdict(labels: Sequence[AbstractSet[str]], leads: AbstractSet[Pair]) -> Verdict:
    every = frozenset[str]().union(*labels)
    trailing = {second for _, _, second in leads}
    if every and trailing == every:
        return Verdict.SUPPORTED
    for label in every:
        wanted = {(i, label, o) for i, here in enumerate(labels) for o in here - {label}}
        if len(labels) > 1 and wanted and wanted <= leads and all(label in at for at in labels):
            return Verdict.CONTRADICTED
    return Verdict.UNDECIDED
