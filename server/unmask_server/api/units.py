"""Numbers in the units of what rollouts were graded by."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.v1 import diagnosis_pb2 as pb

from unmask_server.catalog.types import Verifier
from unmask_server.diagnosis import Algorithm, Interval, Loss


@dataclass(frozen=True, slots=True)
class Units:
    """An objective's: what is computed from rewards in [0, 1] is told in its own units."""

    scale: float
    """What a difference of 1 is; > 0."""
    offset: float
    """What a reward of 0 is."""

    @classmethod
    def of(cls, verifier: Verifier) -> Units:
        """Of a verifier; of one that is no objective they change nothing."""
        return cls(verifier.scale, verifier.offset)

    def level(self, found: Interval | None) -> pb.Interval | None:
        """A reward or a success."""
        return _interval(found, self.scale, self.offset)

    def total(self, rewards: float, n: float) -> float:
        """The sum of n rewards."""
        return self.scale * rewards + self.offset * n

    def change(self, found: Interval | None, step: float = 1.0) -> pb.Interval | None:
        """A difference of successes, or what is linear in them, along a step in units of `step`."""
        return _interval(found, self.scale * step)

    def step(self, algorithm: Algorithm) -> float:
        """What a step of length 1 is: of DR_GRPO its rewards', of other losses the same.

        GRPO's rewards are divided by their standard deviation. Rewards that are added to a
        teacher's loss are in these units before they are added, see `nodes.diagnose`.
        """
        return self.scale if algorithm.loss is Loss.DR_GRPO else 1.0


def scaled(value: float | None, factor: float) -> float | None:
    """A number times a factor, if there is one."""
    return None if value is None else factor * value


def _interval(
    found: Interval | None, factor: float = 1.0, offset: float = 0.0
) -> pb.Interval | None:
    if found is None:
        return None
    return pb.Interval(
        median=offset + factor * found.median,
        low=offset + factor * found.low,
        high=offset + factor * found.high,
    )
