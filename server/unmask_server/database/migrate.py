"""Bringing a database to a revision of the schema, and refusing to serve on any other.

The history of the schema is in `migrations/`: in this package when it is installed, at the top of
the repository when it is not. Alembic is set up here, in code.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, func, select

from unmask_server.database.connect import open_database, query, write
from unmask_server.database.limits import UNLIMITED

_ADVISORY_LOCK = 0x756E6D61736B
"""Key of PostgreSQL's lock on migrating; the letters of "unmask"."""


class SchemaRevisionError(RuntimeError):
    """The database is not at the schema revision that this program was written for."""


def migrations_folder() -> Path:
    """Find the folder with Alembic's `env.py`.

    Raises:
        FileNotFoundError: neither the package nor a repository around it has one.

    """
    package = Path(__file__).resolve().parent.parent
    candidates = (package / "migrations", package.parent.parent / "migrations")
    for folder in candidates:
        if (folder / "env.py").is_file():
            return folder
    raise FileNotFoundError(f"no migrations in {' or '.join(map(str, candidates))}")


def head_revision() -> str:
    """Return the newest revision that this program knows: the one it works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "the migrations folder holds no migration"
    return head


def current_revision(engine: Engine) -> str | None:
    """Return the revision the database is at, or None if it has never been migrated."""
    return query(engine, _revision)


def migrate(url: str, revision: str = "head") -> str | None:
    """Bring the database to a revision, up or down, and return the revision it is at then.

    All in one transaction: it arrives or nothing changes. Calls at the same time wait for each
    other. "base" removes every table and with it all data.

    Raises:
        SchemaRevisionError: the database or `revision` is not in this program's history.

    """
    engine = open_database(url, UNLIMITED)
    try:
        with write(engine) as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            _run(connection, revision)
            return _revision(connection)
    finally:
        engine.dispose()


def require_head(engine: Engine) -> None:
    """Check that the database is at this program's revision.

    Raises:
        SchemaRevisionError: it is not; the message says what to do.

    """
    current = current_revision(engine)
    head = head_revision()
    if current == head:
        return
    if current is None:
        raise SchemaRevisionError("the database has no tables yet: run `unmask-server migrate`")
    if current not in _known():
        _refuse_unknown(current)
    raise SchemaRevisionError(
        f"the database is at revision {current}, this version needs {head}: "
        "back it up, then run `unmask-server migrate`"
    )


def _run(connection: Connection, revision: str) -> None:
    current = _revision(connection)
    known = _known()
    if current is not None and current not in known:
        _refuse_unknown(current)
    config = _config()
    config.attributes["connection"] = connection
    try:
        target = _script().as_revision_number(revision)
        # `known` goes from the newest to the oldest; as target, None is before all of them.
        goes_down = current is not None and (
            target is None or known.index(str(target)) > known.index(current)
        )
        (command.downgrade if goes_down else command.upgrade)(config, revision)
    except (CommandError, ValueError) as error:
        raise SchemaRevisionError(f"cannot migrate to {revision!r}: {error}") from error


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    # Alembic expands % in its options.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _known() -> list[str]:
    return [script.revision for script in _script().walk_revisions()]


def _refuse_unknown(revision: str) -> NoReturn:
    raise SchemaRevisionError(
        f"the database is at revision {revision}, which this version does not know: a newer "
        "version has migrated it; install that version, or use another database"
    )
