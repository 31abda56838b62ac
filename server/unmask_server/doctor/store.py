"""The database: there, at the right revision, with room, and a clock that agrees."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, make_url, select, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from unmask_server.config import Settings
from unmask_server.database.clock import now
from unmask_server.database.connect import open_database, read, without_password
from unmask_server.database.faults import message_of
from unmask_server.database.limits import Limits
from unmask_server.database.migrate import SchemaRevisionError, require_head
from unmask_server.doctor.finding import Finding, ok, problem, warning

SECONDS = 5.0
"""What connecting and each statement may take."""
SKEW_SECONDS = 2.0
"""By which this clock may differ from the database's."""
LEAST_ROOM, LITTLE_ROOM = 100 * 2**20, 2**30
"""Bytes on the disk."""
OLDEST_POSTGRESQL = 13


def database(settings: Settings) -> Iterator[Finding]:
    """All that can be said of it."""
    try:
        parsed = make_url(settings.database)
    except ArgumentError:
        yield problem(
            "database",
            "the setting is no URL",
            "write sqlite:///PATH or postgresql://USER@HOST/NAME",
        )
        return
    shown = without_password(settings.database)
    if parsed.get_backend_name() == "sqlite":
        file = Path(parsed.database or "").absolute()
        yield from _room(file)
        if not file.exists():
            yield warning(
                "database", f"{shown}: not there yet", "`unmask-server serve` makes it at its start"
            )
            return
        if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
            yield problem(
                "database",
                f"{shown}: cannot be written by this user",
                f"let this user write {file} and its folder, where SQLite keeps its log",
            )
            return
    limits = Limits(pool_size=1, connection=SECONDS, statement=SECONDS, lock=SECONDS, patience=0.0)
    try:
        engine = open_database(settings.database, limits)
    except ValueError as error:
        yield problem("database", f"{shown}: {error}", "correct the setting")
        return
    try:
        with read(engine) as connection:
            yield from _details(connection, shown, settings)
        yield from _revision(engine, shown)
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[-1]
        yield problem(
            "database",
            f"{shown}: {message_of(error) if 'UNIQUE' in said else said}",
            "start it, or correct the setting: host, port, user, password, network",
        )
    finally:
        engine.dispose()


def _revision(engine: object, shown: str) -> Iterator[Finding]:
    try:
        require_head(engine)  # type: ignore[arg-type]
    except SchemaRevisionError as error:
        newer = "does not know" in str(error)
        todo = "install that version" if newer else "back it up, then `unmask-server migrate`"
        yield problem("schema", str(error).partition(":")[0], todo)
    else:
        yield ok("schema", "at this version's revision")


def _details(connection: Connection, shown: str, settings: Settings) -> Iterator[Finding]:
    asked = time.time()
    there = connection.execute(select(now())).scalar_one()
    answered = time.time()
    took = answered - asked
    skew = there - (asked + answered) / 2.0
    yield ok("database", f"{shown}, answers in {1000.0 * took:.1f} ms")
    if abs(skew) > SKEW_SECONDS + took:
        yield warning(
            "clock",
            f"{abs(skew):.1f} s {'behind' if skew > 0 else 'ahead of'} the database's",
            "let both machines keep time (chrony, systemd-timesyncd)",
        )
    else:
        yield ok("clock", "agrees with the database's")
    if connection.dialect.name == "sqlite":
        mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
        if mode != "wal":
            yield problem(
                "journal",
                f"SQLite's mode is {mode}, not WAL",
                "move the file to a local disk: WAL does not work over a network",
            )
        else:
            yield ok("journal", "WAL")
        return
    version = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    if version // 10_000 < OLDEST_POSTGRESQL:
        yield problem(
            "postgresql", f"version {version // 10_000}", f"use {OLDEST_POSTGRESQL} or later"
        )
    most = int(connection.execute(text("SHOW max_connections")).scalar_one())
    wanted = 2 * settings.database_pool + 2
    if wanted > most:
        yield warning(
            "connections",
            f"a server may want {wanted}, PostgreSQL gives {most} to all",
            "lower database_pool, raise max_connections, or put a pooler between",
        )
    else:
        yield ok("connections", f"up to {wanted} a server, of PostgreSQL's {most}")


def _room(file: Path) -> Iterator[Finding]:
    folder = file.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free // 2**20} MiB free at {folder}"
    if free < LEAST_ROOM:
        yield problem("disk", found, "make room, or `unmask-server prune` and `vacuum`")
    elif free < LITTLE_ROOM:
        yield warning("disk", found, "make room before it is full")
    else:
        yield ok("disk", found)
