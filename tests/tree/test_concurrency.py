"""Several writers at once, threads and processes, on one tree and on several."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text
from unmask_server.database.connect import open_database
from unmask_server.tree import AddResult, TreeStore, check_tree

from tests.tree.making import new, open_graded, uid

WRITER = Path(__file__).with_name("writer.py")


def test_many_open_one_tree_at_once(database: Engine) -> None:
    store = TreeStore(database)
    with ThreadPoolExecutor(8) as pool:
        ids = {ref.id for ref in pool.map(lambda _: store.open_tree("p1", "q1"), range(16))}
    assert len(ids) == 1
    assert check_tree(database, ids.pop()) == []


def test_writers_on_one_tree_lose_nothing(database: Engine) -> None:
    store, tree_id = open_graded(database)

    def add(writer: int) -> list[int]:
        versions = []
        for number in range(10):
            # Every writer splits what the others have just written; every third uid is shared.
            base = 0 if number % 3 == 0 else 1000 * (writer + 1)
            rollouts = [
                new(1, number % 4, n % 3, writer % 2, n, forced=n % 5, id_=base + 10 * number + n)
                for n in range(5)
            ]
            versions.append(store.add_rollouts(tree_id, rollouts).version)
        return versions

    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(add, range(6)))
    assert all(seen == sorted(seen) for seen in versions)
    # Four of ten batches have uids that the six writers share, six have their own.
    assert store.statistics().rollouts == 4 * 5 + 6 * 6 * 5
    assert check_tree(database, tree_id) == []


def test_writers_on_different_trees_share_the_database(database: Engine) -> None:
    store, first = open_graded(database, "q1")
    _, second = open_graded(database, "q2")

    def add(number: int) -> None:
        tree_id = (first, second)[number % 2]
        store.add_rollouts(tree_id, [new(number % 3, n, id_=100 * number + n) for n in range(9)])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(24)))
    assert store.statistics().rollouts == 24 * 9
    assert check_tree(database, first) == check_tree(database, second) == []


def test_on_postgresql_trees_do_not_wait_for_each_other(postgresql_only: Engine) -> None:
    store, first = open_graded(postgresql_only, "q1")
    _, second = open_graded(postgresql_only, "q2")

    def meanwhile(_: Connection, __: AddResult) -> None:
        assert store.add_rollouts(second, [new(5)]).inserted

    store.add_rollouts(first, [new(1)], then=meanwhile)


def test_one_uid_for_two_trees_at_once_is_inserted_once(postgresql_only: Engine) -> None:
    store, first = open_graded(postgresql_only, "q1")
    _, second = open_graded(postgresql_only, "q2")
    with ThreadPoolExecutor(1) as pool:
        other = None

        def meanwhile(connection: Connection, _: AddResult) -> None:
            # The other one has looked for the uid, not found it, and waits for this commit.
            nonlocal other
            other = other or pool.submit(store.add_rollouts, second, [new(2, id_=1)])
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            while connection.execute(waiting).scalar_one() == 0:
                pass

        assert store.add_rollouts(first, [new(1, id_=1)], then=meanwhile).inserted == [uid(1)]
        assert other is not None
        assert other.result().duplicates == [uid(1)]
    assert check_tree(postgresql_only, second) == []


def test_a_look_up_never_sees_a_part_of_a_batch(database: Engine) -> None:
    store, tree_id = open_graded(database)

    def write(_: int) -> None:
        for number in range(25):
            store.add_rollouts(tree_id, [new(1, n, number, n) for n in range(4)])

    def read(_: int) -> None:
        for _ in range(60):
            view = store.look_up(tree_id, (1, 2), range(3), 1)
            # Four a batch, one a change; the activation was the first change.
            assert view.nodes[0].n == view.nodes[1].n == 4 * (view.version - 1)
            assert view.nodes[2].n == view.version - 1

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(write, 0), pool.submit(read, 0), pool.submit(read, 1)]:
            job.result()


@pytest.mark.slow
def test_processes_share_a_database(database: Engine, database_url: str) -> None:
    store, tree_id = open_graded(database)
    writers = [
        subprocess.Popen([sys.executable, WRITER, database_url, str(tree_id), str(number), "12"])
        for number in range(2)
    ]
    for number in range(12):
        store.add_rollouts(tree_id, [new(1, 2, number, id_=number)])
    assert [writer.wait() for writer in writers] == [0, 0]
    assert store.statistics().rollouts == 12 + 2 * 12 * 20
    assert check_tree(database, tree_id) == []


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(database: Engine, database_url: str) -> None:
    """The writer is killed at some moment; what it acknowledged is there, each batch whole."""
    _, tree_id = open_graded(database)
    database.dispose()
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, WRITER, database_url, str(tree_id), str(attempt), "1000000"],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        acknowledged = [bytes.fromhex(writer.stdout.readline().decode())]
        for _ in range(3 + 4 * attempt):
            acknowledged.append(bytes.fromhex(writer.stdout.readline().decode()))
        writer.kill()
        acknowledged += [
            bytes.fromhex(line.decode())
            for line in writer.stdout.read().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]
        writer.wait()
        writer.stdout.close()

        after = open_database(database_url)
        stored = [row.uid for row in TreeStore(after).iter_rollouts(tree_id, 0, 10**6)]
        assert len(stored) == len(set(stored))
        # A line names the first of a batch's 20 uids, which follow each other.
        first = [int.from_bytes(name, "big") for name in acknowledged]
        assert {uid(n + i) for n in first for i in range(20)} <= set(stored)
        assert len(stored) % 20 == 0
        assert check_tree(after, tree_id) == []
        after.dispose()
