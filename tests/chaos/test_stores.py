"""Databases that go away, and disks that are full."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psycopg
import pytest
from unmask.v1 import growth_pb2
from unmask_server.database.faults import MESSAGES, Fault
from unmask_server.growth.flushing import FLUSH_ROLLOUTS

from tests.chaos.audit import audit
from tests.chaos.conftest import MakeTeam
from tests.chaos.crash import restart_at_once
from tests.chaos.report import Row, count
from tests.chaos.team import ENDED, Server, Team, has_more_than
from tests.stores import new_database, postgresql_process

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

RESTARTS = count("RESTARTS", 2)
FULL = count("FULL", 1)
PATIENT = {"database_patience_seconds": 30}
BUDGET = 3000
SPARE = 200_000
"""Bytes left on the disk when a growth starts."""


async def test_postgresql_crashes_during_growth(make_team: MakeTeam, rows: list[Row]) -> None:
    """A batch that could not be committed is stored when the database is back: nothing is lost."""
    with postgresql_process() as process:
        team = make_team("postgresql", new_database(process.get_uri()), settings=PATIENT)
        async with team.running() as server:
            await team.fill(server)
            budget = 1000 * RESTARTS
            async with team.sampling(lambda: server):
                for _ in range(RESTARTS):
                    growth = await team.grow(server, "crashed", budget)
                    moved = has_more_than(growth.rollouts_sampled)
                    await team.watch(server, growth.id, moved)
                    await asyncio.to_thread(restart_at_once, process)
                await team.finish(server, "crashed", budget)
            assert server.is_alive
        account = audit(team)
    rows.append(Row.of("PostgreSQL restarted, immediate mode", "postgresql", RESTARTS, account))
    assert account.violations == []
    assert account.uncharged == 0
    assert team.refusals.keys() <= {"UNAVAILABLE"}


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own in memory; skips where it cannot be mounted."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Balloon:
    """A file that takes the room of a disk, but for a little."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "balloon"

    def fill(self, spare: int) -> None:
        size = max(0, shutil.disk_usage(self._file.parent).free - spare)
        self._file.write_bytes(bytes(size))

    def burst(self) -> None:
        self._file.unlink()


async def test_the_disk_of_sqlite_is_full(
    make_team: MakeTeam, rows: list[Row], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        team = make_team("sqlite", f"sqlite:///{disk}/unmask.db", settings=PATIENT)
        await _fill_up("sqlite", team, Balloon(disk), rows)


async def test_the_disk_of_postgresql_is_full(
    make_team: MakeTeam, rows: list[Row], tmp_path: Path
) -> None:
    """The disk of its tables; the one of its log is PostgreSQL's own matter, which stops then."""
    # Not in tmp_path: the server's own user may not go there.
    folder = Path(tempfile.gettempdir(), f"disk-{os.getpid()}")
    with small_disk(folder, 64) as disk, postgresql_process() as process:
        tables = disk / "tables"
        tables.mkdir()
        shutil.chown(tables, process.system_user)
        with psycopg.connect(process.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{tables}'")
        team = make_team("postgresql", new_database(process.get_uri(), "small"), settings=PATIENT)
        await _fill_up("postgresql", team, Balloon(disk), rows)


async def _fill_up(store: str, team: Team, balloon: Balloon, rows: list[Row]) -> None:
    """Grow until the disk is full; make room; the growth goes on by its request_id."""
    async with team.running() as server:
        await team.fill(server)
        await team.finish(server, "before", 100)
        for number in range(FULL):
            balloon.fill(SPARE)
            growth = await team.grow(server, f"full {number}", BUDGET)
            while growth.state not in ENDED and not team.refusals.get("RESOURCE_EXHAUSTED"):
                try:
                    await team.sample(server)
                    growth = await _get(server, growth.id)
                except grpc.aio.AioRpcError as error:
                    team.refused(error)
            assert growth.state != growth_pb2.GROWTH_STATE_SUCCEEDED
            if growth.state == growth_pb2.GROWTH_STATE_FAILED:
                assert growth.error == MESSAGES[Fault.FULL]
            # It still answers what it has.
            await _get(server, growth.id)
            assert team.refusals.keys() <= {"RESOURCE_EXHAUSTED"}
            balloon.burst()
            await team.finish(server, f"full {number}", BUDGET)
            team.refusals.clear()
        assert server.is_alive
    account = audit(team, allowed_lost=FULL * (2 * FLUSH_ROLLOUTS))
    rows.append(Row.of("disk full during growth", store, FULL, account))
    assert account.violations == []


async def _get(server: Server, growth_id: str) -> growth_pb2.Growth:
    wanted = growth_pb2.GetGrowthRequest(growth=growth_id)
    return (await server.stubs.growth.GetGrowth(wanted)).growth
