"""What a rollout will cost before it is sampled."""

from __future__ import annotations

import numpy as np
import pytest
from unmask_server.growth.lengths import PREFILL_SHARE, SHARING, Lengths
from unmask_server.tree import SeenLengths


def lengths(
    own: list[int],
    others: list[int] | None = None,
    forced: list[tuple[int, int]] | None = None,
    limit: int = 50,
) -> Lengths:
    return Lengths(SeenLengths(own, others or [], forced or []), limit)


def test_what_is_left_is_the_mean_over_those_that_got_further() -> None:
    found = lengths([10, 20, 30])
    assert found.tokens([0, 10, 25], 0) - PREFILL_SHARE / SHARING * np.array([0, 10, 25]) == (
        pytest.approx([20.0, 15.0, 5.0])
    )


def test_all_other_questions_together_are_worth_one_generation() -> None:
    assert lengths([10], [20, 30, 40]).tokens([0], 0)[0] == pytest.approx((10 + 30) / 2)
    assert lengths([10] * 9, [20, 30, 40]).tokens([0], 0)[0] == pytest.approx((90 + 30) / 10)
    assert lengths([], [20, 40]).tokens([0], 0)[0] == pytest.approx(30.0)


def test_rollouts_that_were_forced_near_a_place_tell_of_it() -> None:
    forced = [(20, 24)] * 1000
    found = lengths([40], forced=forced).tokens([0, 20], 0)
    without = lengths([40]).tokens([0, 20], 0)
    assert found[1] - PREFILL_SHARE / SHARING * 20 == pytest.approx(4.0, abs=0.1)
    # Where none of them began near, they hardly matter.
    assert found[0] == pytest.approx(without[0], rel=0.25)


def test_beyond_all_that_was_seen_a_token_is_left() -> None:
    assert lengths([10]).tokens([30], 0)[0] >= 1.0


def test_without_any_the_limit_is_assumed() -> None:
    assert lengths([]).tokens([0], 0)[0] == pytest.approx(50.0)


def test_a_long_prompt_costs_its_share() -> None:
    found = lengths([10])
    assert found.tokens([0], 8000)[0] - found.tokens([0], 0)[0] == pytest.approx(
        8000 * PREFILL_SHARE / SHARING
    )
