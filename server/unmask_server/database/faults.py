"""What a database's errors mean: whether to try again, and what to tell whoever waits."""

from __future__ import annotations

import enum
import sqlite3
from sqlite3 import Error as SQLiteError

from sqlalchemy.exc import DBAPIError, OperationalError


class Fault(enum.Enum):
    """What is wrong with a database that may be well again later."""

    AWAY = "away"
    """It cannot be reached, or the connection was lost. If in a commit, that may have happened."""
    BUSY = "busy"
    """Others held what was needed for too long, or the transaction collided with another."""
    SLOW = "slow"
    """A statement took longer than it may."""
    FULL = "full"
    """There is no room left where it keeps its data."""
    BROKEN = "broken"
    """Its files cannot be read or written."""


MESSAGES = {
    Fault.AWAY: "the database cannot be reached now",
    Fault.BUSY: "the database is busy",
    Fault.SLOW: "a statement took longer than the database may: ask for less at once, or raise the "
    "server's database_statement_seconds",
    Fault.FULL: "the database has no room left on its disk; what was acknowledged is kept",
    Fault.BROKEN: "the database's files cannot be read or written now",
}
"""What clients are told: nothing of statements and their values."""

_SQLSTATES = {
    "25P03": Fault.BUSY,  # idle_in_transaction_session_timeout
    "40001": Fault.BUSY,  # serialization_failure
    "40P01": Fault.BUSY,  # deadlock_detected
    "53100": Fault.FULL,  # disk_full
    "53200": Fault.BUSY,  # out_of_memory
    "53300": Fault.BUSY,  # too_many_connections
    "55P03": Fault.BUSY,  # lock_not_available
    "57014": Fault.SLOW,  # query_canceled
    "57P01": Fault.AWAY,  # admin_shutdown
    "57P02": Fault.AWAY,  # crash_shutdown
    "57P03": Fault.AWAY,  # cannot_connect_now
    "57P05": Fault.AWAY,  # idle_session_timeout
    "58030": Fault.BROKEN,  # io_error
}

_SQLITE_CODES = {
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_IOERR: Fault.BROKEN,
    sqlite3.SQLITE_CANTOPEN: Fault.BROKEN,
    sqlite3.SQLITE_READONLY: Fault.BROKEN,
}


def fault_of(error: BaseException) -> Fault | None:
    """What is wrong with the database; None if the statement is, or if it is no such error."""
    if not isinstance(error, DBAPIError):
        return None
    if isinstance(error.orig, SQLiteError):
        # The low byte is the primary code; the rest says which kind it was.
        return _SQLITE_CODES.get(getattr(error.orig, "sqlite_errorcode", 0) & 0xFF)
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is None:
        # psycopg's own errors carry no SQLSTATE: no connection, or one that broke.
        lost = error.connection_invalidated or isinstance(error, OperationalError)
        return Fault.AWAY if lost else None
    return Fault.AWAY if sqlstate.startswith("08") else _SQLSTATES.get(sqlstate)


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed if it is simply tried again at once."""
    return fault_of(error) in (Fault.AWAY, Fault.BUSY)


def message_of(error: BaseException) -> str:
    """What to tell of any error in one line."""
    fault = fault_of(error)
    return str(error) if fault is None else MESSAGES[fault]
