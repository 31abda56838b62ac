"""Stores that servers of every earlier revision filled, under the present one.

`filled/` holds them: what `filled/make.py` stored through the server of that revision, row by row,
with what that server answered.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from sqlalchemy import Engine, MetaData, func, insert, select, text
from unmask.v1 import diagnosis_pb2, growth_pb2
from unmask_server.database.connect import open_database, read, write
from unmask_server.database.migrate import head_revision, migrate
from unmask_server.database.packing import decode_tokens
from unmask_server.database.schema import growth, metadata, outcome, rollout, tree
from unmask_server.tree import TreeStore, check_tree

from tests.e2e.conftest import serving

pytestmark = pytest.mark.slow

FILLED = Path(__file__).with_name("filled")
MODELS = Path(__file__).parents[2] / "examples/models"
REVISIONS = sorted(path.name.removesuffix(".jsonl.gz") for path in FILLED.glob("*.gz"))

Rows = dict[str, list[dict[str, Any]]]


def stored(value: Any) -> Any:
    match value:
        case {"hex": digits}:
            return bytes.fromhex(digits)
        case {"model": name}:
            return str(MODELS / name)
    return value


def fill(url: str, file: str) -> tuple[str, list[dict[str, Any]], Rows]:
    """Bring an empty database to what a file holds, by its own revision's tables.

    Returns the revision, what its server answered, and the rows by table.
    """
    with gzip.open(FILLED / f"{file}.jsonl.gz", "rt") as lines:
        head, *rest = map(json.loads, lines)
    rows: Rows = {}
    for line in rest:
        row = {name: stored(value) for name, value in line["row"].items()}
        rows.setdefault(line["table"], []).append(row)
    migrate(url, head["revision"])
    engine = open_database(url)
    tables = MetaData()
    tables.reflect(engine)
    for name, of_table in rows.items():
        for column in tables.tables[name].columns:
            kind = metadata.tables[name].columns[column.name].type
            for row in of_table:
                value = row[column.name]
                if value is not None and kind.python_type is bool:
                    row[column.name] = bool(value)
                # SQLite keeps JSON as text; `none_as_null` stays a null.
                if isinstance(value, str) and column.type.__class__.__name__ == "JSON":
                    row[column.name] = json.loads(value)
    with write(engine) as connection:
        for name, of_table in rows.items():
            assert of_table[0].keys() == set(tables.tables[name].columns.keys())
            connection.execute(insert(tables.tables[name]), of_table)
        if engine.dialect.name == "postgresql":
            for name in ("tree", "verifier"):
                key = "id" if name == "tree" else "key"
                last = f"(SELECT max({key}) FROM {name})"
                connection.execute(
                    text(f"SELECT setval(pg_get_serial_sequence('{name}', '{key}'), {last})")
                )
    engine.dispose()
    return head["revision"], head["answers"], rows


def everything(engine: Engine, rows: Rows) -> Rows:
    """The present rows of the tables and columns that `rows` has, sorted."""
    found: Rows = {}
    with read(engine) as connection:
        for name, of_table in rows.items():
            columns = ", ".join(of_table[0])
            result = connection.execute(text(f"SELECT {columns} FROM {name}"))
            found[name] = [dict(row._mapping) for row in result]
    return {name: sorted(of_table, key=repr) for name, of_table in found.items()}


def assert_trees_are_whole(engine: Engine) -> None:
    with read(engine) as connection:
        trees = connection.scalars(select(tree.c.id)).all()
        assert trees
        kept = connection.execute(select(func.count()).select_from(rollout)).scalar_one()
        uids = connection.execute(select(func.count(rollout.c.uid.distinct()))).scalar_one()
        graded = connection.execute(select(func.count()).select_from(outcome)).scalar_one()
    assert kept == uids == graded > 0
    for tree_id in trees:
        assert check_tree(engine, tree_id) == []


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    engine = open_database(empty_url)
    yield engine
    engine.dispose()


def spelled(
    revision: str, rows: Rows
) -> dict[bytes, tuple[tuple[int, ...], int, dict[int, float]]]:
    """Tokens, forced depth and rewards of every rollout by its uid, read off the rows."""
    nodes = {row["id"]: row for row in rows["node"]}
    rewards: dict[int, dict[int, float]] = {}
    for row in rows["outcome"]:
        rewards.setdefault(row["rollout_id"], {})[row["verifier_key"]] = row["reward"]

    unpacked = decode_tokens if revision >= "0008" else bytes

    def path(node_id: int | None) -> bytes:
        if node_id is None:
            return b""
        return path(nodes[node_id]["parent_id"]) + unpacked(nodes[node_id]["edge"])

    return {
        row["uid"]: (
            struct.unpack(f"<{row['depth']}I", path(row["end_node_id"])),
            row["forced_depth"],
            rewards[row["id"]],
        )
        for row in rows["rollout"]
    }


@pytest.mark.parametrize("file", REVISIONS)
def test_a_store_filled_by_an_earlier_revision_is_upgraded_and_comes_back(
    empty_url: str, engine: Engine, file: str
) -> None:
    revision, _, rows = fill(empty_url, file)
    before = everything(engine, rows)
    engine.dispose()
    assert migrate(empty_url) == head_revision()
    assert_trees_are_whole(engine)
    store = TreeStore(engine)
    with read(engine) as connection:
        trees = connection.scalars(select(tree.c.id)).all()
        states = dict(connection.execute(select(growth.c.request_id, growth.c.state)).all())
    assert spelled(revision, rows) == {
        stored.uid: (stored.tokens, stored.forced_depth, stored.rewards)
        for tree_id in trees
        for stored in store.iter_rollouts(tree_id, 0, 10**6)
    }
    # The growth that was cut off is there to be taken over.
    assert states["running"] == "running"
    assert states["stopped"] == "cancelled"
    engine.dispose()
    assert migrate(empty_url, revision) == revision
    assert everything(engine, rows) == before


@pytest.mark.slow
@pytest.mark.parametrize("file", REVISIONS)
async def test_the_present_server_answers_as_the_one_that_filled_the_store(
    empty_url: str, engine: Engine, file: str, tmp_path: Path
) -> None:
    """The same counts and probabilities. Intervals may be read otherwise by later mathematics."""
    _, answers, rows = fill(empty_url, file)
    interrupted = next(row["id"] for row in rows["growth"] if row["request_id"] == "running")
    with write(engine) as connection:
        connection.execute(text("UPDATE growth SET lease_expires_at = 0"))
    # The growth that was cut off goes on at once; it grows another question than was answered of.
    async with serving(empty_url, tmp_path) as world:
        request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
            trajectory=answers[0]["node"]["trajectoryId"],
            teachers=[row["name"] for row in rows["teacher"]],
            algorithms=[diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL)],
        )
        nodes = [
            MessageToDict(answer.node)
            async for answer in world.stubs.diagnosis.StreamTrajectoryAlignments(request)
        ]
        assert nodes
        for then, now in zip(answers, nodes, strict=False):
            assert now == {
                name: pytest.approx(value) if isinstance(value, float) else value
                for name, value in (now | then["node"]).items()
                if name != "success"
            } | {"success": now["success"]}
        watch = growth_pb2.WatchGrowthRequest(growth=interrupted)
        async for progress in world.stubs.growth.WatchGrowth(watch):
            last = progress.growth
        assert last.state == growth_pb2.GROWTH_STATE_SUCCEEDED, last.error
        # Two of the 2000 that its node was to rest on were there already: trajectories.
        assert last.rollouts_sampled == 1998
    assert_trees_are_whole(engine)
