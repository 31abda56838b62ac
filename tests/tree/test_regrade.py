"""A new verifier on a tree with rollouts: all are graded, once, whatever happens meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine
from unmask_server.tree import (
    NewRollout,
    StoredRollout,
    TreeStore,
    UnknownTreeError,
    VerifiersDifferError,
    check_tree,
)
from unmask_server.tree import regrade as regrading

from tests.tree.making import new, open_graded


def by_first_token(rollouts: list[StoredRollout]) -> list[float]:
    return [float(stored.tokens[0] == 1) for stored in rollouts]


def root_of(store: TreeStore, tree_id: int, key: int) -> tuple[int, float]:
    (root,) = store.look_up(tree_id, (), [0], key).nodes
    return root.n, root.reward_sum


def test_stored_rollouts_are_graded_by_the_new_verifier(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, 2, reward=0.0), new(1, 3, forced=1), new(4, 5)])
    before = store.versions([tree_id])[tree_id]
    store.activate_verifier(tree_id, 2, by_first_token)
    assert store.verifiers(tree_id) == {1, 2}
    assert root_of(store, tree_id, 2) == (2, 1.0)
    assert root_of(store, tree_id, 1) == (2, 1.0)
    assert store.versions([tree_id])[tree_id] == before + 1
    assert check_tree(database, tree_id) == []


def test_an_active_verifier_is_not_asked_again(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1)])
    store.activate_verifier(tree_id, 1, _never)
    assert store.versions([tree_id]) == {tree_id: 2}


def test_rollouts_are_graded_in_batches_in_order(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, n) for n in range(10)])
    seen: list[list[int]] = []

    def grade(rollouts: list[StoredRollout]) -> list[float]:
        seen.append([stored.tokens[1] for stored in rollouts])
        return [1.0] * len(rollouts)

    store.activate_verifier(tree_id, 2, grade, batch=4)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_what_is_added_while_grading_is_graded_too(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, n) for n in range(5)])
    late = iter([3, 2, 1])

    def grade(rollouts: list[StoredRollout]) -> list[float]:
        store.add_rollouts(tree_id, [new(1, 9) for _ in range(next(late, 0))])
        return by_first_token(rollouts)

    store.activate_verifier(tree_id, 2, grade, batch=100)
    assert root_of(store, tree_id, 2) == (11, 11.0)
    assert check_tree(database, tree_id) == []


def test_a_stream_that_never_ends_does_not_keep_it_from_ending(database: Engine) -> None:
    """Each grading is outrun by an insertion; at last the rest is graded under the lock."""
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1)])
    calls = Counter[str]()
    real_finish = regrading._finish

    def outrun(tree: int, key: int, grade: regrading.Grade | None, connection: object) -> bool:
        calls["finish"] += 1
        return real_finish(tree, key, grade, connection)  # type: ignore[arg-type]

    def grade(rollouts: list[StoredRollout]) -> list[float]:
        calls["grade"] += 1
        return by_first_token(rollouts)

    def insert_before_each_finish(work: Callable[..., object]) -> Callable[..., object]:
        def transact(engine: Engine, job: Callable[..., object]) -> object:
            if getattr(job, "func", None) is outrun:
                store.add_rollouts(tree_id, [new(1, 2)])
            return work(engine, job)

        return transact

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regrading, "_finish", outrun)
        patch.setattr(regrading, "transact", insert_before_each_finish(regrading.transact))
        store.activate_verifier(tree_id, 2, grade)
    assert calls["finish"] == regrading._CHASES + 1
    assert root_of(store, tree_id, 2) == (1 + calls["finish"], 1.0 + calls["finish"])
    assert check_tree(database, tree_id) == []


def test_an_interrupted_grading_goes_on_where_it_ended(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, n) for n in range(6)])
    graded: list[int] = []

    def fail_on_the_second(rollouts: list[StoredRollout]) -> list[float]:
        if graded:
            raise RuntimeError("the grader died")
        graded.extend(stored.id for stored in rollouts)
        return by_first_token(rollouts)

    with pytest.raises(RuntimeError, match="died"):
        store.activate_verifier(tree_id, 2, fail_on_the_second, batch=4)
    assert store.verifiers(tree_id) == {1}
    # Its outcomes do not show before it is active.
    assert {*store.iter_rollouts(tree_id, 0, 1)[0].rewards} == {1}
    assert check_tree(database, tree_id) == []

    def go_on(rollouts: list[StoredRollout]) -> list[float]:
        assert not {stored.id for stored in rollouts} & set(graded)
        return by_first_token(rollouts)

    store.activate_verifier(tree_id, 2, go_on, batch=4)
    assert root_of(store, tree_id, 2) == (6, 6.0)


def test_from_then_on_its_reward_is_demanded(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.activate_verifier(tree_id, 2, _never)
    with pytest.raises(VerifiersDifferError):
        store.add_rollouts(tree_id, [new(1)])


@pytest.mark.parametrize("rewards", [[], [0.5, 0.5], [1.01], [float("nan")]])
def test_what_is_no_reward_is_refused(database: Engine, rewards: list[float]) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1)])
    with pytest.raises(ValueError, match=r"rewards? |verifier 2 gave"):
        store.activate_verifier(tree_id, 2, lambda _: rewards)
    assert store.verifiers(tree_id) == {1}


def test_the_tree_must_exist(database: Engine) -> None:
    with pytest.raises(UnknownTreeError):
        TreeStore(database).activate_verifier(1_000_000, 1, _never)


def test_several_activate_while_others_insert(database: Engine) -> None:
    store, tree_id = open_graded(database)
    store.add_rollouts(tree_id, [new(1, n % 3) for n in range(50)])
    begin = threading.Barrier(4)

    def activate() -> None:
        begin.wait()
        store.activate_verifier(tree_id, 2, by_first_token, batch=7)

    def insert() -> int:
        begin.wait()
        for number in range(20):
            rollout = new(1, number % 5, forced=number % 2)
            try:
                store.add_rollouts(tree_id, [rollout])
            except VerifiersDifferError:
                both = {1: 1.0, 2: 1.0}
                graded = NewRollout(rollout.uid, rollout.tokens, rollout.forced_depth, 0, both)
                store.add_rollouts(tree_id, [graded])
        return 20

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(job) for job in (activate, activate, insert, insert)]
        for job in jobs:
            job.result()
    assert store.verifiers(tree_id) == {1, 2}
    assert store.statistics().rollouts == 90
    assert root_of(store, tree_id, 1) == root_of(store, tree_id, 2)
    assert check_tree(database, tree_id) == []


def _never(rollouts: list[StoredRollout]) -> list[float]:
    raise AssertionError("there was nothing to grade")
