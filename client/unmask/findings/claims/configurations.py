"""No configuration is best everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unmask.findings.collect import NO_CONTEXT, Cell
from unmask.findings.finding import Finding, Range, Value, Verdict, given


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
        verdict=_verdict([_leads(cell) for cell in cells]),
        rule="Supported if some teacher leads another surely on one student and task and trails it "
        "surely on another, of those that lead surely somewhere; contradicted if one leads all "
        "others surely everywhere. Surely: the 90% interval of the paired difference of gains per "
        "unit step.",
    )


def _leads(cell: Cell) -> dict[tuple[str, str], Verdict]:
    """By pair of labels, whether the first surely leads the second."""
    found = {}
    for pair in cell.summary.comparisons:
        if not pair.HasField("gain_per_unit_step"):
            continue
        gain = Range.of(pair.gain_per_unit_step)
        first, second = cell.teachers[pair.teacher_id], cell.teachers[pair.other_teacher_id]
        if NO_CONTEXT in (first, second):
            continue
        if gain.low > 0 or gain.high < 0:
            found[first, second] = Verdict.SUPPORTED if gain.low > 0 else Verdict.CONTRADICTED
            found[second, first] = Verdict.CONTRADICTED if gain.low > 0 else Verdict.SUPPORTED
    return found


def _verdict(leads: Sequence[Mapping[tuple[str, str], Verdict]]) -> Verdict:
    surely = [{pair for pair, way in cell.items() if way is Verdict.SUPPORTED} for cell in leads]
    for one in surely:
        for other in surely:
            if any((b, a) in other for a, b in one):
                return Verdict.SUPPORTED
    labels = {label for cell in leads for pair in cell for label in pair}
    for label in labels:
        if all({(label, other) for other in labels - {label}} <= cell for cell in surely):
            return Verdict.CONTRADICTED
    return Verdict.UNDECIDED
