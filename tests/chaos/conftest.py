"""Stores to be broken, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.model import make_model
from tests.chaos.report import Row, table, write_into
from tests.chaos.team import Team
from tests.stores import STORES, new_database

_rows: list[Row] = []


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "student")
    return folder


@pytest.fixture(scope="session")
def rows() -> Iterator[list[Row]]:
    """Where scenarios put what they found."""
    return _rows


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MakeTeam = Callable[..., Team]


@pytest.fixture
def make_team(request: pytest.FixtureRequest, tmp_path: Path, models: Path) -> MakeTeam:
    """Servers-to-be over a fresh database of a store, or over a database that is given."""

    def make(store: str, url: str = "", **options: object) -> Team:
        if not url and store == "sqlite":
            url = f"sqlite:///{tmp_path}/unmask.db"
        elif not url:
            url = new_database(request.getfixturevalue("postgresql_url"))
        return Team(url, tmp_path, models, **options)

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _rows:
        terminalreporter.write_line(table(_rows))
        if page := os.environ.get("UNMASK_CHAOS_PAGE"):
            write_into(Path(page), _rows)
