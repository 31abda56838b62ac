"""The `unmask-server` command."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, Optional

import typer

from unmask_server.config import Settings

app = typer.Typer(
    name="unmask-server",
    help="The Unmask server: a cache of rollouts that tells where a teacher's push helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Database = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--database", help="sqlite:///PATH or postgresql://… (UNMASK_DATABASE)."),
]


def _help(name: str) -> str:
    return Settings.model_fields[name].description or ""


@app.command()
def serve(
    database: Database = None,
    listen: Annotated[Optional[list[str]], typer.Option(help=_help("listen"))] = None,  # noqa: UP045
    device: Annotated[Optional[str], typer.Option(help=_help("device"))] = None,  # noqa: UP045
    dtype: Annotated[Optional[str], typer.Option(help=_help("dtype"))] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(help=_help("threads"))] = None,  # noqa: UP045
    max_batch: Annotated[Optional[int], typer.Option(help=_help("max_batch"))] = None,  # noqa: UP045
    sglang_launch: Annotated[Optional[list[str]], typer.Option(help=_help("sglang_launch"))] = None,  # noqa: UP045
    sglang_command: Annotated[Optional[str], typer.Option(help=_help("sglang_command"))] = None,  # noqa: UP045
    log_format: Annotated[Optional[str], typer.Option(help=_help("log_format"))] = None,  # noqa: UP045
    migrate: Annotated[bool, typer.Option(help="Bring the database to this version first.")] = True,
    parent_pid: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Stop when this process is gone.", hidden=True),
    ] = None,
) -> None:
    """Serve, until told to stop (SIGTERM or Ctrl-C)."""
    from unmask_server.database.migrate import migrate as run_migrations
    from unmask_server.logs import configure
    from unmask_server.serve import serve as run

    given: dict[str, Any] = {
        "database": database,
        "listen": listen,
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "max_batch": max_batch,
        "sglang_launch": sglang_launch,
        "sglang_command": sglang_command,
        "log_format": log_format,
    }
    with _told():
        settings = Settings(**{key: value for key, value in given.items() if value is not None})
        configure(settings.log_format)
        if migrate:
            run_migrations(settings.database)
        asyncio.run(run(settings, parent_pid=parent_pid))


@app.command()
def migrate(
    database: Database = None,
    revision: Annotated[str, typer.Option(help="Where to; `head` is the newest.")] = "head",
) -> None:
    """Bring a database to a revision of the schema."""
    from unmask_server.database.connect import without_password
    from unmask_server.database.migrate import migrate as run_migrations

    with _told():
        url = database or Settings().database
        run_migrations(url, revision)
        typer.echo(f"{without_password(url)} is at {revision}")


@app.command()
def fsck(
    database: Database = None,
    repair: Annotated[bool, typer.Option("--repair", help="Restore what is derived.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object instead of lines.")] = False,
) -> None:
    """Check everything that the database promises, while servers work on it.

    Exits with 0 if all is well (or was repaired), 1 if findings are left, 2 if it could not run.
    """
    import json

    from unmask_server.database.connect import open_database
    from unmask_server.database.migrate import require_head
    from unmask_server.tree import fsck as check

    with _told():
        engine = open_database(database or Settings().database)
        require_head(engine)
        report = check(engine, repair)
        engine.dispose()
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        for line in report.lines():
            typer.echo(line)
    raise typer.Exit(int(report.left > 0))


@contextmanager
def _told() -> Iterator[None]:
    """Tell a mistake in the set-up in one line, and exit with status 2."""
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        _fail("; ".join(lines))
    except SQLAlchemyError as error:
        _fail(f"the database: {getattr(error, 'orig', None) or error}")
    except (ValueError, OSError, RuntimeError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"unmask-server: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point."""
    app()
