"""Neighbouring tokens of one generation differ widely."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.findings.collect import NO_CONTEXT, Cell
from unmask.findings.finding import (
    RULE_TOGETHER,
    Finding,
    Value,
    Verdict,
    above,
    together,
)
from unmask.findings.resampling import interval
from unmask.findings.tokens import Scored, scored

BINS = ((1.0, 1.5), (1.5, 2.5), (2.5, 4.0), (4.0, math.inf))
"""Effective supports: below 2.5 cosines are near +-1 whatever the teacher does."""
COARSE = 2.5
LEAST = 0.2
"""Neighbours that differ by more than this beyond noise differ widely."""
PAIRS = 10
"""Fewer say nothing of a teacher."""
_SURE = 0.95


@dataclass(frozen=True, slots=True)
class Pair:
    """Two scored tokens, one after the other."""

    difference: float
    """Between their median cosines."""
    noise: float
    """What the two intervals alone would make of it, on average."""
    support: float
    """The smaller of both."""


def examine(cells: Sequence[Cell]) -> Finding:
    """By size of the support."""
    rows: list[tuple[Value, ...]] = []
    verdicts: list[Verdict] = []
    for cell in cells:
        for teacher, label in cell.teachers.items():
            if label == NO_CONTEXT:
                continue
            tokens = list(scored(cell, teacher))
            by = _pairs(tokens)
            for low, high in BINS:
                inside = [t for t in tokens if low <= t.support < high]
                pairs = {
                    question: {
                        trajectory: [p for p in found if low <= p.support < high]
                        for trajectory, found in trajectories.items()
                    }
                    for question, trajectories in by.items()
                }
                count = sum(len(found) for t in pairs.values() for found in t.values())
                extreme = sum(abs(t.cosine.median) > _SURE for t in inside)
                beyond = interval(pairs, _beyond_noise) if count >= 5 else None
                size = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} on"
                share = f"{100 * extreme / len(inside):.0f}%" if inside else None
                mean = interval(pairs, _mean) if count >= 5 else None
                rows.append((cell.name, label, size, len(inside), share, count, mean, beyond))
            fine = {
                question: {t: [p for p in found if p.support >= COARSE] for t, found in of.items()}
                for question, of in by.items()
            }
            if sum(len(found) for t in fine.values() for found in t.values()) >= PAIRS:
                verdicts.append(above(interval(fine, _beyond_noise), LEAST))
    enough = f"Enough neighbours at large supports: {len(verdicts)} cases. Without one of them "
    enough += "nothing was examined."
    return Finding(
        claim="Neighbouring tokens of one generation differ widely",
        says="Neighbouring tokens go from +0.8 to -0.3.",
        columns=(
            "student, task",
            "teacher",
            "effective support",
            "tokens",
            "|cosine| > 0.95",
            "neighbours",
            "mean difference",
            "beyond noise",
        ),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule=f"By student, task and teacher, over neighbours with supports of {COARSE:g} or more "
        f"({PAIRS} pairs at least): the mean difference beyond what the two intervals alone would "
        f"make of it, above {LEAST:g}. In all: {RULE_TOGETHER}.",
        reading=(
            "With two tokens in play every cosine is +1 or -1, so that neighbours differ by 0 or 2 "
            "whatever the teacher does; the rows with small supports show that, not the teacher.",
            enough,
        ),
    )


def _pairs(tokens: Sequence[Scored]) -> dict[str, dict[str, list[Pair]]]:
    found: dict[str, dict[str, list[Pair]]] = {}
    for one, other in itertools.pairwise(tokens):
        mine = found.setdefault(one.question, {}).setdefault(one.trajectory, [])
        if one.trajectory == other.trajectory and other.position == one.position + 1:
            # A normal's mean size is 0.8 of its standard deviation.
            spread = math.hypot(one.cosine.deviation, other.cosine.deviation)
            mine.append(
                Pair(
                    abs(other.cosine.median - one.cosine.median),
                    math.sqrt(2 / math.pi) * spread,
                    min(one.support, other.support),
                )
            )
    return found


def _mean(pairs: list[Pair]) -> float | None:
    return sum(pair.difference for pair in pairs) / len(pairs) if pairs else None


def _beyond_noise(pairs: list[Pair]) -> float | None:
    if not pairs:
        return None
    return sum(pair.difference - pair.noise for pair in pairs) / len(pairs)
