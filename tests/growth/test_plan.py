"""What a growth samples next."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unmask_server.growth.plan import (
    Plan,
    PlanNode,
    forced_candidates,
    plan_equal,
    plan_free,
    plan_round,
    plan_windows,
    window_goals,
)


def node(
    key: Hashable,
    valid: int = 0,
    *,
    reach: float = 0.0,
    flat: bool = False,
    candidates: dict[int, int] | None = None,
    exact: tuple[int, ...] = (),
) -> PlanNode:
    tokens = list(candidates or {})
    return PlanNode(
        key=key,
        valid=valid,
        reach=reach,
        flat=flat,
        candidates=np.array(tokens, dtype=np.int32),
        candidate_valid=np.array([(candidates or {})[t] for t in tokens], dtype=np.int64),
        candidate_exact=np.array([t in exact for t in tokens], dtype=bool),
    )


def test_a_free_plan_asks_for_what_the_cache_lacks() -> None:
    plan = plan_free([[node("a", 10), node("b", 40)]], 32, reuse=True)
    assert plan.items == [(0, 0, None, 22)]


def test_rollouts_that_follow_the_path_serve_deeper_nodes() -> None:
    path = [node("a", reach=0.5), node("b", reach=1.0), node("c")]
    plan = plan_free([path], 32, reuse=True)
    # Half of a's 32 arrive at b; all of b's 32 arrive at c.
    assert plan.items == [(0, 0, None, 32), (0, 1, None, 16)]


def test_without_reuse_every_node_gets_its_own() -> None:
    path = [node("a", reach=0.5), node("b", 5)]
    assert plan_free([path], 32, reuse=False).items == [(0, 0, None, 32), (0, 1, None, 27)]


@pytest.mark.parametrize("reuse", [True, False])
def test_a_node_of_two_paths_is_paid_for_once(reuse: bool) -> None:
    plan = plan_free([[node("root")], [node("root")]], 32, reuse=reuse)
    assert plan.total == 32


def test_flat_nodes_get_nothing_but_pass_rollouts_on() -> None:
    path = [node("a", reach=1.0), node("b", flat=True, reach=1.0), node("c")]
    assert plan_free([path], 8, reuse=True).items == [(0, 0, None, 8)]
    assert plan_equal([[node("b", flat=True, candidates={1: 0})]], 8).total == 0


def test_equal_allocation_levels_the_candidates() -> None:
    plan = plan_equal([[node("a", candidates={5: 0, 6: 3, 7: 9})]], 12)
    assert plan.items == [(0, 0, 5, 4), (0, 0, 6, 1)]


def test_an_exact_candidate_needs_one_rollout() -> None:
    plan = plan_equal([[node("a", candidates={5: 0, 6: 1}, exact=(5, 6))]], 100)
    assert plan.items == [(0, 0, 5, 1)]


@given(
    counts=st.dictionaries(st.integers(0, 50), st.integers(0, 30), min_size=1, max_size=8),
    each=st.integers(1, 40),
)
def test_a_round_gives_each_node_its_share_to_the_last_rollout(
    counts: dict[int, int], each: int
) -> None:
    plan = plan_round([[node("a", candidates=counts)]], each, forced=True)
    assert plan.total == each


@given(
    numbers=st.lists(st.integers(1, 50), max_size=20),
    limit=st.integers(1, 200),
)
def test_cutting_a_plan_never_exceeds_the_budget_and_spends_all_of_it(
    numbers: list[int], limit: int
) -> None:
    plan = Plan([(0, i, None, n) for i, n in enumerate(numbers)])
    cut = plan.cut(limit)
    assert cut.total == min(limit, sum(numbers))
    assert all(got <= numbers[index] for _, index, _, got in cut.items)


def test_forced_candidates_are_the_likeliest_of_policy_and_teachers() -> None:
    ids = np.array([10, 11, 12, 13, 14], dtype=np.int32)
    policy = np.array([0.6, 0.3, 0.0995, 0.0004, 0.0001, 0.0])
    teacher = np.array([0.1, 0.1, 0.1, 0.7, 0.0, 0.0])
    assert forced_candidates(ids, policy, [], None, 2).tolist() == [10, 11]
    assert forced_candidates(ids, policy, [teacher], 14, 1).tolist() == [10, 13, 14]


def test_a_token_that_the_policy_never_draws_is_not_forced() -> None:
    ids = np.array([1, 2], dtype=np.int32)
    got = forced_candidates(ids, np.array([1.0, 0, 0]), [np.array([0.5, 0.5, 0])], None, 2)
    assert got.tolist() == [1]


def test_windows_double_and_share_what_they_get() -> None:
    path = [node(i, candidates={1: 0, 2: 0}) for i in range(7)]
    assert window_goals(path, 60) == [60, 30, 30, 15, 15, 15, 15]
    flat = [*path[:3], *(node(i, flat=True) for i in (3, 4)), *path[5:]]
    assert window_goals(flat, 60)[5:] == [30, 30]
    plan = plan_windows([path], 64)
    assert plan.total == 192
    assert {item[3] for item in plan.items if item[1] == 1} == {16}
