"""The `unmask-server` command."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

from unmask_server.access.command import app as tokens
from unmask_server.config import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(
    name="unmask-server",
    help="The Unmask server: a cache of rollouts that tells where a teacher's push helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(tokens, name="token")

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
        configure(settings.log_format, settings.log_level)
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

    from unmask_server.tree import fsck as check

    with _told(), _opened(database) as engine:
        report = check(engine, repair)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        for line in report.lines():
            typer.echo(line)
    raise typer.Exit(int(report.left > 0))


@app.command()
def prune(
    database: Database = None,
    policy: Annotated[Optional[str], typer.Option(help="Trees of this policy.")] = None,  # noqa: UP045
    question: Annotated[Optional[str], typer.Option(help="Trees of this question.")] = None,  # noqa: UP045
    older_days: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.0, help="Trees to which nothing was added for so many days."),
    ] = None,
    by_rules: Annotated[
        bool, typer.Option("--by-rules", help="Trees that `retention` lets go.")
    ] = False,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="Only the scores of rollouts, which models can make again."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, do nothing.")] = False,
) -> None:
    """Take whole trees out, while servers work: their rollouts, trajectories and answers.

    Says which answers go. All others stay as they are.
    """
    from unmask_server.keeping.prune import Chosen
    from unmask_server.keeping.report import run

    with _told(), _opened(database) as engine:
        if not (policy or question or by_rules or older_days is not None):
            raise ValueError("say which: --policy, --question, --older-days or --by-rules")
        chosen = Chosen(policy, question, older_days, by_rules)
        for line in run(engine, chosen, scores=scores, dry_run=dry_run):
            typer.echo(line)


@app.command()
def retention(
    policy: Annotated[Optional[str], typer.Argument(help="Id or name.")] = None,  # noqa: UP045
    days: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Let its trees go when nothing was added for so long."),
    ] = None,
    forever: Annotated[bool, typer.Option("--forever", help="Keep its trees.")] = False,
    database: Database = None,
) -> None:
    """Set how long a policy's trees are kept; without a policy, list it for all."""
    from unmask_server.keeping.retention import rules, set_rule

    with _told(), _opened(database) as engine:
        if policy is not None:
            if (days is None) is not forever:
                raise ValueError("say either --days or --forever")
            set_rule(engine, policy, days)
        for name, kept in rules(engine):
            typer.echo(f"{name}: {'for ever' if kept is None else f'{kept:g} days'}")


@app.command()
def vacuum(
    database: Database = None,
    full: Annotated[
        bool, typer.Option("--full", help="PostgreSQL: write all tables anew; everybody waits.")
    ] = False,
) -> None:
    """Give room back to the disk. Not a row changes."""
    from unmask_server.database.vacuum import vacuum as compact

    with _told(), _opened(database) as engine:
        before, after = compact(engine, full=full)
        typer.echo(f"{before} bytes before, {after} now")


@contextmanager
def _opened(database: str | None) -> Iterator[Engine]:
    """The database, at this program's revision."""
    from unmask_server.database.connect import open_database
    from unmask_server.database.limits import UNLIMITED
    from unmask_server.database.migrate import require_head

    # What looks at everything takes as long as it takes.
    engine = open_database(database or Settings().database, UNLIMITED)
    try:
        require_head(engine)
        yield engine
    finally:
        engine.dispose()


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
