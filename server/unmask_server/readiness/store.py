"""Whether the database is there, at this program's revision."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from unmask_server.database.connect import open_database, read
from unmask_server.database.faults import fault_of, message_of
from unmask_server.database.limits import Limits
from unmask_server.database.migrate import head_revision

SECONDS = 3.0
"""What a look may take."""
MISSES = 2
"""Looks in a row that must take longer for that to be a problem."""


class StoreCheck:
    """Looks at the database by a thread and a connection of its own.

    All others may be waiting for a database that does not answer.
    """

    def __init__(self, url: str, *, seconds: float = SECONDS) -> None:
        """Nothing is connected yet. The head of the migrations is read once, here."""
        self._head = head_revision()
        self._seconds = seconds
        self._file = _file_of(url)
        self._inode = None if self._file is None else _inode(self._file)
        self._engine = _open(url, self._file, seconds)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="unmask-readiness")
        self._look: asyncio.Future[str] | None = None
        self._late = 0

    async def problem(self) -> str:
        """What is wrong; empty: nothing. Never takes much longer than `seconds`.

        One look that takes too long is forgiven: it is no reason to send everybody away.
        """
        if self._look is None or self._look.done():
            loop = asyncio.get_running_loop()
            self._look = loop.run_in_executor(self._thread, self._ask)
        try:
            async with asyncio.timeout(self._seconds):
                found = await asyncio.shield(self._look)
        except TimeoutError:
            self._late += 1
            if self._late < MISSES:
                return ""
            return f"the database did not answer within {self._seconds:g} s"
        self._late = 0
        return found

    def close(self) -> None:
        """Stop; a look that hangs is left to itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._engine.dispose()

    def _ask(self) -> str:
        if self._file is not None:
            inode = _inode(self._file)
            if inode is None:
                return f"the database's file {self._file} is gone"
            if self._inode is not None and inode != self._inode:
                # What this server writes goes to a file that nobody finds any more.
                return f"another file is at {self._file} now: restart the server"
        try:
            with read(self._engine) as connection:
                revision = _revision(connection)
        except SQLAlchemyError as error:
            return (
                "the database has no such tables" if fault_of(error) is None else message_of(error)
            )
        if revision != self._head:
            return f"the database is at revision {revision}, this server needs {self._head}"
        return ""


def _revision(connection: Connection) -> str | None:
    found = connection.execute(text("SELECT version_num FROM alembic_version"))
    return found.scalars().first()


def _open(url: str, file: Path | None, seconds: float) -> Engine:
    if file is None:
        limits = Limits(pool_size=1, connection=seconds, statement=seconds, lock=seconds)
        return open_database(url, limits)
    # Opened anew for each look, and never made.
    where = f"file:{quote(str(file))}?mode=rw"
    return create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(where, uri=True, timeout=seconds),
        poolclass=NullPool,
    )


def _file_of(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    return Path(parsed.database or "").resolve()


def _inode(file: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
