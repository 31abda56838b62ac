"""How long the rollouts of a question are; where nobody knows, those of the policy's others."""

from __future__ import annotations

from sqlalchemy import Engine
from unmask_server.tree import SeenLengths

from tests.tree.making import new, open_graded


def test_free_and_forced_rollouts_are_told_apart(database: Engine) -> None:
    store, tree_id = open_graded(database)
    free = [new(*range(n)) for n in range(1, 31)]
    store.add_rollouts(tree_id, [*free, *(new(*range(50), forced=40) for _ in range(5))])
    assert store.lengths(tree_id) == SeenLengths(list(range(1, 31)), [], [(40, 50)] * 5)


def test_a_tree_with_hardly_any_borrows_from_the_policys_others(database: Engine) -> None:
    store, first = open_graded(database, "q1")
    store.add_rollouts(first, [new(*range(7)) for _ in range(3)])
    _, second = open_graded(database, "q2")
    store.add_rollouts(second, [new(1, 2)])
    assert store.lengths(second) == SeenLengths([2], [7, 7, 7], [])
    other = store.open_tree("p2", "q1").id
    assert store.lengths(other) == SeenLengths([], [], [])
