"""Intervals for losses of whole sequences hold the truth where all sequences can be listed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from unmask_server.diagnosis import Algorithm, Continuations, Counts, Loss, NodePosterior, descent
from unmask_server.diagnosis.alignment import Measured, measure
from unmask_server.diagnosis.continuation import value
from unmask_server.diagnosis.gradients import ideal_gradient

pytestmark = pytest.mark.slow

TOKENS, STEPS = 4, 4
IDS = np.arange(TOKENS, dtype=np.int32)
ENDS = np.zeros(TOKENS + 1, dtype=bool)
MINILLM = Algorithm(Loss.MINILLM)
NORMALIZED = Algorithm(Loss.MINILLM, length_normalized=True)


@dataclass
class World:
    """A student, a teacher and outcomes at the root of a tree of given depth, all of it random."""

    p: np.ndarray
    t: np.ndarray
    paths: list[np.ndarray]
    """For each first token: probability, then values by algorithm, then success, a row a path."""

    @classmethod
    def random(cls, rng: np.random.Generator) -> World:
        p = rng.dirichlet(np.full(TOKENS, 0.8))
        t = rng.dirichlet(np.full(TOKENS, 0.8)) * 0.5 + 0.5 * p
        level = rng.random()
        paths = []
        for _ in range(TOKENS):
            rows = []
            count = TOKENS ** (STEPS - 1)
            ratios = rng.normal(rng.normal(-0.2, 0.4), 0.5, (count, STEPS - 1))
            weights = rng.dirichlet(np.full(count, 0.3))
            # Success goes with the log-ratios, more or less.
            slope = rng.normal(0, 1.0)
            mid = np.log(level / (1 - level)) + rng.normal(0, 1.0)
            chance = 1 / (1 + np.exp(-(mid + slope * ratios.sum(1))))
            success = rng.random(count) < chance
            for q, r, s in zip(weights, ratios, success, strict=True):
                rows.append([q, value(MINILLM, 0.0, r), value(NORMALIZED, 0.0, r), float(s)])
            paths.append(np.array(rows))
        return cls(p, t, paths)

    def truth(self, algorithm: Algorithm) -> tuple[float, float]:
        """Exact cosine and gain."""
        column = 2 if algorithm.length_normalized else 1
        later = np.array([rows[:, 0] @ rows[:, column] for rows in self.paths])
        s = np.array([rows[:, 0] @ rows[:, 3] for rows in self.paths])
        g, d = ideal_gradient(self.p, s), descent(algorithm, self.p, self.t, later=later)
        gain = float(g @ d)
        return gain / max(1e-12, float(np.linalg.norm(g) * np.linalg.norm(d))), gain

    def measured(self, algorithm: Algorithm, n: int, rng: np.random.Generator) -> Measured:
        """From n rollouts, a third of them forced equally."""
        column = 2 if algorithm.length_normalized else 1
        token = np.concatenate(
            [rng.choice(TOKENS, size=n - n // 3, p=self.p), np.arange(n // 3) % TOKENS]
        )
        picked = np.array(
            [self.paths[j][rng.choice(len(self.paths[j]), p=self.paths[j][:, 0])] for j in token]
        )
        counts = Counts(
            n=np.bincount(token, minlength=TOKENS + 1).astype(float),
            reward_sum=np.bincount(token, picked[:, 3], minlength=TOKENS + 1),
            exact=ENDS,
        )
        tail = np.append
        return measure(
            NodePosterior(counts, tail(self.p, 0.0), seed=int(rng.integers(1 << 30))),
            algorithm, tail(self.p, 0.0), tail(self.t, 0.0), ids=IDS,
            continuations=Continuations.of(
                token, picked[:, column], picked[:, 3], ENDS, np.zeros(TOKENS + 1)
            ),
        )  # fmt: skip


@pytest.mark.parametrize("algorithm", [MINILLM, NORMALIZED])
@pytest.mark.parametrize("n", [48, 400])
def test_cosines_hold_the_truth(algorithm: Algorithm, n: int) -> None:
    rng = np.random.default_rng(n)
    held = []
    for _ in range(250):
        world = World.random(rng)
        cosine = world.measured(algorithm, n, rng).alignment.cosine
        if cosine is not None:
            held.append(cosine.low <= world.truth(algorithm)[0] <= cosine.high)
    assert len(held) > 60
    assert 0.84 <= np.mean(held) <= 0.97


def test_gains_that_sets_add_up_are_unbiased() -> None:
    rng = np.random.default_rng(9)
    off = []
    for _ in range(40):
        world = World.random(rng)
        truth = world.truth(MINILLM)[1]
        for _ in range(60):
            gain = world.measured(MINILLM, 60, rng).draws.gain
            assert gain is not None
            off.append(float(np.mean(gain)) - truth)
    assert abs(np.mean(off)) < 3 * np.std(off) / np.sqrt(len(off))
