"""Whether the database is there: quickly told, whatever the database does."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from sqlalchemy import URL
from unmask_server.database.migrate import migrate
from unmask_server.readiness.store import StoreCheck


async def test_a_path_may_be_called_anything(tmp_path: Path) -> None:
    file = tmp_path / "a b%20&c=é#" / "unmask 1.db"
    url = URL.create("sqlite", database=str(file)).render_as_string()
    migrate(url)
    check = StoreCheck(url)
    assert await check.problem() == ""
    file.rename(file.with_name("other"))
    assert "is gone" in await check.problem()
    check.close()


async def test_a_database_that_hangs_holds_nobody_up_and_one_time_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    migrate(url)
    check = StoreCheck(url, seconds=0.05)
    hangs, asked = threading.Event(), 0

    def ask() -> str:
        nonlocal asked
        asked += 1
        hangs.wait()
        return ""

    monkeypatch.setattr(check, "_ask", ask)
    async with asyncio.timeout(30):
        assert await check.problem() == ""
        for _ in range(3):
            assert "did not answer within 0.05 s" in await check.problem()
        # No second thread waits for what the first one waits for.
        assert asked == 1
        hangs.set()
        while await check.problem():
            pass
    check.close()
