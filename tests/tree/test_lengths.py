"""How long the rollouts of a question are; where nobody knows, those of the policy's others."""

from __future__ import annotations

from sqlalchemy import Engine

from tests.tree.making import new, open_graded


def test_the_newest_of_a_tree_come_first(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(*range(n)) for n in range(1, 31)])
    assert store.lengths(tree_id, limit=25) == list(range(30, 5, -1))


def test_a_tree_with_hardly_any_borrows_from_the_policys_others(database: Engine) -> None:
    store, first = open_graded(database, "q1")
    store.add_rollouts(first, [new(*range(7)) for _ in range(3)])
    _, second = open_graded(database, "q2")
    store.add_rollouts(second, [new(1, 2)])
    assert store.lengths(second) == [2, 7, 7, 7]
    other = store.open_tree("p2", "q1").id
    assert store.lengths(other) == []
