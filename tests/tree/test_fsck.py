"""`fsck` finds what is broken, names it, and restores what is derived.

That it finds nothing where nothing is broken, all tests that call it show.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, LargeBinary, delete, insert, literal, select, text, update
from typer.testing import CliRunner
from unmask_server.cli import app
from unmask_server.database import schema
from unmask_server.database.connect import read, write
from unmask_server.tree import (
    DistributionStore,
    NewRollout,
    RolloutScoreStore,
    StoredDistribution,
    TreeStore,
    check_tree,
    fsck,
)
from unmask_server.tree.checks import INVARIANTS
from unmask_server.tree.tokens import pack

from tests.tree.making import new, open_graded, uid

NODE, STAT, ROLLOUT, OUTCOME, TREE = (
    schema.node, schema.node_stat, schema.rollout, schema.outcome, schema.tree,
)  # fmt: skip
SCORE, TRAJECTORY, GROWTH, DISTRIBUTION = (
    schema.rollout_score, schema.trajectory, schema.growth, schema.distribution,
)  # fmt: skip
TRAJECTORY_OUTCOME = schema.trajectory_outcome

ELSEWHERE = 77 << 32
"""An id in a tree that is not there."""


@pytest.fixture
def tree_id(database: Engine) -> int:
    """A tree with some of everything, and a second one."""
    store, tree_id = open_graded(database)
    other, other_id = open_graded(database, "q2")
    with write(database) as connection:
        connection.execute(insert(GROWTH), _growth())
    paid = [
        NewRollout(uid(4), (1, 2, 3, 7), 2, 0, {1: 0.25}, "gro-1"),
        NewRollout(uid(5), (9,), 0, 1, {1: 1.0}, "gro-1"),
    ]
    store.add_rollouts(tree_id, [new(1, 2, 3, id_=1), new(1, 2, 4, id_=2), *paid])
    store.add_rollouts(tree_id, [new(1, 5, 6, forced=2, id_=3, reward=0.0)])
    other.add_rollouts(other_id, [new(1, id_=6)])
    put_trajectory(database)
    scores = {tree_id << 32: np.array([-1.0, -2.0, 0.0], np.float32)}
    RolloutScoreStore(database).put(scores, bytes(16))
    logprobs = np.log(np.array([0.5, 0.25], np.float32))
    halves = StoredDistribution(np.array([3, 5], np.int32), logprobs, 2, complete=False)
    DistributionStore(database).put({bytes(16): halves})
    report = fsck(database)
    assert report.clean, report.findings
    assert report.checked["rollout"] == 6
    return tree_id


def _growth() -> dict[str, Any]:
    numbers = ("rollouts_cached", "rollouts_planned", "nodes", "nodes_flat", "attempt")
    return {
        "id": "gro-1", "request_id": "r", "spec": {}, "state": "done", "rollouts_sampled": 2,
        "tokens_sampled": 3, "created_at": 0.0, "updated_at": 0.0, **dict.fromkeys(numbers, 0),
    }  # fmt: skip


def put_trajectory(engine: Engine) -> None:
    row = {
        "id": "trj-1", "policy_id": "p1", "question_id": "q1", "tokens": pack((1, 2, 3)),
        "finish": 0, "seed": 0, "ordinal": 0, "rollout_uid": uid(1), "created_at": 0.0,
    }  # fmt: skip
    with write(engine) as connection:
        connection.execute(insert(TRAJECTORY), row)
        outcome = {"trajectory_id": "trj-1", "verifier_key": 1, "reward": 1.0}
        connection.execute(insert(TRAJECTORY_OUTCOME), outcome)


def damage(engine: Engine, statements: Sequence[Any]) -> None:
    """Run statements without the constraints that would refuse them."""
    sqlite = engine.dialect.name == "sqlite"
    off = "PRAGMA foreign_keys=OFF" if sqlite else "SET session_replication_role = replica"
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.execute(off) if sqlite else connection.execute(text(off))
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.invalidate()  # Back with the constraints on.


def node_of(*edge: int) -> Any:
    return NODE.c.edge == pack(edge)


def rollout_of(number: int) -> Any:
    return ROLLOUT.c.uid == uid(number)


# What is broken, the invariant that is named, and whether `repair` restores it.
DAMAGES: dict[str, tuple[list[Any], str, bool]] = {
    "root": ([update(NODE).where(node_of()).values(depth=1)], "tree.root", False),
    "no root": ([delete(NODE).where(node_of())], "tree.root", False),
    "nodes counter": ([update(TREE).values(nodes=99)], "tree.counters", True),
    "rollouts counter": ([update(TREE).values(rollouts=4)], "tree.counters", True),
    "tokens counter": ([update(TREE).values(tokens=1)], "tree.counters", True),
    "lost rollout": (
        [
            delete(OUTCOME).where(
                OUTCOME.c.rollout_id.in_(select(ROLLOUT.c.id).where(rollout_of(2)))
            ),
            delete(ROLLOUT).where(rollout_of(2)),
        ],
        "tree.counters",
        False,
    ),
    "tree gone": ([delete(TREE).where(TREE.c.id == 1)], "node.tree", False),
    "node of another tree": (
        [update(NODE).where(node_of(4)).values(tree_id=2)],
        "node.tree",
        False,
    ),
    "parent": ([update(NODE).where(node_of(4)).values(parent_id=ELSEWHERE)], "node.parent", False),
    "parent gone": ([delete(NODE).where(node_of(2))], "node.parent", False),
    "depth": ([update(NODE).where(node_of(4)).values(depth=5)], "node.depth", False),
    "empty edge": ([update(NODE).where(node_of(4)).values(edge=b"")], "node.edge", False),
    "same edge": ([update(NODE).where(node_of(4)).values(edge=pack((3,)))], "node.edge", False),
    "fingerprint": (
        [update(NODE).where(node_of(4)).values(fingerprint=bytes(16))],
        "node.fingerprint",
        False,
    ),
    "edge": ([update(NODE).where(node_of(4)).values(edge=pack((8,)))], "rollout.tokens", False),
    "later token": (
        [update(NODE).where(node_of(5, 6)).values(edge=pack((5, 8)))],
        "rollout.tokens",
        False,
    ),
    "digest": ([update(ROLLOUT).values(digest=bytes(8))], "rollout.tokens", False),
    "rollout of another tree": ([update(ROLLOUT).values(tree_id=2)], "rollout.tree", False),
    "rollout's node": ([update(ROLLOUT).values(end_node_id=ELSEWHERE)], "rollout.nodes", False),
    "forced depth": (
        [update(ROLLOUT).where(rollout_of(3)).values(forced_depth=3)],
        "rollout.start",
        False,
    ),
    "growth gone": ([delete(GROWTH)], "rollout.growth", False),
    "outcome gone": ([delete(OUTCOME)], "outcome.missing", True),
    "reward": ([update(OUTCOME).values(reward=1.5)], "outcome.range", False),
    "outcome of nothing": (
        [insert(OUTCOME).values(rollout_id=ELSEWHERE, verifier_key=1, reward=1.0)],
        "outcome.orphan",
        True,
    ),
    "count": ([update(STAT).values(n=9)], "stat.counts", True),
    "sum": ([update(STAT).values(reward_sum=0.5)], "stat.counts", True),
    "truncated": ([update(STAT).values(truncated=1)], "stat.counts", True),
    "forced count": ([update(STAT).values(forced_n=7)], "stat.counts", True),
    "forced sum": ([update(STAT).values(forced_reward_sum=7.0)], "stat.counts", True),
    "counts gone": ([delete(STAT)], "stat.counts", True),
    "counts of another verifier": ([update(STAT).values(verifier_key=2)], "stat.orphan", True),
    "counts of nothing": (
        [update(STAT).where(STAT.c.n == 1).values(node_id=STAT.c.node_id + 1000)],
        "stat.orphan",
        True,
    ),
    "counts of no tree": (
        [update(STAT).where(STAT.c.n == 1).values(node_id=STAT.c.node_id + ELSEWHERE)],
        "stat.orphan",
        True,
    ),
    "score of nothing": ([update(SCORE).values(rollout_id=ELSEWHERE)], "score.orphan", True),
    "short score": ([update(SCORE).values(logprobs=b"1234")], "score.form", True),
    "score above zero": (
        [update(SCORE).values(logprobs=np.ones(3, "<f4").tobytes())],
        "score.form",
        True,
    ),
    "trajectory's rollout": (
        [update(TRAJECTORY).values(rollout_uid=uid(99))],
        "trajectory.rollout",
        False,
    ),
    "trajectory of another tree": (
        [update(TRAJECTORY).values(question_id="q2")],
        "trajectory.rollout",
        False,
    ),
    "trajectory's tokens": (
        [update(TRAJECTORY).values(tokens=pack((1, 2)))],
        "trajectory.rollout",
        False,
    ),
    "trajectory gone": ([delete(TRAJECTORY)], "trajectory.outcome", False),
    "charged too little": ([update(GROWTH).values(rollouts_sampled=1)], "growth.spent", True),
    "charged too much": ([update(GROWTH).values(tokens_sampled=9)], "growth.spent", False),
    "ids cut": ([update(DISTRIBUTION).values(ids=b"12345")], "distribution.form", False),
    "an id twice": (
        [update(DISTRIBUTION).values(ids=np.array([3, 3], "<i4").tobytes())],
        "distribution.form",
        False,
    ),
    "not finite": (
        [update(DISTRIBUTION).values(logprobs=np.full(2, np.nan, "<f4").tobytes())],
        "distribution.form",
        False,
    ),
    "top_k": ([update(DISTRIBUTION).values(top_k=3)], "distribution.form", False),
    "more than one": (
        [update(DISTRIBUTION).values(logprobs=np.zeros(2, "<f4").tobytes())],
        "distribution.mass",
        False,
    ),
    "less than one": ([update(DISTRIBUTION).values(complete=True)], "distribution.mass", False),
}


@pytest.mark.parametrize("stored", [b"\x09\x01", b"\x13\x01", b"\x03\x01", b"\x12\1\0\0\0junk"])
def test_an_edge_that_cannot_be_read_is_named(
    database: Engine, tree_id: int, stored: bytes
) -> None:
    edge = literal(stored, LargeBinary)
    damage(database, [update(NODE).where(node_of(4)).values(edge=edge)])
    counts = fsck(database).counts
    assert {"node.edge", "rollout.tokens"} <= counts.keys()


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_broken_is_named_and_what_is_derived_restored(
    database: Engine, tree_id: int, name: str
) -> None:
    statements, invariant, restored = DAMAGES[name]
    before = primary(database)
    damage(database, statements)
    broken = primary(database)
    report = fsck(database)
    assert invariant in report.counts, report.findings
    assert report.left == report.total
    assert report.repaired == 0
    found = next(finding for finding in report.findings if finding.invariant == invariant)
    assert found.row
    assert found.advice
    assert bool(found.repair) is restored
    after = fsck(database, repair=True)
    assert invariant in after.counts
    again = fsck(database)
    assert again.total == after.left
    assert (invariant in again.counts) is not restored
    if restored:
        assert again.clean, again.findings
    # Rollouts, tokens and what was measured stay as they were found.
    assert primary(database) == broken
    if statements[0].table in (STAT, TREE) and restored:
        assert primary(database) == before


def primary(engine: Engine) -> list[Any]:
    """Every row that no repair may touch."""
    tables = (NODE, ROLLOUT, TRAJECTORY, TRAJECTORY_OUTCOME, DISTRIBUTION)
    with read(engine) as connection:
        rows = [
            [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in tables
        ]
        graded = select(OUTCOME).where(OUTCOME.c.rollout_id < ELSEWHERE)
        graded = graded.order_by(*OUTCOME.primary_key)
        return [*rows, [tuple(row) for row in connection.execute(graded)]]


def test_restored_counts_are_the_same_as_before_and_of_a_new_version(
    database: Engine, tree_id: int
) -> None:
    store = TreeStore(database)
    before = store.look_up(tree_id, (1, 2, 3), (0, 1, 2, 3), 1)
    damage(database, [update(STAT).values(n=9, reward_sum=8.0, forced_n=3)])
    fsck(database, repair=True)
    after = store.look_up(tree_id, (1, 2, 3), (0, 1, 2, 3), 1)
    assert repr(after.nodes) == repr(before.nodes)
    assert after.version == before.version + 1


def test_a_verifier_that_lacks_outcomes_can_be_asked_for_again(
    database: Engine, tree_id: int
) -> None:
    damage(database, [delete(OUTCOME).where(OUTCOME.c.reward == 1.0)])
    fsck(database, repair=True)
    store = TreeStore(database)
    assert store.verifiers(tree_id) == set()
    store.activate_verifier(tree_id, 1, lambda rollouts: [1.0] * len(rollouts))
    assert store.look_up(tree_id, (), (0,), 1).nodes[0].reward_sum == 3.0
    assert check_tree(database, tree_id) == []


def test_a_needless_node_is_named(database: Engine, tree_id: int) -> None:
    damage(database, [delete(OUTCOME), delete(ROLLOUT).where(rollout_of(2))])
    assert "node.reason" in fsck(database).counts


def test_a_uid_that_is_there_twice_is_named(database: Engine, tree_id: int) -> None:
    if database.dialect.name == "sqlite":
        without_index = [
            "CREATE TABLE copy AS SELECT * FROM rollout",
            "PRAGMA legacy_alter_table=ON",
            "ALTER TABLE rollout RENAME TO old",
            "ALTER TABLE copy RENAME TO rollout",
        ]
    else:
        without_index = ["ALTER TABLE rollout DROP CONSTRAINT uq_rollout_uid"]
    same = update(ROLLOUT).values(uid=uid(1))
    try:
        damage(database, [*map(text, without_index), same])
        report = fsck(database)
        assert "rollout.uid" in report.counts
        assert "6 times" in str(next(f for f in report.findings if f.invariant == "rollout.uid"))
    finally:
        if database.dialect.name == "postgresql":
            restore = "ALTER TABLE rollout ADD CONSTRAINT uq_rollout_uid UNIQUE (uid)"
            damage(database, [text("DELETE FROM rollout"), text(restore)])


def test_a_damaged_file_is_named(database: Engine, tree_id: int) -> None:
    if database.dialect.name != "sqlite":
        pytest.skip("PostgreSQL checks its files with tools of its own")
    hack = [
        text("PRAGMA writable_schema=ON"),
        text("DELETE FROM sqlite_master WHERE name = 'ix_node_parent_id'"),
    ]
    damage(database, hack)
    assert "store.pages" in fsck(database).counts


def test_it_is_clean_at_every_moment_of_being_written(database: Engine) -> None:
    store, tree_id = open_graded(database)
    stop = threading.Event()

    def add() -> None:
        number = 0
        while not stop.is_set():
            number += 3
            batch = [
                new(1, 2, number, id_=number),
                new(1, number, 2, forced=1, id_=number + 1, reward=0.3),
                new(number, 1, 2, id_=number + 2),
            ]
            store.add_rollouts(tree_id, batch)

    writer = threading.Thread(target=add)
    writer.start()
    try:
        seen: list[int] = []
        while len(seen) < 10:
            report = fsck(database)
            assert report.clean, report.findings
            if report.checked["rollout"] not in seen:
                seen.append(report.checked["rollout"])
        repaired = fsck(database, repair=True)
        assert repaired.repaired == 0
    finally:
        stop.set()
        writer.join()
    assert fsck(database).clean


def test_every_invariant_is_broken_by_a_test() -> None:
    elsewhere = {"node.reason", "rollout.uid", "store.pages"}
    assert {invariant for _, invariant, _ in DAMAGES.values()} | elsewhere == INVARIANTS.keys()


def test_the_command_tells_and_exits_with_what_is_left(database: Engine, tree_id: int) -> None:
    url = database.url.render_as_string(hide_password=False)

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["fsck", "--database", url, *arguments])
        return done.exit_code, done.output

    assert run()[0] == 0
    assert run()[1].endswith("clean\n")
    damage(database, [update(STAT).values(n=9)])
    code, told = run()
    assert code == 1
    assert f"stat.counts: tree {tree_id}, node {tree_id << 32}: counts of verifier 1 are" in told
    code, told = run("--json")
    assert code == 1
    assert json.loads(told)["counts"]["stat.counts"] > 1
    assert json.loads(told)["findings"][0]["advice"]
    code, told = run("--repair")
    assert code == 0
    assert "0 findings left" in told
    assert run()[0] == 0


def test_the_command_says_when_it_could_not_run(empty_url: str) -> None:
    done = CliRunner().invoke(app, ["fsck", "--database", empty_url])
    assert done.exit_code == 2
    assert "run `unmask-server migrate`" in done.output


def test_a_missing_tree_is_reported(database: Engine) -> None:
    assert [f.invariant for f in check_tree(database, 5)] == ["tree.root"]
