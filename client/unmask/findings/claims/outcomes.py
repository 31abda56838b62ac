"""Alignment is higher on incorrect generations than on correct ones."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.findings.collect import CONTROLS_OF_STUDENT, NO_CONTEXT, Cell
from unmask.findings.finding import (
    RULE_TOGETHER,
    Finding,
    Range,
    Value,
    Verdict,
    above,
    at_odds,
    given,
    together,
)
from unmask.v1 import diagnosis_pb2 as pb

STATISTICS = ("mean_cosine", "pooled_cosine", "mean_advantage")


def examine(cells: Sequence[Cell]) -> Finding:
    """By teacher: both groups, the gap, the controls' gaps, and the gap beyond them."""
    rows: list[tuple[Value, ...]] = []
    verdicts: list[Verdict] = []
    parts: dict[str, list[Verdict]] = {"gap": [], "beyond matched": [], "beyond permuted": []}
    for cell in cells:
        if cell.groups is None:
            continue
        for teacher, label in cell.teachers.items():
            if label == NO_CONTEXT:
                continue
            kinds = cell.controls[teacher]
            for statistic in STATISTICS:
                gap = _difference(cell.groups, statistic, teacher)
                beyond = {
                    kind: _difference(cell.groups, statistic, teacher, control)
                    for kind, control in kinds.items()
                }
                students = cell.controls[""]
                rows.append(
                    (
                        cell.name,
                        label,
                        statistic.replace("_", " "),
                        _of_group(cell.groups, 0, statistic, teacher),
                        _of_group(cell.groups, 1, statistic, teacher),
                        gap,
                        *(
                            _difference(cell.groups, statistic, students[kind])
                            for kind in CONTROLS_OF_STUDENT
                        ),
                        *(
                            _difference(cell.groups, statistic, control)
                            for control in kinds.values()
                        ),
                        *beyond.values(),
                    )
                )
                if statistic == "mean_cosine":
                    told = (gap, beyond["entropy_matched"], beyond["permuted"])
                    for found, value in zip(parts.values(), told, strict=True):
                        found.append(above(value))
                    verdicts.append(_of_row(*(found[-1] for found in parts.values())))
    remarks = [
        "Sorting by outcome selects: at each of its nodes a correct generation's own token is more "
        "likely one that leads to success. A teacher that is only flatter than the student shows "
        "the gap for free, a sharper one the reverse; what is a teacher's own is what is left "
        "beyond its controls.",
    ]
    remarks += [_counted(name, found) for name, found in parts.items()]
    if at_odds(verdicts):
        remarks.append("The rows are at odds: so with some teachers, the reverse with others.")
    return Finding(
        claim="Alignment is higher on incorrect generations than on correct ones",
        says="Clearly higher on incorrect ones; near zero and noisy on correct ones.",
        columns=(
            *("student, task", "teacher", "statistic", "incorrect", "correct", "gap"),
            *("gap, flattened", "gap, sharpened", "gap, matched", "gap, permuted"),
            *("beyond matched", "beyond permuted"),
        ),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule="By row: supported if the mean cosine's gap is above zero as it stands and beyond "
        "both of the teacher's controls (the student flattened or sharpened to its entropy; its "
        "own log-ratios permuted among like tokens); contradicted if the gap is below zero, or "
        f"below both controls'. In all: {RULE_TOGETHER}.",
        reading=tuple(remarks),
    )


def _of_row(gap: Verdict, matched: Verdict, permuted: Verdict) -> Verdict:
    if gap is matched is permuted is Verdict.SUPPORTED:
        return Verdict.SUPPORTED
    no = Verdict.CONTRADICTED
    return no if gap is no or matched is permuted is no else Verdict.UNDECIDED


def _counted(name: str, found: Sequence[Verdict]) -> str:
    """How many rows say what."""
    yes, no = found.count(Verdict.SUPPORTED), found.count(Verdict.CONTRADICTED)
    return f"Mean cosine, {name}: above zero in {yes} of {len(found)} rows, below in {no}."


def _of_group(
    groups: pb.CompareGroupsResponse, place: int, statistic: str, teacher: str
) -> Range | None:
    for summary in groups.groups[place].summaries:
        if summary.teacher_id == teacher:
            return given(summary, statistic)
    return None


def _difference(
    groups: pb.CompareGroupsResponse, statistic: str, teacher: str, less: str = ""
) -> Range | None:
    for found in groups.differences:
        if (found.teacher_id, found.less_teacher_id) == (teacher, less):
            return given(found, statistic)
    return None
