"""`python -m bench.load`, for some seconds: no call fails, and memory does not grow."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.load import run
from tests.stores import STORES, new_database


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", STORES)
def test_a_teams_load_is_carried(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    if store == "sqlite":
        url = f"sqlite:///{tmp_path}/load.db"
    else:
        url = new_database(request.getfixturevalue("postgresql_url"))
    # How late calls are says how busy this machine is.
    plan = argparse.Namespace(seconds=5.0, clients=16, rate=2.0, growths=2, late=float("inf"))
    found, wrong = run(store, url, tmp_path, plan)
    assert wrong == [], found
