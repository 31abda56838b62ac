"""Rewards between 0 and 1: how much they tell, and whether intervals still hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from unmask_server.diagnosis import Counts, NodePosterior
from unmask_server.tree import Moments


def moments(rewards: np.ndarray) -> Moments:
    return Moments(len(rewards), float(rewards.sum()), float((rewards**2).sum()))


def test_outcomes_of_0_and_1_have_a_dispersion_of_1() -> None:
    for ones in (0, 1, 5, 40):
        rewards = np.repeat([1.0, 0.0], [ones, 40 - ones])
        assert moments(rewards).dispersion == 1.0
    assert moments(np.zeros(0)).dispersion == 1.0


def test_it_is_the_variance_over_the_largest_there_could_be() -> None:
    rng = np.random.default_rng(0)
    # Beta(a, b) has the variance m (1 - m) / (a + b + 1).
    found = moments(rng.beta(20.0, 29.0, size=20_000)).dispersion
    assert found == pytest.approx(0.02, rel=0.05)
    # A few rewards are not trusted to say how few there are.
    assert moments(rng.beta(20.0, 29.0, size=4)).dispersion > 0.5


@pytest.mark.parametrize("rollouts", [32, 256])
@pytest.mark.parametrize("uneven", [False, True])
def test_intervals_of_fractional_rewards_hold_the_truth(rollouts: int, uneven: bool) -> None:
    """Lengths that differ by the first token; uneven: and spread differently after each."""
    rng = np.random.default_rng(5)
    held = {True: [], False: []}
    widths = {True: [], False: []}
    for seed in range(120):
        p = rng.dirichlet(np.ones(6))
        centre = rng.uniform(0.2, 0.8, 6)
        strength = rng.choice([10.0, 40.0, 160.0], 6) if uneven else np.full(6, 40.0)
        tokens = rng.choice(6, size=rollouts, p=p)
        rewards = rng.beta((centre * strength)[tokens], ((1.0 - centre) * strength)[tokens])
        n = np.bincount(tokens, minlength=7).astype(float)
        counts = Counts(n, np.bincount(tokens, rewards, 7), np.zeros(7, dtype=bool))
        phi = moments(rewards).dispersion
        truth = p * (centre - p @ centre)
        for told in (True, False):
            known = counts.worth(1.0 / phi) if told else counts
            g = NodePosterior(known, np.append(p, 0.0), seed=seed).gradient[:, :6]
            low, high = np.quantile(g, [0.05, 0.95], axis=0)
            held[told] += ((low <= truth) & (truth <= high)).tolist()
            widths[told] += (high - low).tolist()
    assert np.mean(held[True]) > 0.87
    # Counted as though they were 0 or 1, intervals are wider than they need be.
    assert np.mean(widths[True]) < 0.85 * np.mean(widths[False])
