"""Self-distillation without a useful context says nothing."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.findings.collect import NO_CONTEXT, Cell
from unmask.findings.finding import (
    RULE_TOGETHER,
    Finding,
    Value,
    Verdict,
    given,
    near,
    together,
)

NEAR = 0.1
"""A pooled cosine nearer to zero than this is near zero."""
USELESS = (NO_CONTEXT, "self+misleading")


def examine(cells: Sequence[Cell]) -> Finding:
    """The student as its own teacher, shown nothing or nothing of use."""
    rows: list[tuple[Value, ...]] = []
    verdicts: list[Verdict] = []
    for cell in cells:
        for summary in cell.summary.summaries:
            label = cell.teachers[summary.teacher_id]
            if label not in USELESS:
                continue
            silent = summary.no_signal / summary.nodes
            pooled = given(summary, "pooled_cosine")
            mean = given(summary, "mean_cosine")
            rows.append((cell.name, label, f"{100 * silent:.0f}%", summary.scored, mean, pooled))
            if label != NO_CONTEXT:
                verdicts.append(near(pooled, NEAR))
    return Finding(
        claim="Self-distillation without a useful context is near zero",
        says="The student as its own teacher with no useful context has alignment near zero.",
        columns=(
            "student, task",
            "teacher",
            "no signal",
            "scored",
            "mean cosine",
            "pooled cosine",
        ),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule=f"By row with a context: a pooled cosine that is all within {NEAR:g} of zero "
        f"(contradicted if none of it is). In all: {RULE_TOGETHER}.",
        reading=(
            "With no context teacher and student are one model: the step is zero by definition, "
            "which is what no signal says, and decides nothing. The test is a context of no use: "
            "`misleading` calls a wrong attempt correct.",
        ),
    )
