"""`unmask-server token`, and what commands never show."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unmask_server.access.principals import Budget, Scope
from unmask_server.access.tokens import TokenStore, hash_of
from unmask_server.cli import app
from unmask_server.database.connect import open_database
from unmask_server.database.migrate import migrate


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/unmask.db"
    migrate(url)
    return url


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_a_token_is_made_listed_and_revoked(url: str) -> None:
    budget = ("--rollouts-per-day", "100", "--tokens", "5000")
    made = ("token", "create", "ann", "--scope", "grow", "--expires-days", "1", *budget)
    status, secret, told = run(*made, "--database", url)
    assert status == 0
    assert "shown this once" in told
    store = TokenStore(open_database(url))
    token = store.find(hash_of(secret.strip()))
    assert token is not None
    assert token.name == "ann"
    assert token.scope is Scope.GROW
    assert token.budget == Budget(rollouts_per_day=100, tokens=5000)
    assert token.expires_at == pytest.approx(time.time() + 86_400, abs=600)

    status, listed, _ = run("token", "list", "--database", url)
    assert status == 0
    assert "ann" in listed
    assert token.id in listed
    assert secret.strip() not in listed

    assert run("token", "revoke", "ann", "--database", url)[:2] == (
        0,
        f"ann ({token.id}) is revoked\n",
    )
    assert "revoked" in run("token", "list", "--database", url)[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "ann", "--scope", "root"), "'root' is no scope"),
        (("create", ""), "give a name"),
        (("revoke", "nobody"), "there is no token 'nobody'"),
    ],
)
def test_mistakes_are_told_in_one_line(url: str, arguments: tuple[str, ...], told: str) -> None:
    status, out, error = run("token", *arguments, "--database", url)
    assert status == 2
    assert not out
    assert told in error
    assert error.count("\n") == 1


def test_without_tokens_it_says_how_to_make_one(url: str) -> None:
    assert "token create" in run("token", "list", "--database", url)[1]


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://unmask:hunter2@127.0.0.1:1/unmask",
        "postgresql://unmask:hunter2@127.0.0.1:port/unmask",
        "postgresql://unmask@127.0.0.1:1/unmask?password=hunter2",
        "nonsense://unmask:hunter2@127.0.0.1:1/unmask",
    ],
)
def test_a_password_is_never_shown(dsn: str) -> None:
    for command in (("migrate",), ("fsck",), ("token", "list")):
        status, out, error = run(*command, "--database", dsn)
        assert status == 2, command
        assert "hunter2" not in out + error, command
