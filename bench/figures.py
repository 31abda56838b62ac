"""The form of every figure: a value beside a peer or a ceiling of the same run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any


def figure(
    name: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    goal: float | None = None,
    direction: str = "up",
) -> dict[str, Any]:
    """A figure from repetitions that alternated between ours and the baseline.

    Args:
        name: of what is measured.
        unit: of the values.
        ours: one value a repetition.
        theirs: the baseline's, likewise.
        goal: for the ratio; None if there is none.
        direction: `up` or `down`: which way is better.

    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "name": name, "value": _short(statistics.median(ours)), "unit": unit,
        "baseline": _short(statistics.median(theirs)), "ratio": _short(statistics.median(ratios)),
        "goal": goal, "direction": direction, "n": len(ratios),
        "low": _short(min(ratios)), "high": _short(max(ratios)),
    }  # fmt: skip


BAND = (0.87, 0.93)
"""The goal for the share of nominal 90% intervals that hold the truth."""


def share_figure(name: str, value: float, low: float, high: float, n: int) -> dict[str, Any]:
    """A share, in [0, 1], with its own interval, beside the nominal 0.9; the goal is `BAND`."""
    return {
        "name": name, "value": _short(value), "unit": "share", "baseline": 0.9,
        "ratio": _short(value / 0.9), "goal": list(BAND), "direction": "within", "n": n,
        "low": _short(low / 0.9), "high": _short(high / 0.9),
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print a figure as a line of JSON."""
    print(json.dumps(found), flush=True)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
