"""Opening the database, and the transactions by which everything reads and writes it.

Durability: a commit that returned survives the death of this process at once, and a power loss too
as far as the disk honours fsync: SQLite runs in WAL mode with synchronous=FULL (one fsync a
commit), PostgreSQL with its own default, synchronous_commit=on.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_LOCKED
from sqlite3 import Connection as SQLiteConnection
from sqlite3 import Error as SQLiteError
from typing import TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

T = TypeVar("T")

_log = logging.getLogger(__name__)

BUSY_SECONDS = 30.0
"""How long a writer waits for another process's writer on SQLite before it is refused."""

TRIES = 6
"""How often a transaction is tried in all before its transient error is let through."""

_WRITES = "unmask_writes"

_TRANSIENT_SQLSTATES = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
}

_sqlite_writers: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()


def open_database(url: str, *, pool_size: int = 16) -> Engine:
    """Make the engine for a database; nothing is connected yet.

    Args:
        url: `sqlite:///path/to/file` (its folder is made if missing) or
            `postgresql://user@host/name`.
        pool_size: connections kept open at most; as many again are opened under pressure.

    Raises:
        ValueError: another database, or an SQLite database in memory, where nothing would last.

    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _open_sqlite(parsed.set(drivername="sqlite"), pool_size)
    if backend in ("postgresql", "postgres"):
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
        )
    raise ValueError(f"the database must be sqlite or postgresql, not {backend!r}")


def without_password(url: str) -> str:
    """A database's URL as it may be shown."""
    return make_url(url).render_as_string(hide_password=True)


def _open_sqlite(url: URL, pool_size: int) -> Engine:
    if url.database in (None, "", ":memory:") or "mode=memory" in str(url):
        raise ValueError("SQLite needs a file, as in sqlite:////var/lib/unmask/unmask.db")
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args={"timeout": BUSY_SECONDS},
    )
    _sqlite_writers[engine] = threading.Lock()

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
    with engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads, and reads everything as of one moment on both stores."""
    if engine.dialect.name != "postgresql":
        with read(engine) as connection:
            yield connection
        return
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes; it commits at the end of the block unless that raises.

    On SQLite it has the database for itself from the start (BEGIN IMMEDIATE); the writers of one
    process queue for it in order instead of polling. On PostgreSQL rows are locked as usual.
    """
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    turn = _sqlite_writers[engine]
    if not turn.acquire(timeout=BUSY_SECONDS):
        raise TimeoutError(f"another writer held the database for {BUSY_SECONDS:g} s")
    try:
        with (
            engine.connect().execution_options(**{_WRITES: True}) as connection,
            connection.begin(),
        ):
            yield connection
    finally:
        turn.release()


def transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in a write transaction, again if the database asked for that.

    After a transient error (serialisation failure, deadlock, busy, lost connection) the transaction
    is rolled back and `work` runs anew, at most `TRIES` times in all. A connection lost during the
    commit leaves open whether it happened, so `work` must be harmless when it is repeated after a
    success: idempotent by its keys.
    """
    return _retried(lambda: write(engine), work)


def query(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in a read transaction, with the retries of `transact`."""
    return _retried(lambda: read(engine), work)


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed if it is simply tried again."""
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, SQLiteError):
        # The low byte is the primary code; the rest says which kind of busy it was.
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in (SQLITE_BUSY, SQLITE_LOCKED)
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is None:
        # psycopg's own errors carry no SQLSTATE: no connection, or one that broke.
        return error.connection_invalidated or isinstance(error, OperationalError)
    return sqlstate in _TRANSIENT_SQLSTATES or sqlstate.startswith("08")


def _retried(
    transaction: Callable[[], AbstractContextManager[Connection]], work: Callable[[Connection], T]
) -> T:
    for attempt in range(1, TRIES):
        try:
            with transaction() as connection:
                return work(connection)
        except DBAPIError as error:
            if not is_transient(error):
                raise
            _log.warning("try %d of %d of a transaction: %s", attempt, TRIES, error.orig)
        # 0.05 s, doubling to 0.8 s, each with jitter so that two that collided part.
        time.sleep(0.05 * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    with transaction() as connection:
        return work(connection)
