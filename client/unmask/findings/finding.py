"""What is found about a claim, and when it counts as supported."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


class Verdict(enum.Enum):
    """What the numbers say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided at this budget"


@dataclass(frozen=True, slots=True)
class Range:
    """A number with its 90% interval; a number that has none has its ends at itself."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, interval: Any) -> Range:
        """Of an `Interval` message."""
        return cls(interval.median, interval.low, interval.high)

    @property
    def deviation(self) -> float:
        """Standard deviation of a normal with this 90% interval, which is 3.29 of them wide."""
        return (self.high - self.low) / 3.29

    @property
    def plain(self) -> dict[str, float]:
        """As JSON, to six digits: the last ones say nothing."""
        return {name: round(getattr(self, name), 6) for name in ("median", "low", "high")}


Value = str | int | float | Range | None
"""What stands in a cell; None where there is nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim and what came out."""

    claim: str
    """In a few words."""
    says: str
    """What the paper says."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    verdict: Verdict
    rule: str
    """How the verdict was decided."""
    reading: tuple[str, ...] = field(default=())
    """Remarks without which the numbers mislead."""

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "claim": self.claim,
            "says": self.says,
            "verdict": self.verdict.value,
            "rule": self.rule,
            "rows": [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows],
            "reading": list(self.reading),
        }


def _plain(value: Value) -> Any:
    if isinstance(value, Range):
        return value.plain
    return round(value, 6) if isinstance(value, float) else value


def given(message: Any, field: str) -> Range | None:
    """A message's interval, if it has it."""
    return Range.of(getattr(message, field)) if message.HasField(field) else None


def above(value: Range | None, bound: float = 0.0) -> Verdict:
    """Supported if all of the interval is above `bound`, contradicted if all is below it."""
    if value is None:
        return Verdict.UNDECIDED
    if value.low > bound:
        return Verdict.SUPPORTED
    return Verdict.CONTRADICTED if value.high < bound else Verdict.UNDECIDED


def near(value: Range | None, most: float) -> Verdict:
    """Supported if all of the interval is within `most` of zero, contradicted if none is."""
    if value is None:
        return Verdict.UNDECIDED
    if -most < value.low and value.high < most:
        return Verdict.SUPPORTED
    outside = value.low > most or value.high < -most
    return Verdict.CONTRADICTED if outside else Verdict.UNDECIDED


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Of a claim over several cases.

    Supported where at least half of them support it and none contradicts it; contradicted the other
    way round; undecided where cases are at odds, or too few of them say anything.
    """
    found = list(verdicts)
    for side, other in (
        (Verdict.SUPPORTED, Verdict.CONTRADICTED),
        (Verdict.CONTRADICTED, Verdict.SUPPORTED),
    ):
        if found.count(side) * 2 >= max(1, len(found)) and other not in found:
            return side
    return Verdict.UNDECIDED


def at_odds(verdicts: Sequence[Verdict]) -> bool:
    """Whether some cases support a claim that others contradict."""
    return Verdict.SUPPORTED in verdicts and Verdict.CONTRADICTED in verdicts


RULE_TOGETHER = (
    "supported if at least half of the rows support it and none contradicts it, contradicted the "
    "other way round, else undecided"
)
