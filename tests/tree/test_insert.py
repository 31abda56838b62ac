"""Recording rollouts: once each, all or nothing, valid where they are valid."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from sqlalchemy import Connection, Engine, func, select, update
from unmask_server.database.connect import query
from unmask_server.database.schema import node, rollout, verifier
from unmask_server.tree import (
    FINISH_LENGTH,
    AddResult,
    NewRollout,
    TreeStore,
    UnknownTreeError,
    VerifiersDifferError,
    check_tree,
)

from tests.tree.making import new, open_graded, uid
from tests.tree.watching import statements


def counts(store: TreeStore, tree_id: int, *prefix: int) -> tuple[int, float, int]:
    (seen,) = store.look_up(tree_id, prefix, [len(prefix)], 1).nodes
    return seen.n, seen.reward_sum, seen.truncated


def test_opening_a_tree_twice_gives_the_same_tree(database: Engine) -> None:
    store = TreeStore(database)
    assert store.open_tree("p1", "q1") == store.open_tree("p1", "q1")
    assert store.open_tree("p1", "q2").id != store.open_tree("p2", "q2").id


def test_a_tree_needs_a_known_policy_and_question(database: Engine) -> None:
    with pytest.raises(LookupError, match="no policy 'p9' or question 'q1'"):
        TreeStore(database).open_tree("p9", "q1")


def test_a_forced_rollout_counts_from_its_forcing_on(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, 3, 4, forced=2)])
    assert [counts(store, tree_id, *(1, 2, 3, 4)[:t])[0] for t in range(5)] == [0, 0, 1, 1, 1]
    (above,) = store.look_up(tree_id, (1, 2), [1], 1).nodes
    assert above.children.tokens.tolist() == [2]
    assert (above.children.n.tolist(), above.children.free_n.tolist()) == ([1], [0])


def test_a_truncated_rollout_is_counted_as_one(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, finish=FINISH_LENGTH, reward=0.0), new(1, 3)])
    assert counts(store, tree_id, 1) == (2, 1.0, 1)


def test_the_same_path_twice_counts_twice(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2), new(1, 2)])
    store.add_rollouts(tree_id, [new(1, 2, reward=0.0)])
    assert counts(store, tree_id, 1, 2) == (3, 2.0, 0)
    assert check_tree(database, tree_id) == []


def test_a_known_uid_changes_nothing(database: Engine) -> None:
    store, tree_id = open_graded(database)
    first = store.add_rollouts(tree_id, [new(1, 2, id_=1), new(5, id_=1), new(3, forced=1, id_=2)])
    assert first.inserted == [uid(1), uid(2)]
    assert first.duplicates == [uid(1)]
    assert first.tokens == 2
    again = store.add_rollouts(tree_id, [new(9, 9, id_=2)])
    assert again == AddResult([], [uid(2)], first.version, 0)
    assert store.versions([tree_id]) == {tree_id: first.version}
    assert store.statistics().rollouts == 2
    assert counts(store, tree_id, 9) == (0, 0.0, 0)


def test_a_uid_of_another_tree_is_known_too(database: Engine) -> None:
    store, tree_id = open_graded(database)
    _, other_id = open_graded(database, "q2")
    store.add_rollouts(tree_id, [new(1, id_=1)])
    assert store.add_rollouts(other_id, [new(1, id_=1), new(2, id_=2)]).inserted == [uid(2)]


def test_an_empty_rollout_counts_at_the_root(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(reward=0.0)])
    assert counts(store, tree_id) == (1, 0.0, 0)
    assert [stored.tokens for stored in store.iter_rollouts(tree_id, 0, 10)] == [()]


def test_an_empty_batch_changes_nothing(database: Engine) -> None:
    store, tree_id = open_graded(database)
    assert store.add_rollouts(tree_id, []) == AddResult([], [], 1, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(new(1), uid=b"short"), "16 bytes, not 5"),
        (new(1, 2, forced=3), r"forced_depth 3 is not in \[0, 2\]"),
        (new(1, forced=-1), "forced_depth -1"),
        (new(1, finish=2), "finish is 0"),
        (new(1, reward=math.nan), "verifier 1 gave nan"),
        (new(1, reward=1.5), "verifier 1 gave 1.5"),
        (new(4, -1), "token 1 is -1"),
        (new(2**31), "token 0 is 2147483648"),
        (new(2**32), "token 0 is 4294967296"),
    ],
)
def test_what_is_malformed_is_refused_with_its_whole_batch(
    database: Engine, wrong: NewRollout, message: str
) -> None:
    store, tree_id = open_graded(database)
    with pytest.raises(ValueError, match=message):
        store.add_rollouts(tree_id, [new(1), wrong])
    assert store.statistics().rollouts == 0


@pytest.mark.parametrize("rewards", [{}, {2: 1.0}, {1: 1.0, 2: 1.0}])
def test_rewards_must_be_those_of_the_active_verifiers(
    database: Engine, rewards: dict[int, float]
) -> None:
    store, tree_id = open_graded(database)
    with pytest.raises(VerifiersDifferError, match=r"needed under the verifiers \[1\]"):
        store.add_rollouts(tree_id, [new(1), replace(new(2), rewards=rewards)])
    assert store.statistics().rollouts == 0


def test_a_tree_must_exist(database: Engine) -> None:
    store = TreeStore(database)
    with pytest.raises(UnknownTreeError, match="no tree 1000000"):
        store.add_rollouts(1_000_000, [])
    with pytest.raises(UnknownTreeError, match="no tree 1000000"):
        store.look_up(1_000_000, (1,), [0], 1)


def test_what_is_done_then_is_done_with_the_batch(database: Engine) -> None:
    store, tree_id = open_graded(database)

    def charge(connection: Connection, result: AddResult) -> None:
        key = verifier.c.key == 3
        spent = verifier.c.version + result.tokens
        connection.execute(update(verifier).where(key).values(version=spent))

    def refuse(connection: Connection, result: AddResult) -> None:
        charge(connection, result)
        raise KeyError("over budget")

    def spent(connection: Connection) -> int:
        return connection.scalar(select(verifier.c.version).where(verifier.c.key == 3)) or 0

    store.add_rollouts(tree_id, [new(1, 2, 3, forced=1, id_=1)], then=charge)
    assert query(database, spent) == 1 + 2
    with pytest.raises(KeyError):
        store.add_rollouts(tree_id, [new(4, 5, id_=2)], then=refuse)
    assert query(database, spent) == 1 + 2
    assert store.statistics().rollouts == 1
    # A batch that is sent again is charged nothing.
    store.add_rollouts(tree_id, [new(1, 2, 3, forced=1, id_=1)], then=charge)
    assert query(database, spent) == 1 + 2


def test_edges_are_split_only_where_something_happens(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(*range(1000))])
    assert store.statistics().nodes == 2
    # Diverging at 500 makes one node and one leaf; forcing the token after 700 makes one node.
    store.add_rollouts(tree_id, [new(*range(500), 7, 7)])
    assert store.statistics().nodes == 4
    store.add_rollouts(tree_id, [new(*range(1000), forced=701)])
    assert store.statistics().nodes == 5
    assert check_tree(database, tree_id) == []


def test_a_batch_costs_no_statement_a_rollout(database: Engine) -> None:
    store, tree_id = open_graded(database)
    with statements(database) as seen:
        store.add_rollouts(tree_id, [new(n % 3, n % 5, n % 7, n, forced=n % 4) for n in range(300)])
    assert len(seen) < 20


def test_deep_trees_take_windows_not_levels(database: Engine) -> None:
    """A node at every token of a long trajectory: the batch on it is loaded in few queries."""
    store, tree_id = open_graded(database)
    trajectory = tuple(n % 11 for n in range(600))
    store.add_rollouts(
        tree_id, [new(*trajectory[:t], 50, 51, forced=t + 1) for t in range(len(trajectory))]
    )
    with statements(database) as seen:
        store.add_rollouts(tree_id, [new(*trajectory, 60), new(*trajectory[:599], 61, forced=600)])
    assert len(seen) < 30
    assert check_tree(database, tree_id) == []


def test_ids_are_of_their_tree(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1), new(2)])

    def ids(connection: Connection) -> set[int]:
        found = {*connection.scalars(select(node.c.id)), *connection.scalars(select(rollout.c.id))}
        return {id_ >> 32 for id_ in found}

    assert query(database, ids) == {tree_id}
    assert query(database, lambda c: c.scalar(select(func.count()).select_from(rollout))) == 2
