"""`check_tree` finds what is wrong; that it finds nothing else, all other tests show."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, update
from unmask_server.database import schema
from unmask_server.database.connect import write
from unmask_server.tree import check_tree

from tests.tree.making import new, open_graded


@pytest.fixture
def tree_id(database: Engine) -> int:
    store, tree_id = open_graded(database)
    store.add_rollouts(
        tree_id, [new(1, 2, 3, id_=1), new(1, 2, 4, id_=2), new(1, 5, 6, forced=2, id_=3)]
    )
    assert check_tree(database, tree_id) == []
    return tree_id


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (update(schema.node).where(schema.node.c.depth == 2).values(depth=3), "do not add up to"),
        (
            update(schema.node).where(schema.node.c.depth == 2).values(fingerprint=bytes(16)),
            "its fingerprint is wrong",
        ),
        (
            update(schema.node).where(schema.node.c.parent_id.is_(None)).values(depth=1),
            "the root has",
        ),
        (update(schema.node_stat).values(n=9), "counts of verifier 1"),
        (update(schema.node_stat).values(reward_sum=0.5), "counts of verifier 1"),
        (update(schema.node_stat).values(verifier_key=2), "which is not active"),
        (update(schema.tree).values(rollouts=4), "the tree says 4 rollouts, there are 3"),
        (update(schema.tree).values(nodes=99), "the tree says 99 nodes"),
        (update(schema.tree).values(tokens=1), "the tree says 1 tokens"),
        (update(schema.rollout).values(digest=bytes(16)), "does not spell its tokens"),
        (
            update(schema.rollout).where(schema.rollout.c.forced_depth == 2).values(forced_depth=3),
            "does not start before its last forced token",
        ),
        (schema.outcome.delete(), "0 outcomes of 1"),
    ],
)
def test_damage_is_reported(database: Engine, tree_id: int, statement: Any, problem: str) -> None:
    with write(database) as connection:
        if statement.is_update and statement.table is schema.node and problem.endswith("wrong"):
            statement = statement.where(schema.node.c.edge != b"")
        connection.execute(statement)
    assert any(problem in line for line in check_tree(database, tree_id))


def test_a_needless_node_is_reported(database: Engine, tree_id: int) -> None:
    with write(database) as connection:
        connection.execute(schema.outcome.delete())
        connection.execute(schema.rollout.delete())
    assert any("nothing branches" in line for line in check_tree(database, tree_id))


def test_a_missing_tree_is_reported(database: Engine) -> None:
    assert check_tree(database, 5) == ["there is no tree 5"]
