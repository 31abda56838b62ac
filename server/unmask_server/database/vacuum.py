"""Giving room back that deleted rows have left."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, func, select, text

from unmask_server.database.connect import query


def size(engine: Engine) -> int:
    """Bytes of the database on the disk; for SQLite with its write-ahead log."""
    if engine.dialect.name == "sqlite":
        path = Path(engine.url.database or "")
        files = (path, path.with_name(path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
    wanted = select(func.pg_database_size(func.current_database()))
    return int(query(engine, lambda c: c.scalar(wanted)) or 0)


def vacuum(engine: Engine, *, full: bool = False) -> tuple[int, int]:
    """Compact the database; not a row changes.

    SQLite's file is written anew without gaps, while writers wait, and the write-ahead log is cut.
    PostgreSQL marks the room as free and counts anew what its planner goes by, while everybody
    works on; given `full`, it writes every table anew, while everybody waits.

    Returns:
        The size before and after, in bytes.

    """
    before = size(engine)
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            cursor = raw.cursor()
            for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA optimize"):
                cursor.execute(statement)
            cursor.close()
    else:
        with alone.connect() as connection:
            connection.execute(text(f"VACUUM ({'FULL, ' if full else ''}ANALYZE)"))
    return before, size(engine)
