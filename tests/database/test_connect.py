"""Transactions: what they promise on both stores, and what is tried again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from unmask_server.database import connect
from unmask_server.database.connect import open_database, query, read, snapshot, transact, write
from unmask_server.database.limits import Limits
from unmask_server.database.schema import question, verifier


def version_of(connection: Connection, key: int = 1) -> int:
    return connection.execute(select(verifier.c.version).where(verifier.c.key == key)).scalar_one()


def add_one(connection: Connection) -> None:
    """Read, then write: what goes wrong where transactions are too weak."""
    row = select(verifier.c.version).where(verifier.c.key == 1).with_for_update()
    version = connection.execute(row).scalar_one()
    connection.execute(update(verifier).where(verifier.c.key == 1).values(version=version + 1))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="needs a file"):
        open_database(url)


def test_other_databases_are_refused() -> None:
    with pytest.raises(ValueError, match="must be sqlite or postgresql, not 'mysql'"):
        open_database("mysql://localhost/unmask")


def test_the_folder_of_an_sqlite_file_is_made(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/new/folder/unmask.db")
    with read(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_sqlite_is_durable_and_checks_references(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/unmask.db")
    with read(engine) as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
    assert pragmas == expected
    engine.dispose()


def test_what_raises_is_rolled_back(database: Engine) -> None:
    def fail(connection: Connection) -> None:
        add_one(connection)
        raise KeyError("no")

    with pytest.raises(KeyError):
        transact(database, fail)
    assert query(database, version_of) == 1


def test_writers_that_read_first_lose_no_update(database: Engine, database_url: str) -> None:
    # A second engine stands for a second process: they share no lock in memory.
    other = open_database(database_url)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(transact, (database, other)[i % 2], add_one) for i in range(60)]
        for job in jobs:
            job.result()
    assert query(database, version_of) == 61
    other.dispose()


def test_readers_do_not_wait_for_a_writer(database: Engine) -> None:
    with write(database) as writer:
        add_one(writer)
        assert query(database, version_of) == 1
    assert query(database, version_of) == 2


def test_a_snapshot_stays_at_its_moment(database: Engine) -> None:
    with snapshot(database) as connection:
        before = version_of(connection)
        transact(database, add_one)
        assert version_of(connection) == before


def test_an_error_that_is_not_transient_is_raised_at_once(database: Engine) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(update(question).values(verifier_key=99))

    with pytest.raises(IntegrityError):
        transact(database, work)
    assert len(tries) == 1


def test_a_lost_connection_is_replaced(postgresql_only: Engine) -> None:
    tries = []

    def work(connection: Connection) -> None:
        add_one(connection)
        tries.append(1)
        if len(tries) == 1:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with postgresql_only.connect() as killer:
                killer.execute(text(f"SELECT pg_terminate_backend({pid})"))
            connection.execute(text("SELECT 1"))

    transact(postgresql_only, work)
    assert len(tries) == 2
    assert query(postgresql_only, version_of) == 2


def test_one_of_two_in_a_deadlock_is_run_again(postgresql_only: Engine) -> None:
    both_hold_one = threading.Barrier(2)
    tries: list[int] = []

    def work(first: int, second: int) -> None:
        def cross(connection: Connection) -> None:
            tries.append(first)
            for key in (first, second):
                row = update(verifier).where(verifier.c.key == key)
                connection.execute(row.values(version=verifier.c.version + 1))
                if key == first and len(tries) <= 2:
                    both_hold_one.wait()

        transact(postgresql_only, cross)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(work, 1, 2), pool.submit(work, 2, 1)]:
            job.result()
    # Once more each time that who is run again takes its row before the other has it.
    assert len(tries) >= 3
    assert query(postgresql_only, version_of) == 3


def test_retries_end(database: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(connect, "time", clock)
    impatient = open_database(database_url, Limits(patience=10.0))
    tries = []

    def work(connection: Connection) -> None:
        tries.append(now[0])
        raise OperationalError("", {}, _broken(database))

    with pytest.raises(DBAPIError):
        transact(impatient, work)
    assert len(tries) >= 10
    assert 8.0 < tries[-1] <= 10.5
    impatient.dispose()


def _broken(engine: Engine) -> Exception:
    """What the driver raises when it can't go on."""
    if engine.dialect.name == "postgresql":
        import psycopg

        return psycopg.OperationalError("the connection is lost")
    import sqlite3

    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error
