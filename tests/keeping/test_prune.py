"""What is pruned is gone, what stays is the same to the last bit, and everything adds up."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select, update
from typer.testing import CliRunner
from unmask_server.cli import app
from unmask_server.database import schema
from unmask_server.database.connect import read, write
from unmask_server.database.vacuum import size, vacuum
from unmask_server.growth.spec import Allocation, GrowthSpec, State, Target
from unmask_server.tree import NewRollout, RolloutScoreStore, TreeStore, fsck

from tests.tree.making import new, open_graded, uid
from tests.tree.test_fsck import put_trajectory

DAY = 86_400.0


@pytest.fixture
def trees(database: Engine) -> tuple[int, int]:
    """A tree of q1 with a trajectory, scores and a growth; one of q2, grown by it too."""
    store, first = open_graded(database)
    _, second = open_graded(database, "q2")
    add_growth(database)
    for tree_id, number in ((first, 0), (second, 10)):
        paid = NewRollout(uid(number + 2), (1, 4, 5), 2, 0, {1: 0.0}, "gro-1")
        store.add_rollouts(tree_id, [new(1, 2, 3, id_=number + 1), paid])
        scores = {tree_id << 32: np.zeros(3, np.float32)}
        RolloutScoreStore(database).put(scores, bytes(16))
    put_trajectory(database)
    assert fsck(database).clean
    return first, second


def add_growth(engine: Engine) -> None:
    numbers = ("rollouts_cached", "rollouts_planned", "nodes", "nodes_flat", "attempt")
    target = Target(policy_id="p1", question_id="q1", free=True)
    spec = GrowthSpec((target,), Allocation.POLICY, "", (), 0, 0, 2, None).to_json()
    row = {
        "id": "gro-1", "request_id": "r", "spec": spec, "state": State.SUCCEEDED.value,
        "rollouts_sampled": 2, "tokens_sampled": 2, "created_at": 0.0, "updated_at": 0.0,
        **dict.fromkeys(numbers, 0),
    }  # fmt: skip
    with write(engine) as connection:
        connection.execute(insert(schema.growth), row)


def rows_of(engine: Engine, tree_id: int) -> dict[str, list[Any]]:
    """Everything that answers about a tree come from."""
    keys = (
        schema.tree.c.id, schema.node.c.tree_id, schema.node_stat.c.node_id, schema.rollout.c.id,
        schema.outcome.c.rollout_id, schema.rollout_score.c.rollout_id,
    )  # fmt: skip
    low, high = tree_id << 32, (tree_id + 1) << 32
    found = {}
    with read(engine) as connection:
        for key in keys:
            wanted = select(key.table).order_by(*key.table.primary_key)
            if key.name in ("node_id", "rollout_id") or key is schema.rollout.c.id:
                wanted = wanted.where(key >= low, key < high)
            else:
                wanted = wanted.where(key == tree_id)
            found[key.table.name] = [tuple(row) for row in connection.execute(wanted)]
    return found


def run(engine: Engine, *arguments: str) -> str:
    url = engine.url.render_as_string(hide_password=False)
    done = CliRunner().invoke(app, [*arguments, "--database", url])
    assert done.exit_code == 0, done.output
    return done.output


def test_one_tree_goes_and_the_other_stays(database: Engine, trees: tuple[int, int]) -> None:
    first, second = trees
    store = TreeStore(database)
    before = rows_of(database, second)
    view = store.look_up(second, (1, 2, 3), (0, 1, 2), 1)
    said = run(database, "prune", "--question", "q1", "--dry-run")
    assert f"tree {first}, policy p1 on question q1, goes: 2 rollouts of 4 tokens" in said
    assert "1 trees with 2 rollouts go; 1 with 2 stay" in said
    assert rows_of(database, first)["rollout"]
    old = store.versions([first])[first]
    assert "2 rollouts are gone" in run(database, "prune", "--question", "q1")
    gone = rows_of(database, first)
    assert not gone["rollout"] + gone["outcome"] + gone["node_stat"] + gone["rollout_score"]
    assert len(gone["node"]) == 1
    with read(database) as connection:
        assert connection.execute(select(schema.trajectory)).all() == []
    # What stays is the same, and what answers are made of comes out the same.
    assert rows_of(database, second) == before
    assert repr(store.look_up(second, (1, 2, 3), (0, 1, 2), 1)) == repr(view)
    assert store.versions([first])[first] == old + 1
    assert store.statistics().rollouts == 2
    assert fsck(database).clean


def test_a_pruned_tree_grows_on_with_new_numbers(database: Engine, trees: tuple[int, int]) -> None:
    first, _ = trees
    run(database, "prune", "--question", "q1")
    store = TreeStore(database)
    store.add_rollouts(first, [new(7, 8, id_=1), new(7, id_=30)])
    assert [r.id - (first << 32) for r in store.iter_rollouts(first, 0, 9)] == [2, 3]
    assert store.look_up(first, (), (0,), 1).nodes[0].n == 2
    assert store.oldest_id(first) == (first << 32) + 2
    assert fsck(database).clean
    assert "2 rollouts are gone" in run(database, "prune", "--question", "q1")
    assert fsck(database).clean
    assert "0 trees with 0 rollouts go" in run(database, "prune", "--question", "q1")


def test_what_is_being_grown_stays(database: Engine, trees: tuple[int, int]) -> None:
    with write(database) as connection:
        connection.execute(update(schema.growth).values(state=State.RUNNING.value))
    said = run(database, "prune", "--policy", "p1")
    assert "policy p1 on question q1, stays: a growth that has not ended grows it" in said
    assert "1 trees with 2 rollouts go; 1 with 2 stay" in said
    assert fsck(database).clean


def test_only_what_is_old_enough_goes(database: Engine, trees: tuple[int, int]) -> None:
    first, second = trees
    low = second << 32
    with write(database) as connection:
        old = update(schema.rollout).where(schema.rollout.c.id < low)
        connection.execute(old.values(created_at=time.time() - 3 * DAY))
    assert "0 trees" in run(database, "prune", "--older-days", "4", "--dry-run")
    run(database, "prune", "--older-days", "2")
    assert not rows_of(database, first)["rollout"]
    assert rows_of(database, second)["rollout"]


def test_a_policys_rule_says_when(database: Engine, trees: tuple[int, int]) -> None:
    assert run(database, "retention") == "p1: for ever\np2: for ever\n"
    assert "0 trees" in run(database, "prune", "--by-rules")
    assert run(database, "retention", "p1", "--days", "30").startswith("p1: 30 days\n")
    assert "0 trees" in run(database, "prune", "--by-rules")
    run(database, "retention", "p1", "--days", "0")
    with write(database) as connection:
        connection.execute(update(schema.rollout).values(created_at=0.0))
    assert "2 trees with 4 rollouts go" in run(database, "prune", "--by-rules", "--dry-run")
    run(database, "retention", "p1", "--forever")
    assert "0 trees" in run(database, "prune", "--by-rules")


def test_scores_go_alone(database: Engine, trees: tuple[int, int]) -> None:
    before = [rows_of(database, tree_id) for tree_id in trees]
    assert "of 1 trees go: 1 rows" in run(database, "prune", "--question", "q1", "--scores")
    after = [rows_of(database, tree_id) for tree_id in trees]
    assert before[0].pop("rollout_score")
    assert not after[0].pop("rollout_score")
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say which"),
        (["--policy", "nobody"], "there is no policy 'nobody'"),
        (["--question", "none"], "there is no question 'none'"),
    ],
)
def test_what_cannot_be_meant_is_refused(database: Engine, arguments: list[str], said: str) -> None:
    url = database.url.render_as_string(hide_password=False)
    done = CliRunner().invoke(app, ["prune", "--database", url, *arguments])
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.slow
def test_vacuum_gives_room_back_and_changes_no_row(database: Engine) -> None:
    store, tree_id = open_graded(database)
    _, kept = open_graded(database, "q2")
    for tree in (tree_id, kept):
        for start in range(0, 3000, 1000):
            store.add_rollouts(tree, [new(*range(i, i + 20)) for i in range(start, start + 1000)])
    run(database, "prune", "--question", "q1")
    before = rows_of(database, kept)
    full = size(database)
    said = run(database, "vacuum", "--full")
    assert "bytes before" in said
    assert size(database) < 0.9 * full
    assert rows_of(database, kept) == before
    vacuum(database)
    assert fsck(database).clean
