"""About half of the tokens have positive alignment, and keeping only them multiplies the signal."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.findings.collect import NO_CONTEXT, Cell
from unmask.findings.finding import RULE_TOGETHER, Finding, Range, Value, Verdict, given, together
from unmask.findings.tokens import scored

TIMES = 10.0
"""By how much the paper has the mean signal multiplied."""


def examine(cells: Sequence[Cell]) -> Finding:
    """The posterior's figure beside the naive one."""
    rows: list[tuple[Value, ...]] = []
    verdicts: list[Verdict] = []
    for cell in cells:
        for summary in cell.summary.summaries:
            label = cell.teachers[summary.teacher_id]
            if label == NO_CONTEXT or not summary.HasField("mean_cosine"):
                continue
            every = Range.of(summary.mean_cosine)
            kept = given(summary.kept, "mean_cosine")
            scored_share = summary.scored / summary.nodes
            medians = [t.cosine.median for t in scored(cell, summary.teacher_id)]
            positive = [median for median in medians if median > 0]
            naive = sum(positive) / len(positive) if positive else None
            rows.append(
                (cell.name, label, f"{summary.scored} of {summary.nodes}",
                 f"{100 * summary.kept.share:.0f}%", every, naive, kept, _times(every, kept),
                 _times(_scaled(every, scored_share), kept))
            )  # fmt: skip
            both = {_multiplied(every, kept), _multiplied(_scaled(every, scored_share), kept)}
            verdicts.append(both.pop() if len(both) == 1 else Verdict.UNDECIDED)
    return Finding(
        claim="Keeping only tokens with positive alignment multiplies the signal",
        says="About half of the tokens are kept, and the mean signal is multiplied by ten or more.",
        columns=(
            "student, task",
            "teacher",
            "scored",
            "kept",
            "mean cosine of the scored",
            "of the kept, naive",
            "of the kept, by the posterior",
            "times",
            "times, flat ones as 0",
        ),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule=f"By row: all of the interval of the kept tokens' mean above {TIMES:g} times all of "
        "that of all tokens (contradicted if all of it is below), both over the scored tokens and "
        f"over all with flat ones counted as 0; else undecided. In all: {RULE_TOGETHER}.",
        reading=(
            "The naive figure is the mean of the numbers that chose: it flatters. The posterior's "
            "is what these tokens' draws expect, which allows for the choice. A factor of a mean "
            "near zero is any number: where the mean of all may be zero the factor is not bounded.",
            "Most tokens are flat: no push matters there, and they have no cosine. Whoever counts "
            "them has half of them positive by chance and a mean near zero before the choice: the "
            "factor is then mostly that of leaving them out.",
        ),
    )


def _scaled(value: Range, by: float) -> Range:
    return Range(value.median * by, value.low * by, value.high * by)


def _times(every: Range, kept: Range | None) -> float | None:
    if kept is None or every.low <= 0.0:
        return None
    return kept.median / every.median


def _multiplied(every: Range, kept: Range | None) -> Verdict:
    if kept is None:
        return Verdict.UNDECIDED
    if kept.low > TIMES * max(every.high, 0.0):
        return Verdict.SUPPORTED
    return Verdict.CONTRADICTED if kept.high < TIMES * every.low else Verdict.UNDECIDED
