"""Precisions in requests, and forecasts in answers."""

from __future__ import annotations

from unmask.v1 import growth_pb2 as pb

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.diagnosis.allocation import FLAT_NORM, Forecast, Objective, Range, Statistic

MAX_HALF_WIDTH = 1e9
"""Nothing that is estimated is as wide, and its square is still a number."""
_CONFIDENCE = 0.95
_STATISTICS = {
    pb.STATISTIC_UNSPECIFIED: Statistic.COSINE,
    pb.STATISTIC_COSINE: Statistic.COSINE,
    pb.STATISTIC_MEAN_COSINE: Statistic.MEAN_COSINE,
    pb.STATISTIC_POOLED_COSINE: Statistic.POOLED_COSINE,
    pb.STATISTIC_GAIN_PER_UNIT_STEP: Statistic.GAIN_PER_UNIT_STEP,
    pb.STATISTIC_RANKING: Statistic.RANKING,
}
_NUMBERS = {statistic: number for number, statistic in _STATISTICS.items() if number}


def parse_precision(wanted: pb.Precision, teachers: int, field: str) -> Objective:
    """The objective that a request with so many teachers asks for."""
    statistic = _STATISTICS[wanted.statistic]
    if not wanted.HasField("half_width"):
        # Of one that is extended and had none; requests that start one are held to the contract.
        raise InvalidArgument(f"{field}.half_width", "say the half_width to be reached")
    if wanted.half_width > MAX_HALF_WIDTH:
        raise InvalidArgument(
            f"{field}.half_width", f"{wanted.half_width:g} is above {MAX_HALF_WIDTH:g}"
        )
    least = {Statistic.COSINE: 0, Statistic.RANKING: 2}.get(statistic, 1)
    if teachers < least:
        raise InvalidArgument(
            "teachers", f"{statistic.name} is about teachers; name at least {least}"
        )
    flat_norm = wanted.flat_norm if wanted.HasField("flat_norm") else FLAT_NORM
    confidence = wanted.confidence if wanted.HasField("confidence") else _CONFIDENCE
    return Objective(statistic, wanted.half_width, flat_norm, confidence)


def extended_precision(
    wanted: pb.Precision, had: Objective | None, teachers: int, field: str
) -> Objective:
    """The objective of a growth that had one: what the request leaves out stays as it was."""
    asked = pb.Precision() if had is None else precision_message(had)
    asked.MergeFrom(wanted)
    return parse_precision(asked, teachers, field)


def precision_message(objective: Objective) -> pb.Precision:
    """An objective as a precision, with every default filled in."""
    return pb.Precision(
        statistic=_NUMBERS[objective.statistic],
        half_width=objective.half_width,
        flat_norm=objective.flat_norm,
        confidence=objective.confidence,
    )


def forecast_message(found: Forecast, tokens_per_second: float | None) -> pb.Forecast:
    """A forecast; its seconds where a pace is known."""
    seconds = None
    if tokens_per_second:
        pace, tokens = tokens_per_second, found.tokens
        seconds = Range(tokens.low / pace, tokens.median / pace, tokens.high / pace)
    return pb.Forecast(
        rollouts=_range(found.rollouts),
        tokens=_range(found.tokens),
        seconds=None if seconds is None else _range(seconds),
    )


def _range(found: Range) -> pb.Range:
    return pb.Range(median=found.median, low=found.low, high=found.high)
