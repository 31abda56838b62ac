"""`unmask-server token`: bearer tokens, made and ended where the database is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from unmask_server.access.principals import Budget, Scope
from unmask_server.configuration.flags import Config

if TYPE_CHECKING:
    from unmask_server.access.tokens import Token

DAY_SECONDS = 86_400.0

app = typer.Typer(
    no_args_is_help=True, help="Bearer tokens of a server that runs with --auth tokens."
)
Database = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option(
        "--database", help="sqlite:///PATH or postgresql://… (UNMASK_DATABASE, or the file's)."
    ),
]
Count = Optional[int]  # noqa: UP045


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will use it; limits and logs go by it.")],
    scope: Annotated[
        str,
        typer.Option(help="read, grow (and read), or admin (and all); see docs/security.md."),
    ] = "read",
    expires_days: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.0, help="After which it ends by itself; default: never."),
    ] = None,
    rollouts_per_day: Annotated[Count, typer.Option(min=1, help="At most, in 24 hours.")] = None,
    tokens_per_day: Annotated[Count, typer.Option(min=1, help="At most, in 24 hours.")] = None,
    rollouts: Annotated[Count, typer.Option(min=1, help="At most, in all.")] = None,
    tokens: Annotated[Count, typer.Option(min=1, help="At most, in all.")] = None,
    database: Database = None,
    config: Config = None,
) -> None:
    """Make a token, and print it: this once, it is kept nowhere."""
    from unmask_server.access.tokens import TokenStore
    from unmask_server.cli import _opened, _told

    with _told(), _opened(database, config) as engine:
        expires_at = None if expires_days is None else time.time() + expires_days * DAY_SECONDS
        budget = Budget(rollouts_per_day, tokens_per_day, rollouts, tokens)
        made, secret = TokenStore(engine).create(
            name, Scope.named(scope), expires_at=expires_at, budget=budget
        )
    typer.echo(f"{made.id}: shown this once; give it to clients as UNMASK_TOKEN", err=True)
    typer.echo(secret)


@app.command("list")
def list_(database: Database = None, config: Config = None) -> None:
    """List all tokens, without their secrets."""
    from unmask_server.access.tokens import TokenStore
    from unmask_server.cli import _opened, _told

    with _told(), _opened(database, config) as engine:
        print_tokens(TokenStore(engine).all())


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Its name or id.")],
    database: Database = None,
    config: Config = None,
) -> None:
    """End a token, on all servers of the database within seconds."""
    from unmask_server.access.tokens import TokenStore
    from unmask_server.cli import _opened, _told

    with _told(), _opened(database, config) as engine:
        token = TokenStore(engine).revoke(name)
    typer.echo(f"{token.name} ({token.id}) is revoked")


def print_tokens(tokens: list[Token]) -> None:
    """Print a table of tokens."""
    from rich.console import Console
    from rich.table import Table

    if not tokens:
        typer.echo("no tokens; `unmask-server token create` makes one")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "id", "scope", "state", "made", "expires"):
        table.add_column(title, no_wrap=True)
    table.add_column("budget")
    now = time.time()
    for token in tokens:
        table.add_row(
            token.name,
            token.id,
            token.scope.label,
            token.state(now),
            _day(token.created_at),
            _day(token.expires_at),
            _budget(token.budget),
        )
    Console(highlight=False, markup=False).print(table)


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _budget(budget: Budget) -> str:
    parts = (
        (budget.rollouts_per_day, "rollouts a day"),
        (budget.tokens_per_day, "tokens a day"),
        (budget.rollouts, "rollouts in all"),
        (budget.tokens, "tokens in all"),
    )
    return ", ".join(f"{number} {what}" for number, what in parts if number is not None)
