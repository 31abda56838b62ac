"""Rollouts that go from one tree to another, on both databases."""

from __future__ import annotations

import numpy as np
from sqlalchemy import Connection, Engine
from unmask_server.tree import (
    AddResult,
    DistributionStore,
    Merged,
    NewRollout,
    Offered,
    OutcomeStore,
    ShareReader,
    StoredDistribution,
    TreeStore,
    check_tree,
    merge_offered,
    tokens_digest,
)

from tests.tree.making import new, open_graded, uid


def offer(
    store: TreeStore, tree_id: int, rollouts: list[NewRollout], more: dict[int, float]
) -> tuple[AddResult, Merged]:
    """Add rollouts that also have outcomes of other verifiers."""
    offered = {
        one.uid: Offered(tokens_digest(one.tokens), one.forced_depth, {**one.rewards, **more})
        for one in rollouts
    }
    found: list[Merged] = []

    def inside(connection: Connection, result: AddResult) -> None:
        found.append(merge_offered(connection, tree_id, offered, set(result.inserted)))

    return store.add_rollouts(tree_id, rollouts, then=inside), found[-1]


def test_everything_is_read_in_order_with_all_outcomes(database: Engine) -> None:
    store, first = open_graded(database, "q1")
    second = store.open_tree("p1", "q2").id
    store.activate_verifier(second, 1, lambda rollouts: [])
    store.add_rollouts(first, [new(1, n, forced=n % 2, id_=n) for n in range(5)])
    store.add_rollouts(second, [new(7, id_=9)])
    OutcomeStore(database).put(2, {uid(3): 0.5}, {})
    reader = ShareReader(database)
    assert [tree.id for tree in reader.trees(None, None, 0, 10)] == [first, second]
    assert [tree.id for tree in reader.trees(None, None, first, 10)] == [second]
    assert [tree.id for tree in reader.trees("p1", ["q2"], 0, 10)] == [second]
    assert reader.trees("p2", None, 0, 10) == []
    found, last = [], 0
    while page := reader.rollouts(first, last, 2):
        assert len(page) <= 2
        found += page
        last = page[-1].id
    assert [one.uid for one in found] == [uid(n) for n in range(5)]
    assert [one.tokens for one in found] == [(1, n) for n in range(5)]
    assert [one.rewards for one in found] == [
        {1: 1.0} | ({2: 0.5} if n == 3 else {}) for n in range(5)
    ]


def test_what_is_there_is_compared_and_stays(database: Engine) -> None:
    store, tree_id = open_graded(database)
    rollouts = [new(1, n, id_=n) for n in range(4)]
    result, merged = offer(store, tree_id, rollouts, {2: 0.5})
    assert len(result.inserted) == 4
    assert merged == Merged(0, 0, 0, 0)
    outcomes = OutcomeStore(database)
    assert outcomes.lacking(tree_id, 2) == 0
    # Again, with outcomes of one more verifier, one other number, and other tokens for one.
    again = [*rollouts[1:], new(1, 2, 3, id_=0)]
    result, merged = offer(store, tree_id, again, {2: 0.25, 3: 1.0})
    assert result.inserted == []
    assert merged == Merged(known=4, different=1, outcomes_added=3, outcomes_different=3)
    assert outcomes.of_rollout(uid(1), 2) == 0.5
    assert outcomes.of_rollout(uid(1), 3) == 1.0
    assert outcomes.of_rollout(uid(0), 3) is None
    # Of another tree, or forced otherwise, it is another rollout.
    other = store.open_tree("p1", "q2").id
    store.activate_verifier(other, 1, lambda rollouts: [])
    assert offer(store, other, [rollouts[0]], {})[1].different == 1
    assert offer(store, tree_id, [new(1, 1, forced=1, id_=1)], {})[1].different == 1
    assert check_tree(database, tree_id) == check_tree(database, other) == []


def test_distributions_are_read_by_their_keys_and_never_replaced(database: Engine) -> None:
    store, reader = DistributionStore(database), ShareReader(database)

    def made(value: float) -> StoredDistribution:
        return StoredDistribution(np.array([3], np.int32), np.array([value], np.float32), 1, False)

    assert store.put_new({uid(n): made(-1.0) for n in (3, 1, 2)}) == {uid(1), uid(2), uid(3)}
    assert store.put_new({uid(n): made(-2.0) for n in (3, 4)}) == {uid(4)}
    found = reader.distributions(b"", 3)
    assert [key for key, _ in found] == [uid(1), uid(2), uid(3)]
    assert [key for key, _ in reader.distributions(uid(3), 3)] == [uid(4)]
    assert found[-1][1].logprobs.tolist() == [-1.0]
