"""Opening the database, and the transactions by which everything reads and writes it.

Durability: a commit that returned survives the death of this process at once, and a power loss too
as far as the disk honours fsync: SQLite runs in WAL mode with synchronous=FULL (one fsync a
commit), PostgreSQL with synchronous_commit as its database has it, but never off.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection as SQLiteConnection
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from unmask_server.database.faults import is_transient
from unmask_server.database.limits import DEFAULTS, Limits
from unmask_server.telemetry import metrics

T = TypeVar("T")

_log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.05
"""Before a transaction is begun again; doubled each time up to ..."""
LONGEST_PAUSE_SECONDS = 1.0
"""... this."""

_WRITES = "unmask_writes"

_FOR_EVER = 1e6
"""Seconds."""

_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""A PostgreSQL whose machine is gone answers nothing at all: after a minute it is given up."""


@dataclass(slots=True)
class _Opened:
    limits: Limits
    turn: threading.Lock
    """Of this process's writers on SQLite."""


_opened: WeakKeyDictionary[Engine, _Opened] = WeakKeyDictionary()


def open_database(url: str, limits: Limits = DEFAULTS) -> Engine:
    """Make the engine for a database; nothing is connected yet.

    Args:
        url: `sqlite:///path/to/file` (its folder is made if missing) or
            `postgresql://user@host/name`, whose query may hold libpq's parameters.
        limits: of its connections.

    Raises:
        ValueError: another database, or an SQLite database in memory, where nothing would last.

    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        engine = _open_sqlite(parsed.set(drivername="sqlite"), limits)
    elif backend in ("postgresql", "postgres"):
        engine = _open_postgresql(parsed.set(drivername="postgresql+psycopg"), limits)
    else:
        raise ValueError(f"the database must be sqlite or postgresql, not {backend!r}")
    _opened[engine] = _Opened(limits, threading.Lock())
    return engine


def without_password(url: str) -> str:
    """A database's URL as it may be shown."""
    return make_url(url).render_as_string(hide_password=True)


def _pool(limits: Limits) -> dict[str, Any]:
    return {
        "pool_size": limits.pool_size,
        "max_overflow": limits.pool_size,
        "pool_timeout": limits.connection or None,
    }


def _open_postgresql(url: URL, limits: Limits) -> Engine:
    arguments = {"connect_timeout": max(2, round(limits.connection))} if limits.connection else {}
    arguments |= _KEEPALIVES
    engine = create_engine(
        url,
        pool_pre_ping=True,
        connect_args={key: value for key, value in arguments.items() if key not in url.query},
        hide_parameters=True,
        **_pool(limits),
    )
    settings = {
        "statement_timeout": limits.statement,
        "lock_timeout": limits.lock,
        "idle_in_transaction_session_timeout": limits.idle,
    }

    @event.listens_for(engine, "connect")
    def on_connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        driver: Any = connection
        driver.autocommit = True
        # Not by libpq's `options`, which poolers between here and the server refuse.
        for name, seconds in settings.items():
            value = f"{round(1000 * seconds)}ms"
            driver.execute("SELECT set_config(%s, %s, false)", (name, value))
        # What is acknowledged is on the disk, whatever the server's own default.
        driver.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
        driver.autocommit = False

    return engine


def _open_sqlite(url: URL, limits: Limits) -> Engine:
    if url.database in (None, "", ":memory:") or "mode=memory" in str(url):
        raise ValueError("SQLite needs a file, as in sqlite:////var/lib/unmask/unmask.db")
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        connect_args={"timeout": limits.lock or _FOR_EVER},
        # What a client sent has no place in errors and logs.
        hide_parameters=True,
        **_pool(limits),
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        assert isinstance(connection, SQLiteConnection)
        # The driver's own transactions begin too late and too weakly; `on_begin` does it.
        connection.isolation_level = None
        # busy_timeout is set already, by connect_args: switching to WAL may have to wait, too.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A writer takes the lock before it reads. If it read first, it might find on its first
        # write that its snapshot is old, which SQLite answers with SQLITE_BUSY at once.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads.

    On SQLite everything read in it is of one moment; on PostgreSQL every statement is (READ
    COMMITTED): there, what must be consistent is read by one statement, or in a `snapshot`.
    """
    with _connected(engine) as connection, connection.begin():
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads, and reads everything as of one moment on both stores."""
    if engine.dialect.name != "postgresql":
        with read(engine) as connection:
            yield connection
        return
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _connected(engine, **options) as connection, connection.begin():
        yield connection


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes; it commits at the end of the block unless that raises.

    On SQLite it has the database for itself from the start (BEGIN IMMEDIATE); the writers of one
    process queue for it in order instead of polling. On PostgreSQL rows are locked as usual.
    """
    if engine.dialect.name != "sqlite":
        with _connected(engine) as connection, connection.begin():
            yield connection
        return
    opened = _opened[engine]
    turn, wait = opened.turn, opened.limits.lock or _FOR_EVER
    begun = time.perf_counter()
    if not turn.acquire(timeout=wait):
        raise TimeoutError(f"another writer held the database for {wait:g} s")
    metrics.WRITER_WAIT.observe(time.perf_counter() - begun)
    try:
        with _connected(engine, **{_WRITES: True}) as connection, connection.begin():
            yield connection
    finally:
        turn.release()


def _connected(engine: Engine, **options: Any) -> Connection:
    """A connection, once there is one."""
    begun = time.perf_counter()
    connection = engine.connect()
    metrics.CONNECTION_WAIT.observe(time.perf_counter() - begun)
    return connection.execution_options(**options) if options else connection


def transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in a write transaction, again if the database asked for that.

    After a transient error (serialisation failure, deadlock, busy, lost connection) the transaction
    is rolled back and `work` runs anew, until that has gone on for `Limits.patience`. A connection
    lost during the commit leaves open whether it happened, so `work` must be harmless when it is
    repeated after a success: idempotent by its keys.
    """
    return _retried(engine, write, work)


def query(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in a read transaction, with the retries of `transact`."""
    return _retried(engine, read, work)


def _retried(
    engine: Engine,
    transaction: Callable[[Engine], AbstractContextManager[Connection]],
    work: Callable[[Connection], T],
) -> T:
    begun = time.monotonic()
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            with transaction(engine) as connection:
                return work(connection)
        except DBAPIError as error:
            if not is_transient(error):
                raise
            if time.monotonic() + pause - begun > _opened[engine].limits.patience:
                raise
            metrics.TRANSACTIONS_RETRIED.inc()
            _log.warning("a transaction is begun again: %s", error.orig)
        # With jitter, so that two that collided part.
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
