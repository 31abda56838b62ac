"""Servers that are told to stop: what runs comes to its end, what is left goes on elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import Engine, func, select
from unmask.v1 import cache_pb2, growth_pb2, trajectory_pb2
from unmask_server.api.guard import CallGuard
from unmask_server.app import App
from unmask_server.database.connect import open_database, read
from unmask_server.database.schema import growth, rollout
from unmask_server.growth.flushing import FLUSH_ROLLOUTS
from unmask_server.readiness.store import StoreCheck
from unmask_server.serve import HARD_STATUS
from unmask_server.tree import fsck

from tests.chaos.audit import audit
from tests.chaos.model import make_model
from tests.chaos.team import Server, Team
from tests.collected import collected
from tests.e2e.conftest import serving

BUDGET = 20_000
"""Rollouts of a growth, more than are sampled before a test is over."""
MANY = 1_000
"""Trajectories of a call, which takes a second or so."""
LEASE_SECONDS = 20.0

MakeTeam = Callable[..., Team]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "student")
    return folder


@pytest.fixture
def make_team(tmp_path: Path, models: Path) -> MakeTeam:
    def make(url: str = "", grace: float = 600.0) -> Team:
        url = url or f"sqlite:///{tmp_path / 'unmask.db'}"
        settings = {"grace_seconds": grace}
        return Team(url, tmp_path, models, lease=LEASE_SECONDS, settings=settings)

    return make


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of an error that says when to try again."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert any(detail.Unpack(retry) for detail in status.details)
    return info.reason


async def watched(server: Server, growth_id: str) -> Any:
    """A stream that has told of some rollouts of a growth."""
    watch = server.stubs.growth.WatchGrowth(growth_pb2.WatchGrowthRequest(growth=growth_id))
    while not (await watch.read()).growth.rollouts_sampled:
        pass
    return watch


async def to_its_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def sampling(server: Server) -> Any:
    """A call that samples trajectories, with some of them stored already."""
    request = trajectory_pb2.SampleTrajectoriesRequest(
        policy="student", questions=["two"], count=MANY, seed=1
    )
    call = server.stubs.trajectory.SampleTrajectories(request)
    stored = trajectory_pb2.ListTrajectoriesRequest(question="two", page_size=1)
    while not (await server.stubs.trajectory.ListTrajectories(stored)).trajectories:
        pass
    assert not call.done()
    return call


def stored(database: Engine) -> int:
    with read(database) as connection:
        return connection.execute(select(func.count()).select_from(rollout)).scalar_one()


def assert_whole(team: Team, *, in_flight: int = 0) -> None:
    """Nothing acknowledged is lost, nothing counts twice, everything hangs together."""
    account = audit(team, allowed_lost=in_flight)
    assert account.violations == []
    database = open_database(team.url)
    assert fsck(database).clean
    database.dispose()


@pytest.mark.parametrize("by", ["another", "the restart"])
async def test_a_growth_goes_on_elsewhere_at_once(
    empty_url: str, make_team: MakeTeam, by: str
) -> None:
    team = make_team(empty_url)
    database = open_database(empty_url)
    async with team.running() as server:
        await team.fill(server)
        other = await team.start() if by == "another" else None
        growth_of = await team.grow(server, "handed over", BUDGET)
        watch = await watched(server, growth_of.id)
        server.terminate()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await to_its_end(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(caught.value) == "SERVER_STOPPING"
        # It does not wait for its grace: nothing runs any more.
        assert await server.ended() == 0
    other = other or await team.start()
    # A lease that is left to run out would take 13 seconds and more.
    async with asyncio.timeout(10):
        while True:
            with read(database) as connection:
                row = connection.execute(select(growth.c.owner, growth.c.attempt)).one()
            if row.owner and row.attempt == 2:
                break
            await asyncio.sleep(0.02)
    moved = await watched(other, growth_of.id)
    moved.cancel()
    request = growth_pb2.CancelGrowthRequest(growth=growth_of.id)
    left = (await other.stubs.growth.CancelGrowth(request)).growth
    assert 0 < left.rollouts_sampled == stored(database) < BUDGET
    await other.close()
    database.dispose()
    assert_whole(team)


async def test_running_calls_end_and_new_ones_are_refused(make_team: MakeTeam) -> None:
    team = make_team()
    async with team.running() as server:
        await team.fill(server)
        call = await sampling(server)
        server.terminate()
        answer = await collected(call)
        assert len(answer.trajectories) == answer.sampled == MANY
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stubs.cache.GetStatistics(cache_pb2.GetStatisticsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await server.ended() == 0
    assert_whole(team)


async def test_after_the_grace_a_call_is_told_and_what_it_sampled_is_kept(
    make_team: MakeTeam,
) -> None:
    team = make_team(grace=0.0)
    async with team.running() as server:
        await team.fill(server)
        call = await sampling(server)
        server.terminate()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collected(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(caught.value) == "SERVER_STOPPING"
        assert await server.ended() == 0
    assert_whole(team)
    async with team.running() as server:
        request = trajectory_pb2.SampleTrajectoriesRequest(
            policy="student", questions=["two"], count=MANY, seed=1
        )
        answer = await collected(server.stubs.trajectory.SampleTrajectories(request))
        assert len(answer.trajectories) == MANY
        assert 0 < answer.sampled < MANY


async def test_a_second_signal_ends_it_at_once_and_loses_nothing_acknowledged(
    make_team: MakeTeam,
) -> None:
    team = make_team()
    async with team.running() as server:
        await team.fill(server)
        await team.sample(server, question="one")
        growth_of = await team.grow(server, "cut off", BUDGET)
        watch = await watched(server, growth_of.id)
        call = await sampling(server)
        server.terminate()
        with pytest.raises(grpc.aio.AioRpcError):
            await to_its_end(watch)
        while server.is_alive:
            server.terminate()
            await asyncio.sleep(0.1)
        assert await server.ended() == HARD_STATUS
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collected(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # Of the growth and of the call: what was sampled and told to nobody.
    assert_whole(team, in_flight=4 * FLUSH_ROLLOUTS)


async def test_a_stop_that_fails_puts_the_rest_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("drained badly")

    put_away: list[str] = []
    close, close_check = App.close, StoreCheck.close

    async def closed(app: App) -> None:
        await close(app)
        put_away.append("app")

    def check_closed(check: StoreCheck) -> None:
        close_check(check)
        put_away.append("check")

    monkeypatch.setattr(CallGuard, "drain", fail)
    monkeypatch.setattr(App, "close", closed)
    monkeypatch.setattr(StoreCheck, "close", check_closed)
    with pytest.raises(RuntimeError, match="drained badly"):
        async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path):
            pass
    assert put_away == ["check", "app"]
    assert not (tmp_path / "socket").exists()
