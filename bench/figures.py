"""What a measurement says, and how it is printed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Direction = Literal["up", "down"]


class SkippedError(Exception):
    """A figure cannot be taken here; says why."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, and what it is compared with."""

    name: str
    value: float
    """Median over the repetitions, in `unit`."""
    unit: str
    baseline: float
    """Median of what it is compared with, in `unit`."""
    ratio: float
    """Median of value over baseline, taken within each repetition."""
    goal: float | None
    """What the ratio should be at least (`up`) or at most (`down`); None: only reported."""
    direction: Direction
    """Which way is better."""
    n: int
    """Repetitions."""
    low: float
    """The smallest ratio of a repetition."""
    high: float
    """The largest ratio of a repetition."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.direction == "up" else self.ratio <= self.goal

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))


def figure(
    name: str,
    unit: str,
    values: Sequence[float],
    baselines: Sequence[float],
    *,
    goal: float | None = None,
    direction: Direction = "up",
) -> Figure:
    """Summarise repetitions: the value and the baseline of each, measured next to each other."""
    ratios = [value / baseline for value, baseline in zip(values, baselines, strict=True)]
    return Figure(
        name=name,
        value=significant(statistics.median(values)),
        unit=unit,
        baseline=significant(statistics.median(baselines)),
        ratio=significant(statistics.median(ratios)),
        goal=goal,
        direction=direction,
        n=len(ratios),
        low=significant(min(ratios)),
        high=significant(max(ratios)),
    )


def significant(value: float, digits: int = 3) -> float:
    """Round to significant digits; integers are kept whole."""
    return round(value) if abs(value) >= 10**digits else float(f"{value:.{digits}g}")


def table(figures: Iterable[Figure]) -> str:
    """Figures as a table in Markdown."""
    lines = [
        "| figure | value | baseline | ratio | goal | met |",
        "|---|---:|---:|---:|---:|---|",
    ]
    sign = {"up": "≥", "down": "≤"}
    for f in figures:
        met = {True: "yes", False: "**no**", None: ""}[f.met]
        goal = "" if f.goal is None else f"{sign[f.direction]} {f.goal:g}"
        spread = f"{f.ratio:g} ({f.low:g} to {f.high:g}, n={f.n})"
        lines.append(
            f"| {f.name} | {f.value:g} {f.unit} | {f.baseline:g} | {spread} | {goal} | {met} |"
        )
    return "\n".join(lines)
