"""How long a database may take, what becomes of what takes longer, and what clients are told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2
from sqlalchemy import Connection, Engine, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from unmask.v1 import cache_pb2
from unmask_server.api.errors import status_of
from unmask_server.config import Settings
from unmask_server.database.connect import open_database, query, read, transact, write
from unmask_server.database.faults import MESSAGES, Fault, fault_of, message_of
from unmask_server.database.limits import Limits
from unmask_server.database.schema import distribution, verifier

from tests.e2e.conftest import serving
from tests.stores import new_database

Open = Callable[..., Engine]


@pytest.fixture
def opened(database_url: str, database: Engine) -> Iterator[Open]:
    """Open the test's database once more, with limits."""
    engines: list[Engine] = []

    def make(**limits: float) -> Engine:
        engines.append(open_database(database_url, Limits(**limits)))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def told(error: BaseException) -> tuple[int, str]:
    status = status_of(error)
    assert status is not None
    return status.code, status.message


def add_one(connection: Connection) -> None:
    row = update(verifier).where(verifier.c.key == 1)
    connection.execute(row.values(version=verifier.c.version + 1))


def settings_of(engine: Engine, *names: str) -> list[str]:
    with read(engine) as connection:
        return [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]


def test_limits_are_those_of_the_server(postgresql_only: Engine) -> None:
    url = postgresql_only.url.render_as_string(hide_password=False)
    settings = Settings(
        database=url,
        database_pool=3,
        database_statement_seconds=7,
        database_lock_seconds=1.5,
        database_idle_seconds=0,
    )
    engine = open_database(settings.database, settings.database_limits)
    assert engine.pool.size() == 3  # type: ignore[attr-defined]
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    assert settings_of(engine, *names) == ["7s", "1500ms", "0"]
    engine.dispose()


def test_commits_are_on_the_disk_even_if_the_database_has_another_default(
    postgresql_url: str,
) -> None:
    url = new_database(postgresql_url)
    engine = open_database(url)
    for default, used in (("off", "on"), ("local", "local")):
        with write(engine) as connection:
            name = engine.url.database
            connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = {default}"))
        engine.dispose()
        assert settings_of(engine, "synchronous_commit") == [used]
    engine.dispose()


def test_a_statement_that_takes_too_long_is_ended(postgresql_only: Engine) -> None:
    hasty = open_database(
        postgresql_only.url.render_as_string(hide_password=False), Limits(statement=0.5)
    )
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(DBAPIError) as caught:
        query(hasty, work)
    assert fault_of(caught.value) is Fault.SLOW
    code, message = told(caught.value)
    assert code == code_pb2.DEADLINE_EXCEEDED
    assert "database_statement_seconds" in message
    assert len(tries) == 1
    # The connection is as good as before.
    transact(hasty, add_one)
    hasty.dispose()


def test_who_waits_too_long_for_another_writer_is_told_so(database: Engine, opened: Open) -> None:
    hasty = opened(lock=0.05, patience=0.2)
    with write(database) as holder:
        add_one(holder)
        with pytest.raises(DBAPIError) as caught:
            transact(hasty, add_one)
    assert fault_of(caught.value) is Fault.BUSY
    assert told(caught.value) == (code_pb2.UNAVAILABLE, "the database is busy")
    transact(hasty, add_one)
    with read(database) as connection:
        assert connection.scalars(select(verifier.c.version).order_by(verifier.c.key)).first() == 3


def test_writers_of_one_process_wait_no_longer_either(
    sqlite_template: Path, tmp_path: Path
) -> None:
    path = tmp_path / "unmask.db"
    path.write_bytes(sqlite_template.read_bytes())
    engine = open_database(f"sqlite:///{path}", Limits(lock=0.05))
    with write(engine), pytest.raises(TimeoutError) as caught:
        transact(engine, add_one)
    assert told(caught.value) == (code_pb2.UNAVAILABLE, "the database is busy")
    engine.dispose()


def test_a_server_that_hangs_in_a_transaction_loses_it(postgresql_only: Engine) -> None:
    hasty = open_database(
        postgresql_only.url.render_as_string(hide_password=False), Limits(idle=0.5)
    )
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        add_one(connection)
        if len(tries) == 1:
            # Until its locks are released, which is when another may take them.
            transact(postgresql_only, add_one)

    transact(hasty, work)
    assert len(tries) >= 2
    with read(postgresql_only) as connection:
        row = select(verifier.c.version).where(verifier.c.key == 1)
        assert connection.execute(row).scalar_one() == 3
    hasty.dispose()


def test_a_pool_without_a_free_connection_is_busy(database: Engine, opened: Open) -> None:
    small = opened(pool_size=1, connection=0.05)
    with read(small), read(small), pytest.raises(PoolTimeoutError) as caught, read(small):
        pass
    assert told(caught.value) == (code_pb2.UNAVAILABLE, "the database is busy")


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_cannot_be_serialised_is_begun_again(
    postgresql_only: Engine, isolation: str
) -> None:
    versions = []

    def work(connection: Connection) -> None:
        connection.execute(text(f"SET TRANSACTION ISOLATION LEVEL {isolation}"))
        row = select(verifier.c.version).where(verifier.c.key == 1)
        versions.append(connection.execute(row).scalar_one())
        if len(versions) == 1:
            transact(postgresql_only, add_one)
        add_one(connection)

    transact(postgresql_only, work)
    assert versions == [1, 2]


def test_a_full_disk_is_told_and_loses_nothing(sqlite_template: Path, tmp_path: Path) -> None:
    """SQLite may use no more pages than it has: as if the disk were full."""
    path = tmp_path / "unmask.db"
    path.write_bytes(sqlite_template.read_bytes())
    engine = open_database(f"sqlite:///{path}")
    room: list[int] = []

    @event.listens_for(engine, "begin")
    def bound(connection: Connection) -> None:
        if room:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {room[0]}")

    def put(key: int) -> None:
        row = {"key": key.to_bytes(16, "big"), "ids": bytes(5000), "logprobs": b"", "top_k": 1}
        transact(engine, lambda c: c.execute(insert(distribution), row | {"complete": False}))

    with read(engine) as connection:
        room.append(int(connection.exec_driver_sql("PRAGMA page_count").scalar_one()) + 20)
    put(0)
    stored = 1
    with pytest.raises(DBAPIError) as caught:  # noqa: PT012
        while stored < 100:
            put(stored)
            stored += 1
    assert fault_of(caught.value) is Fault.FULL
    code, message = told(caught.value)
    assert code == code_pb2.RESOURCE_EXHAUSTED
    assert "no room left" in message
    room[0] += 1000
    with read(engine) as connection:
        kept = connection.scalars(select(distribution.c.key)).all()
        assert sorted(int.from_bytes(key, "big") for key in kept) == list(range(stored))
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    put(stored)
    engine.dispose()


@pytest.mark.slow
async def test_clients_are_told_that_a_statement_took_too_long(
    postgresql_url: str, tmp_path: Path
) -> None:
    url = new_database(postgresql_url)
    async with serving(url, tmp_path, database_statement_seconds=1) as world:

        @event.listens_for(world.app.database, "begin")
        def slow(connection: Connection) -> None:
            connection.exec_driver_sql("SELECT pg_sleep(60)")

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stubs.cache.GetStatistics(cache_pb2.GetStatisticsRequest())
        event.remove(world.app.database, "begin", slow)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "took longer than the database may" in (caught.value.details() or "")
        await world.stubs.cache.GetStatistics(cache_pb2.GetStatisticsRequest())


def test_a_growths_error_says_nothing_of_statements() -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    error = OperationalError("INSERT INTO rollout VALUES (?)", {"uid": b"secret"}, full)
    assert message_of(error) == MESSAGES[Fault.FULL]
    assert message_of(ValueError("plain")) == "plain"
