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
from unmask.findings.resampling import interval, rank_correlation, reliability
from unmask.findings.tokens import Scored, scored

WEAK = 0.5
"""A rank correlation nearer to zero than this predicts weakly: a quarter of the variance."""
RELIABLE = 0.5
"""Share of the cosines' variance that is not noise, below which nothing can be told."""
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
                everything = [t for of in by.values() for some in of.values() for t in some]
                sound = reliability([t.cosine for t in everything])
                freed = interval(by, _without_noise) if count >= 10 else None
                rows.append((cell.name, label, name, count, sound, found, freed))
                if name == "all":
                    told = sound is not None and sound >= RELIABLE
                    verdicts.append(near(freed, WEAK) if told else Verdict.UNDECIDED)
    return Finding(
        claim="Divergence is a weak predictor of alignment",
        says="KL between teacher and student is only a weak predictor of alignment.",
        columns=(
            *("student, task", "teacher", "effective support", "tokens", "reliability"),
            *("rank correlation", "freed of noise"),
        ),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule="By student, task and teacher: Spearman's rho of KL(P|T) and cosine, freed of noise, "
        f"all within {WEAK:g} of zero (contradicted if none of it is); undecided where more than "
        f"half of the cosines' variance is noise. In all: {RULE_TOGETHER}.",
        reading=(
            "Noise in the cosines pulls a correlation towards zero. Reliability is the share of "
            "their variance that is not noise, by their intervals; freed of noise is rho over its "
            "root. The intervals are about which questions and generations were seen.",
        ),
    )


def _without_noise(tokens: list[Scored]) -> float | None:
    rho, sound = _correlation(tokens), reliability([t.cosine for t in tokens])
    if rho is None or not sound:
        return None
    return max(-1.0, min(1.0, rho / math.sqrt(sound)))


def _correlation(tokens: list[Scored]) -> float | None:
    return rank_correlation(
        [(t.divergence, t.cosine.median) for t in tokens if t.divergence is not None]
    )
