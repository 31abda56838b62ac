"""Stronger teachers are better."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from unmask.findings.collect import Cell
from unmask.findings.finding import (
    RULE_TOGETHER,
    Finding,
    Value,
    Verdict,
    above,
    at_odds,
    given,
    together,
)


def examine(cells: Sequence[Cell]) -> Finding:
    """External teachers in the order given, the strongest first, pair by pair."""
    rows: list[tuple[Value, ...]] = []
    verdicts: list[Verdict] = []
    for cell in cells:
        external = [t for t, label in cell.teachers.items() if not label.startswith("self+")]
        by_pair = {(p.teacher_id, p.other_teacher_id): p for p in cell.summary.comparisons}
        for strong, weak in itertools.combinations(external, 2):
            pair = by_pair[strong, weak]
            gain = given(pair, "gain_per_unit_step")
            pooled = given(pair, "pooled_cosine")
            mean = given(pair, "mean_cosine")
            names = f"{cell.teachers[strong]} - {cell.teachers[weak]}"
            better = pair.probability_better if pair.HasField("probability_better") else None
            rows.append((cell.name, names, gain, pooled, mean, better))
            verdicts.append(above(gain))
    remarks = ["Which teacher is the stronger is the caller's word: they are named in that order."]
    if at_odds(verdicts):
        remarks.append("The rows are at odds.")
    return Finding(
        claim="Stronger teachers are better",
        says="Stronger teachers are generally better.",
        columns=(
            "student, task",
            "teachers",
            "gain per unit step",
            "pooled cosine",
            "mean cosine",
            "P(better)",
        ),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule=f"By row: the difference of gains per unit step above zero. In all: {RULE_TOGETHER}.",
        reading=tuple(remarks),
    )
