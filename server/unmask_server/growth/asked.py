"""The trajectories that one call asks for, each by its place in the order asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from unmask_server.catalog.types import Policy, Question
from unmask_server.growth.recorder import rollout_uid

_MISSING, _FOUND, _SAMPLED = range(3)


@dataclass(frozen=True, slots=True)
class Asked:
    """`count` of a seed for each question, question by question: places from 0 on."""

    policy: Policy
    questions: Sequence[Question]
    """Each once."""
    count: int
    seed: int

    def __len__(self) -> int:
        """How many in all."""
        return len(self.questions) * self.count

    def question(self, place: int) -> Question:
        """What it answers."""
        return self.questions[place // self.count]

    def ordinal(self, place: int) -> int:
        """Which of its question's it is."""
        return place % self.count

    def id(self, place: int) -> str:
        """Its id."""
        question = self.question(place).id
        return sampled_id(self.policy.id, question, self.seed, self.ordinal(place))

    def by_question(self, places: Iterable[int]) -> Iterator[tuple[Question, list[int]]]:
        """Places, in order, by question."""
        for index, part in groupby(places, lambda place: place // self.count):
            yield self.questions[index], list(part)


class Places:
    """Which of them are stored. For one event loop."""

    def __init__(self, size: int) -> None:
        self._marks = bytearray(size)
        self._changed = asyncio.Event()

    def found(self, places: Iterable[int]) -> None:
        """These are there already."""
        self._mark(places, _FOUND)

    def sampled(self, places: Iterable[int]) -> None:
        """These were sampled now, and are stored."""
        self._mark(places, _SAMPLED)

    def is_new(self, place: int) -> bool:
        """Whether it was sampled now."""
        return self._marks[place] == _SAMPLED

    async def following(self, start: int, most: int, work: asyncio.Task[None]) -> range:
        """What is stored from `start` on without a gap, at most `most`; waits for one at least.

        Raises whatever `work`, which stores them, failed with; it is over only when all are there.
        """
        work.add_done_callback(self._wake)
        try:
            while True:
                last = min(start + most, len(self._marks))
                gap = self._marks.find(_MISSING, start, last)
                if gap != start:
                    return range(start, last if gap < 0 else gap)
                if work.done():
                    work.result()
                    raise RuntimeError(f"trajectory {start} was not made")
                self._changed.clear()
                await self._changed.wait()
        finally:
            work.remove_done_callback(self._wake)

    def _mark(self, places: Iterable[int], how: int) -> None:
        for place in places:
            self._marks[place] = how
        self._changed.set()

    def _wake(self, _: asyncio.Task[None]) -> None:
        self._changed.set()


def sampled_id(policy_id: str, question_id: str, seed: int, ordinal: int) -> str:
    """The id of a sampled trajectory."""
    return "trj-" + rollout_uid("sampled", policy_id, question_id, seed, ordinal).hex()[:24]
