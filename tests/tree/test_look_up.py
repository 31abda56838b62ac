"""Looking up a trajectory: one query, by indexes, whatever the size of the tree."""

from __future__ import annotations

import random
import re

import pytest
from sqlalchemy import Engine, update
from unmask_server.database.connect import write
from unmask_server.database.schema import node
from unmask_server.tree import TreeCorruptError, TreeStore, VerifiersDifferError

from tests.tree.making import new, open_graded
from tests.tree.watching import statements


@pytest.mark.parametrize("depth", [1, 50, 3000])
def test_one_query_whatever_the_depth(database: Engine, depth: int) -> None:
    store, tree_id = open_graded(database)
    trajectory = tuple(n % 7 for n in range(depth))
    forced = [new(*trajectory[:t], 9, forced=t + 1) for t in range(0, depth, 3)]
    store.add_rollouts(tree_id, [new(*trajectory), *forced])
    with statements(database) as seen:
        view = store.look_up(tree_id, trajectory, range(depth + 1), 1)
    assert len(seen) == 1
    assert [counted.position for counted in view.nodes] == list(range(depth + 1))
    assert all(counted.n == 1 for counted in view.nodes)
    assert view.nodes[0].children.n.tolist() == [1, 1]


def test_the_first_look_up_of_a_server_asks_for_the_tree_too(database: Engine) -> None:
    _, tree_id = open_graded(database)
    store = TreeStore(database)
    with statements(database) as seen:
        store.look_up(tree_id, (1,), [0], 1)
        store.look_up(tree_id, (1,), [0], 1)
    assert len(seen) == 3


def test_positions_come_back_in_their_order(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, 3)])
    view = store.look_up(tree_id, (1, 2, 3), [2, 0, 2], 1)
    assert [counted.position for counted in view.nodes] == [2, 0, 2]
    assert [counted.children.tokens.tolist() for counted in view.nodes] == [[3], [1], [3]]


def test_where_nobody_has_been_there_are_zeros(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, 3, 4)])
    view = store.look_up(tree_id, (1, 2, 9, 9), range(5), 1)
    assert [counted.n for counted in view.nodes] == [1, 1, 1, 0, 0]
    assert [len(counted.children.tokens) for counted in view.nodes] == [1, 1, 1, 0, 0]


def test_a_continuation_that_was_only_imposed_is_not_listed(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, 3, forced=3)])
    view = store.look_up(tree_id, (1, 2), range(3), 1)
    assert [counted.children.n.tolist() for counted in view.nodes] == [[], [], [1]]


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_must_be_on_the_trajectory(database: Engine, position: int) -> None:
    store, tree_id = open_graded(database)
    with pytest.raises(ValueError, match=rf"position {position} is not in \[0, 2\]"):
        store.look_up(tree_id, (1, 2), [position], 1)


def test_a_verifier_must_be_active(database: Engine) -> None:
    store, tree_id = open_graded(database)
    with pytest.raises(VerifiersDifferError, match="verifier 2 is not active"):
        store.look_up(tree_id, (), [0], 2)


def test_tokens_verify_what_names_find(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, 3), new(1, 2, 4)])
    with write(database) as connection:
        longer = (1).to_bytes(4, "little") + (9).to_bytes(4, "little")
        connection.execute(update(node).where(node.c.depth == 2).values(edge=longer))
    with pytest.raises(TreeCorruptError, match="not below its path"):
        store.look_up(tree_id, (1, 2, 3), [3], 1)


def test_a_name_without_its_token_is_refused(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, 3)])
    with write(database) as connection:
        edge = b"".join(n.to_bytes(4, "little") for n in (9, 2, 3))
        connection.execute(update(node).where(node.c.depth == 3).values(edge=edge))
    with pytest.raises(TreeCorruptError, match="does not begin with its path's token"):
        store.look_up(tree_id, (1, 2, 3), [3], 1)


def test_nothing_is_scanned(database: Engine) -> None:
    """Read from the plans: every access to a table of the tree is by an index."""
    store, tree_id = open_graded(database)
    rng = random.Random(0)
    rollouts = [
        new(*(rng.randrange(20) for _ in range(12)), forced=rng.randrange(12)) for _ in range(800)
    ]
    store.add_rollouts(tree_id, rollouts)
    with statements(database) as seen:
        store.look_up(tree_id, rollouts[0].tokens, range(13), 1)
        store.look_up(tree_id, rollouts[0].tokens, [5], 1)
        store.iter_rollouts(tree_id, 0, 20)
        store.add_rollouts(tree_id, [rollouts[0], new(1, 2, 3)])
    postgresql = database.dialect.name == "postgresql"
    explain = "EXPLAIN " if postgresql else "EXPLAIN QUERY PLAN "
    scan = re.compile(r"(Seq Scan on|SCAN) (node|node_stat|rollout|outcome)\b|AUTOMATIC")
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if postgresql:
            connection.exec_driver_sql("ANALYZE")
            # Small tables are scanned for good reasons; a plan that could do without shows here.
            connection.exec_driver_sql("SET enable_seqscan = off")
        for statement, parameters in seen:
            if statement.startswith(("SELECT", "WITH")):
                rows = connection.exec_driver_sql(explain + statement, parameters)
                plan = "\n".join(row[-1] for row in rows)
                assert not scan.search(plan), plan
