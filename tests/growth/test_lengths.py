"""What a rollout will cost before it is sampled."""

from __future__ import annotations

import numpy as np
import pytest
from unmask_server.growth.lengths import PREFILL_SHARE, SHARING, Lengths


def test_what_is_left_is_the_mean_over_those_that_got_further() -> None:
    lengths = Lengths([10, 20, 30], limit=50)
    assert lengths.tokens([0, 10, 25], 0) - PREFILL_SHARE / SHARING * np.array([0, 10, 25]) == (
        pytest.approx([20.0, 15.0, 5.0])
    )


def test_beyond_all_that_was_seen_a_token_is_left() -> None:
    assert Lengths([10], limit=50).tokens([30], 0)[0] >= 1.0


def test_without_any_the_limit_is_assumed() -> None:
    assert Lengths([], limit=50).tokens([0], 0)[0] == pytest.approx(50.0)


def test_a_long_prompt_costs_its_share() -> None:
    lengths = Lengths([10], limit=50)
    assert lengths.tokens([0], 8000)[0] - lengths.tokens([0], 0)[0] == pytest.approx(
        8000 * PREFILL_SHARE / SHARING
    )
