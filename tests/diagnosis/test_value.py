"""What is known of a node's value, told to the node before it."""

from __future__ import annotations

import numpy as np
import pytest
from unmask_server.diagnosis import Counts, NodePosterior, Value

from tests.diagnosis.making import counts

ONE = np.array([1.0, 0.0])


@pytest.mark.parametrize(("n", "wins"), [(4, 1), (40, 30), (400, 400), (1000, 3)])
def test_the_value_of_a_sure_token_is_worth_its_rollouts(n: int, wins: int) -> None:
    """Where one token is certain, V is that token's success and knows as much."""
    value = Value.of(NodePosterior(counts([n, 0], [wins, 0]), ONE, seed=0, size=20_000))
    assert value.n == pytest.approx(n, rel=0.25, abs=2.0)
    assert value.reward_sum / value.n == pytest.approx(wins / n, abs=1.5 / n)


def test_strata_of_known_probability_tell_more_than_counting() -> None:
    """All that differs between tokens is known, so only what is left within them is noise."""
    p = np.array([0.5, 0.5, 0.0])
    value = Value.of(NodePosterior(counts([50, 50, 0], [50, 0, 0]), p, seed=0, size=20_000))
    assert value.n > 1000
    assert value.reward_sum / value.n == pytest.approx(0.5, abs=0.01)


def test_what_tells_more_is_kept_and_never_both() -> None:
    parent = counts([10, 5, 0], [5, 5, 0])
    told = Value(80.0, 20.0).told_to(parent, 0)
    assert told.n.tolist() == [80.0, 5.0, 0.0]
    assert told.reward_sum.tolist() == [20.0, 5.0, 0.0]
    assert Value(8.0, 2.0).told_to(parent, 0) is parent


def test_an_outcome_that_is_certain_stays() -> None:
    parent = Counts(np.array([1.0, 5.0]), np.array([1.0, 2.0]), np.array([True, False]))
    assert Value(80.0, 20.0).told_to(parent, 0) is parent


def test_a_value_without_data_is_worth_next_to_nothing() -> None:
    drawn = NodePosterior(counts([0, 0, 0], [0, 0, 0]), np.array([0.7, 0.3, 0.0]), seed=1)
    assert Value.of(drawn).n < 3.0
