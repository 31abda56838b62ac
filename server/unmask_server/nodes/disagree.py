"""Where two objectives disagree about a teacher."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unmask_server.diagnosis import Algorithm, Alignment, Interval
from unmask_server.nodes.resolve import NodeSet
from unmask_server.nodes.summarize import Row

SURE = 0.95
"""Two objectives disagree where one is surer than this that the cosine is above zero, and the other
that it is not."""
KEPT = 100
"""Nodes of each disagreement that are told one by one."""


@dataclass(frozen=True, slots=True)
class Disputed:
    """A node that one objective is for and the other against."""

    trajectory: str
    position: int
    token: int
    cosine: Interval
    other_cosine: Interval
    p_positive: float
    other_p_positive: float

    @property
    def apart(self) -> float:
        """How far the cosines are apart, in [0, 2]."""
        return abs(self.cosine.median - self.other_cosine.median)


@dataclass(slots=True)
class Disagreement:
    """Two objectives, by their places in the request, about a teacher under an algorithm."""

    objective: int
    other: int
    teacher: int | None
    algorithm: Algorithm
    scored: int = 0
    """Nodes that have a cosine under both."""
    disagreeing: int = 0
    _widest: list[tuple[float, int, Disputed]] = field(default_factory=list)

    @property
    def nodes(self) -> list[Disputed]:
        """Those that disagree, the widest apart first; at most `KEPT`."""
        return [node for *_, node in sorted(self._widest, reverse=True, key=lambda row: row[:2])]

    def add(self, nodes: NodeSet, index: int, a: Alignment, b: Alignment) -> None:
        """Count a node in."""
        if a.cosine is None or b.cosine is None or a.p_positive is None or b.p_positive is None:
            return
        self.scored += 1
        low, high = sorted((a.p_positive, b.p_positive))
        if not (low < 1.0 - SURE and high > SURE):
            return
        self.disagreeing += 1
        position = nodes.positions[index]
        found = Disputed(
            nodes.trajectory.id if nodes.trajectory else "",
            position,
            nodes.tokens[position],
            a.cosine,
            b.cosine,
            a.p_positive,
            b.p_positive,
        )
        # Of nodes equally far apart the first ones are kept.
        heapq.heappush(self._widest, (found.apart, -self.disagreeing, found))
        if len(self._widest) > KEPT:
            heapq.heappop(self._widest)


class Disagreements:
    """All pairs of objectives, about all teachers under all algorithms."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, int | None, Algorithm], Disagreement] = {}

    def add(self, nodes: NodeSet, answers: Sequence[Sequence[Mapping[Row, Alignment]]]) -> None:
        """Count the nodes of a trajectory in.

        Args:
            nodes: of a trajectory.
            answers: by objective, by node, as `Summarizer.add` returns them.

        """
        for (i, mine), (k, others) in itertools.combinations(enumerate(answers), 2):
            for index, (here, there) in enumerate(zip(mine, others, strict=True)):
                for row, alignment in here.items():
                    key = (i, k, *row)
                    found = self._found.setdefault(key, Disagreement(*key))
                    found.add(nodes, index, alignment, there[row])

    @property
    def rows(self) -> list[Disagreement]:
        """Pair by pair; for each, teachers and algorithms in the order of the summaries."""
        return sorted(self._found.values(), key=lambda row: (row.objective, row.other))
