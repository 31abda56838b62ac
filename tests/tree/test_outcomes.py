"""Outcomes that are given from outside, on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine
from unmask_server.tree import (
    OutcomeDiffersError,
    OutcomeStore,
    StoredRollout,
    TreeStore,
    UnknownRolloutError,
    VerifiersDifferError,
    check_tree,
)
from unmask_server.tree.types import NewRollout

from tests.tree.making import new, open_graded, uid


def filled(database: Engine, number: int = 6) -> tuple[TreeStore, OutcomeStore, int]:
    store, tree_id = open_graded(database)
    store.add_rollouts(
        tree_id, [new(1, n, forced=n % 2, reward=n / number, id_=n) for n in range(number)]
    )
    return store, OutcomeStore(database), tree_id


def activate(store: TreeStore, outcomes: OutcomeStore, tree_id: int, key: int) -> None:
    def grade(rollouts: list[StoredRollout]) -> list[float]:
        known = outcomes.read(key, rollouts[0].id, rollouts[-1].id)
        return [known[rollout.id] for rollout in rollouts]

    store.activate_verifier(tree_id, key, grade)


def test_given_outcomes_are_counted_once_all_are_there(database: Engine) -> None:
    store, outcomes, tree_id = filled(database)
    assert outcomes.put(2, {uid(n): 0.25 for n in range(4)}, {}) == 4
    assert outcomes.lacking(tree_id, 2) == 2
    lacking = outcomes.rollouts(tree_id, 0, 10, 2)
    assert [rollout.uid for rollout in lacking] == [uid(4), uid(5)]
    assert [r.uid for r in outcomes.rollouts(tree_id, lacking[0].id, 10, 2)] == [uid(5)]
    assert outcomes.put(2, {uid(n): 0.25 for n in range(6)}, {}) == 2
    activate(store, outcomes, tree_id, 2)
    (root,) = store.look_up(tree_id, (), [0], 2).nodes
    assert (root.n, root.reward_sum) == (3, 0.75)
    assert outcomes.of_rollout(uid(1), 2) == 0.25
    assert outcomes.of_rollout(uid(1), 3) is None
    assert check_tree(database, tree_id) == []


def test_outcomes_are_kept_all_or_none_and_never_changed(database: Engine) -> None:
    _, outcomes, tree_id = filled(database)
    outcomes.put(2, {uid(0): 0.5}, {})
    with pytest.raises(OutcomeDiffersError):
        outcomes.put(2, {uid(1): 0.5, uid(0): 0.25}, {})
    with pytest.raises(UnknownRolloutError):
        outcomes.put(2, {uid(1): 0.5, uid(99): 0.5}, {})
    assert outcomes.lacking(tree_id, 2) == 5
    assert outcomes.put(2, {uid(0): 0.5}, {}) == 0


def test_a_deactivated_verifier_is_not_asked_of_new_rollouts(database: Engine) -> None:
    store, outcomes, tree_id = filled(database)
    outcomes.put(2, {uid(n): 0.5 for n in range(6)}, {})
    activate(store, outcomes, tree_id, 2)
    with pytest.raises(VerifiersDifferError):
        store.add_rollouts(tree_id, [new(1, 9, id_=9)])
    version = store.versions([tree_id])[tree_id]
    outcomes.deactivate(tree_id, [2])
    outcomes.deactivate(tree_id, [2])
    assert store.versions([tree_id])[tree_id] == version + 1
    assert store.verifiers(tree_id) == {1}
    # This splits an edge that had counts of the other verifier, too.
    store.add_rollouts(tree_id, [NewRollout(uid(9), (1,), 0, 0, {1: 1.0})])
    assert check_tree(database, tree_id) == []
    with pytest.raises(VerifiersDifferError):
        store.look_up(tree_id, (), [0], 2)
    assert outcomes.lacking(tree_id, 2) == 1
    outcomes.put(2, {uid(9): 1.0}, {})
    activate(store, outcomes, tree_id, 2)
    (root,) = store.look_up(tree_id, (), [0], 2).nodes
    assert (root.n, root.reward_sum) == (4, 2.5)
    assert check_tree(database, tree_id) == []


def test_moments_are_of_the_free_rollouts_of_a_version(database: Engine) -> None:
    _, outcomes, tree_id = filled(database)
    # Free are those with even numbers: rewards 0, 2/6 and 4/6.
    found = outcomes.moments(tree_id, 1, 6, free=True)
    assert found.n == 3
    assert found.total == pytest.approx(1.0)
    assert found.squares == pytest.approx(20 / 36)
    earlier = outcomes.moments(tree_id, 1, 3, free=True)
    assert (earlier.n, earlier.total) == (2, pytest.approx(1 / 3))
    assert outcomes.moments(tree_id, 1, 0, free=True).n == 0
    assert outcomes.moments(tree_id, 1, 6).total == pytest.approx(15 / 6)
