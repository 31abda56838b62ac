"""Every commit of a day's work fails once: before it happened, and after."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from sqlalchemy import Connection, Engine, event
from unmask.v1 import diagnosis_pb2, growth_pb2
from unmask_server.app import build
from unmask_server.config import Settings
from unmask_server.growth.flushing import FLUSH_ROLLOUTS
from unmask_server.logs import configure
from unmask_server.serve import running

from tests.chaos.audit import Account, audit
from tests.chaos.conftest import MakeTeam
from tests.chaos.report import Row, count
from tests.chaos.server import opening, recording
from tests.chaos.team import Server, Team
from tests.e2e.conftest import Stubs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

COMMITS = count("COMMITS", 1)
"""How many commits are made to fail in each way, spread over all there are; 0: every one."""
BUDGET = 300
_commits: dict[str, int] = {}
"""How many there are when none fails, by store."""

TRIES = 4
"""Of a client, for one call."""


class Saboteur:
    """Makes the k-th commit of a transaction that wrote fail, once."""

    def __init__(self, engine: Engine, k: int, *, after: bool, transient: bool) -> None:
        self.commits = 0
        self.failed = 0
        self._k = k
        self._after = after
        self._error = _error(engine, transient)
        self._next = threading.local()
        self._lock = threading.Lock()
        self._commit: Callable[[Any], None] = engine.dialect.do_commit
        event.listen(engine, "commit", self._look)
        engine.dialect.do_commit = self._fail  # type: ignore[method-assign]

    def _look(self, connection: Connection) -> None:
        if not _wrote(connection):
            return
        with self._lock:
            self.commits += 1
            self._next.fails = self.commits == self._k

    def _fail(self, connection: Any) -> None:
        fails = getattr(self._next, "fails", False)
        self._next.fails = False
        if not fails or self._after:
            self._commit(connection)
        if fails:
            self.failed += 1
            raise self._error


def _wrote(connection: Connection) -> bool:
    if connection.dialect.name == "sqlite":
        return bool(connection.get_execution_options().get("unmask_writes"))
    cursor = connection.connection.cursor()
    cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
    row = cursor.fetchone()
    assert row is not None
    return bool(row[0])


def _error(engine: Engine, transient: bool) -> Exception:
    if engine.dialect.name == "postgresql":
        if transient:
            return psycopg.OperationalError("the connection is lost (on purpose)")
        return psycopg.errors.InternalError_("corrupt (on purpose)")
    error = sqlite3.OperationalError("on purpose")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY if transient else sqlite3.SQLITE_CORRUPT
    return error


@pytest.mark.parametrize("transient", [True, False], ids=["transient", "fatal"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_every_commit_fails_once(
    store: str,
    make_team: MakeTeam,
    rows: list[Row],
    tmp_path: Path,
    after: bool,
    transient: bool,
) -> None:
    """A transient error is not even noticed; after any other a client has to ask once more."""

    async def one(k: int) -> tuple[Account, Saboteur]:
        folder = tmp_path / f"{k}"
        folder.mkdir()
        url = f"sqlite:///{folder}/unmask.db" if store == "sqlite" else ""
        team = make_team(store, url)
        team.folder, team.answered = folder, folder / "answered"
        saboteur = await _work(team, k, after=after, transient=transient)
        account = audit(team, allowed_lost=0 if transient else FLUSH_ROLLOUTS)
        shutil.rmtree(folder)
        return account, saboteur

    configure("console")
    accounts = []
    if store not in _commits:
        clean, saboteur = await one(0)
        assert clean.violations == []
        _commits[store] = saboteur.commits
        accounts.append(clean)
    every = max(1, _commits[store] // COMMITS) if COMMITS else 1
    # Few are others each time.
    first = 1 + zlib.crc32(f"{store} {after} {transient}".encode()) % every
    failed = 0
    for k in range(first, _commits[store] + 1, every):
        account, sabotaged = await one(k)
        accounts.append(account)
        failed += sabotaged.failed
        # How many there are depends a little on what came first.
        assert sabotaged.failed == 1 or k > sabotaged.commits
        assert account.violations == [], f"commit {k} of {_commits[store]}"
    kind, when = "transient" if transient else "fatal", "after" if after else "before"
    rows.append(Row.of(f"{kind} error {when} a commit", store, failed, *accounts))


async def _work(team: Team, k: int, *, after: bool, transient: bool) -> Saboteur:
    """A day's work, from an empty database; the k-th commit fails."""
    settings = Settings(database=team.url, listen=[f"unix:{team.folder}/s"], grace_seconds=0.1)
    app = build(settings)
    app.engines._open = recording(opening(settings), team.answered)
    saboteur = Saboteur(app.database, k, after=after, transient=transient)
    async with running(settings, app) as bound, grpc.aio.insecure_channel(bound[0]) as channel:
        server: Any = _Here(Stubs(channel))
        await _insist(lambda: team.fill(server))
        await _insist(lambda: team.sample(server, seed=1))
        await _insist(lambda: team.finish(server, "first", BUDGET))
        await _insist(lambda: team.sample(server, "one", seed=1))
        await _insist(lambda: _ask(server))
        await _insist(lambda: team.finish(server, "second", BUDGET, question="two"))
        await _insist(lambda: team.finish(server, "first", BUDGET))
        growths = await server.stubs.growth.ListGrowths(growth_pb2.ListGrowthsRequest())
        assert [g.rollouts_sampled for g in growths.growths] == [BUDGET, BUDGET]
    return saboteur


class _Here:
    """A server in this process."""

    def __init__(self, stubs: Stubs) -> None:
        self.stubs = stubs


async def _insist(call: Callable[[], Any]) -> None:
    for attempt in range(TRIES):
        try:
            await call()
            return
        except grpc.aio.AioRpcError:
            if attempt == TRIES - 1:
                raise


async def _ask(server: Server) -> None:
    prefix = diagnosis_pb2.PrefixNode(policy="student", question="one")
    node = diagnosis_pb2.NodeRef(prefix=prefix)
    await server.stubs.diagnosis.GetNode(diagnosis_pb2.GetNodeRequest(node=node))
