"""Divergence between teacher and student is a weak predictor of alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unmask.findings.collect import NO_CONTEXT, Cell
from unmask.findings.finding import (
    RULE_TOGETHER,
    Finding,
    Value,
    Verdict,
    near,
    together,
)
from unmask.findings.resampling import interval, rank_correlation
from unmask.findings.tokens import Scored, scored

WEAK = 0.5
"""A rank correlation nearer to zero than this predicts weakly: a quarter of the variance."""
SUPPORTS = ((1.0, math.inf, "all"), (1.0, 2.5, "below 2.5"), (2.5, math.inf, "2.5 on"))


def examine(cells: Sequence[Cell]) -> Finding:
    """Rank correlation over scored tokens, also within supports of like size."""
    rows: list[tuple[Value, ...]] = []
    verdicts: list[Verdict] = []
    for cell in cells:
        for teacher, label in cell.teachers.items():
            if label == NO_CONTEXT:
                continue
            tokens = [t for t in scored(cell, teacher) if t.divergence is not None]
            for low, high, name in SUPPORTS:
                by: dict[str, dict[str, list[Scored]]] = {}
                count = 0
                for token in tokens:
                    if low <= token.support < high:
                        mine = by.setdefault(token.question, {})
                        mine.setdefault(token.trajectory, []).append(token)
                        count += 1
                found = interval(by, _correlation) if count >= 10 else None
                rows.append((cell.name, label, name, count, found))
                if name == "all":
                    verdicts.append(near(found, WEAK))
    return Finding(
        claim="Divergence is a weak predictor of alignment",
        says="KL between teacher and student is only a weak predictor of alignment.",
        columns=("student, task", "teacher", "effective support", "tokens", "rank correlation"),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule=f"By student, task and teacher: Spearman's rho of KL(P|T) and cosine, all within "
        f"{WEAK:g} of zero (contradicted if none of it is). In all: {RULE_TOGETHER}.",
        reading=(
            "Noise in the cosines pulls a correlation towards zero: a weak one is partly that.",
        ),
    )


def _correlation(tokens: list[Scored]) -> float | None:
    return rank_correlation(
        [(t.divergence, t.cosine.median) for t in tokens if t.divergence is not None]
    )
