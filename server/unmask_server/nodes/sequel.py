"""What losses of whole sequences need beside a node."""

from __future__ import annotations

from dataclasses import dataclass, field

from unmask_server.diagnosis import Algorithm, Continuations

Key = tuple[int, Algorithm]
"""A teacher, by its place in the request, and an algorithm."""


@dataclass(frozen=True, slots=True)
class Sequel:
    """What follows a node, and how the teachers would have come to it."""

    continuations: dict[Key, Continuations] = field(default_factory=dict)
    """For EXPECTED sequence losses."""
    later: dict[Key, float] = field(default_factory=dict)
    """For SAMPLED ones: the value of the trajectory's own continuation."""
    weight: dict[Key, float] = field(default_factory=dict)
    """Where part of the data are the teacher's: how often training meets the node, relative to the
    student's own data."""


NO_SEQUEL = Sequel()
"""Where nothing was asked for; never filled."""
