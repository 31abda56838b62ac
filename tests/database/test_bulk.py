"""Rows in bulk: the same on each store, whichever way they go."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from unmask_server.database import schema
from unmask_server.database.bulk import insert_all
from unmask_server.database.connect import is_transient, read, write
from unmask_server.tree import TreeStore
from unmask_server.tree.tokens import pack


def rollouts(tree_id: int, count: int) -> list[dict[str, Any]]:
    root = tree_id << 32
    return [
        {
            "id": root + i, "uid": os.urandom(16), "tree_id": tree_id, "start_node_id": root,
            "end_node_id": root, "forced_depth": 0, "depth": 0, "digest": bytes(8), "finish": 1,
            "growth_id": None if i % 2 else "gro-1", "created_at": 1.5,
        }
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 200])
def test_rows_are_there_as_given(database: Engine, count: int) -> None:
    tree_id = TreeStore(database).open_tree("p1", "q1").id
    rows = rollouts(tree_id, count)
    nodes = [
        {
            "id": (tree_id << 32) + 1 + i, "tree_id": tree_id, "parent_id": tree_id << 32,
            "fingerprint": os.urandom(16), "depth": 100, "edge": pack(range(i, i + 100)),
        }
        for i in range(count)
    ]  # fmt: skip
    with write(database) as connection:
        insert_all(connection, schema.rollout, rows)
        insert_all(connection, schema.node, nodes)
    with read(database) as connection:
        found = connection.execute(select(schema.rollout).order_by(schema.rollout.c.id))
        assert [dict(row) for row in found.mappings()] == rows
        below = select(schema.node).where(schema.node.c.depth > 0).order_by(schema.node.c.id)
        assert [dict(row) for row in connection.execute(below).mappings()] == nodes


@pytest.mark.parametrize("count", [5, 200])
def test_a_row_that_is_there_is_refused_and_nothing_is_kept(database: Engine, count: int) -> None:
    rows = rollouts(TreeStore(database).open_tree("p1", "q1").id, count)
    rows[-1]["uid"] = rows[0]["uid"]
    with pytest.raises(IntegrityError) as refused, write(database) as connection:
        insert_all(connection, schema.rollout, rows)
    assert not is_transient(refused.value)
    with read(database) as connection:
        assert connection.execute(select(schema.rollout)).all() == []


def test_a_lost_connection_may_be_tried_again(postgresql_only: Engine) -> None:
    rows = rollouts(TreeStore(postgresql_only).open_tree("p1", "q1").id, 200)

    def lose() -> None:
        with write(postgresql_only) as connection:
            own = connection.scalar(text("SELECT pg_backend_pid()"))
            with postgresql_only.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
            insert_all(connection, schema.rollout, rows)

    with pytest.raises(OperationalError) as lost:
        lose()
    assert is_transient(lost.value)
