"""The `unmask-server` command."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn, Optional

import typer

from unmask_server.access.command import app as tokens
from unmask_server.configuration.flags import Config, Load, configured
from unmask_server.configuration.loading import load as load_settings

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
    typer.Option(
        "--database", help="sqlite:///PATH or postgresql://… (UNMASK_DATABASE, or the file's)."
    ),
]


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _version() if wanted else None,
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    pass


def _version() -> NoReturn:
    import unmask

    typer.echo(f"unmask-server {unmask.__version__}")
    raise typer.Exit


@app.command()
@configured
def serve(
    load: Load,
    migrate: Annotated[bool, typer.Option(help="Bring the database to this version first.")] = True,
    parent_pid: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Stop when this process is gone.", hidden=True),
    ] = None,
) -> None:
    """Serve, until told to stop (SIGTERM or Ctrl-C; once more: at once)."""
    from unmask_server.database.migrate import migrate as run_migrations
    from unmask_server.logs import configure
    from unmask_server.serve import serve as run

    with _told():
        settings = load().settings
        configure(settings.log_format, settings.log_level)
        if migrate:
            run_migrations(settings.database)
        asyncio.run(run(settings, parent_pid=parent_pid))


@app.command()
@configured
def config(
    load: Load,
    as_json: Annotated[bool, typer.Option("--json", help="As one object.")] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a file to begin with instead.")
    ] = False,
) -> None:
    """Show the settings in effect, and where each is from. Secrets are masked."""
    import json

    from rich.console import Console

    from unmask_server.configuration import show

    if example:
        typer.echo(show.example(), nl=False)
        return
    with _told():
        loaded = load()
        if as_json:
            typer.echo(json.dumps(show.to_json(loaded), indent=2))
        else:
            show.print_table(loaded, Console(highlight=False))


@app.command()
def health(
    service: Annotated[
        str, typer.Argument(help="Its full name, e.g. unmask.v1.GrowthService; default: all.")
    ] = "",
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="HOST:PORT or unix:PATH; default: one of those it is to listen at."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to go on asking one that does not serve.")
    ] = 0.0,
    config: Config = None,
) -> None:
    """Ask a server how it is (grpc.health.v1). Exits with 0 if it serves, else with 1."""
    from unmask_server.health_check import SERVING, own_address, status

    try:
        where = address or own_address(load_settings({}, config).settings)
    except (ValueError, OSError) as error:
        _fail(str(error))
    found = status(where, service, patience=wait)
    typer.echo(f"{where}: {found}")
    raise typer.Exit(int(found != SERVING))


@app.command()
@configured
def doctor(
    load: Load,
    as_json: Annotated[bool, typer.Option("--json", help="As a list of objects.")] = False,
) -> None:
    """Look for what is wrong with this set-up, and say what to do. Nothing is changed.

    Exits with 0 if there is no problem (but perhaps warnings), 1 if there is, 2 if it could not
    run. For a server that runs, ask `unmask doctor`.
    """
    import json

    from rich.console import Console

    from unmask_server.doctor.finding import Finding, Level
    from unmask_server.doctor.run import diagnose, show

    console = Console(highlight=False)
    found: list[Finding] = []

    async def look() -> None:
        async for finding in diagnose(load()):
            found.append(finding)
            if not as_json:
                show(finding, console)

    with _told():
        asyncio.run(look())
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in found], indent=2))
    raise typer.Exit(int(any(finding.level is Level.PROBLEM for finding in found)))


@app.command()
def migrate(
    database: Database = None,
    config: Config = None,
    revision: Annotated[str, typer.Option(help="Where to; `head` is the newest.")] = "head",
) -> None:
    """Bring a database to a revision of the schema."""
    from unmask_server.database.connect import without_password
    from unmask_server.database.migrate import migrate as run_migrations

    with _told():
        url = _database(database, config)
        run_migrations(url, revision)
        typer.echo(f"{without_password(url)} is at {revision}")


@app.command()
def fsck(
    database: Database = None,
    config: Config = None,
    repair: Annotated[bool, typer.Option("--repair", help="Restore what is derived.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object instead of lines.")] = False,
) -> None:
    """Check everything that the database promises, while servers work on it.

    Exits with 0 if all is well (or was repaired), 1 if findings are left, 2 if it could not run.
    """
    import json

    from unmask_server.tree import fsck as check

    with _told(), _opened(database, config) as engine:
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
    config: Config = None,
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

    with _told(), _opened(database, config) as engine:
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
    config: Config = None,
) -> None:
    """Set how long a policy's trees are kept; without a policy, list it for all."""
    from unmask_server.keeping.retention import rules, set_rule

    with _told(), _opened(database, config) as engine:
        if policy is not None:
            if (days is None) is not forever:
                raise ValueError("say either --days or --forever")
            set_rule(engine, policy, days)
        for name, kept in rules(engine):
            typer.echo(f"{name}: {'for ever' if kept is None else f'{kept:g} days'}")


@app.command()
def vacuum(
    database: Database = None,
    config: Config = None,
    full: Annotated[
        bool, typer.Option("--full", help="PostgreSQL: write all tables anew; everybody waits.")
    ] = False,
) -> None:
    """Give room back to the disk. Not a row changes."""
    from unmask_server.database.vacuum import vacuum as compact

    with _told(), _opened(database, config) as engine:
        before, after = compact(engine, full=full)
        typer.echo(f"{before} bytes before, {after} now")


@contextmanager
def _opened(database: str | None, config: str | None = None) -> Iterator[Engine]:
    """The database, at this program's revision."""
    from unmask_server.database.connect import open_database
    from unmask_server.database.limits import UNLIMITED
    from unmask_server.database.migrate import require_head

    # What looks at everything takes as long as it takes.
    engine = open_database(_database(database, config), UNLIMITED)
    try:
        # A database that is not there is told at once: nobody waits for it to come.
        with engine.connect():
            pass
        require_head(engine)
        yield engine
    finally:
        engine.dispose()


def _database(given: str | None, config: str | None) -> str:
    return load_settings({"database": given}, config).settings.database


@contextmanager
def _told() -> Iterator[None]:
    """Tell a mistake in the set-up in one line, and exit with status 2."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        _fail(f"the database: {getattr(error, 'orig', None) or error}")
    except (ValueError, OSError, RuntimeError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"unmask-server: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)
