"""Servers that are told to stop: what runs comes to its end, what is left goes on elsewhere."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import func, select
from unmask.v1 import cache_pb2, growth_pb2, trajectory_pb2
from unmask_server.database.connect import open_database, read
from unmask_server.database.schema import growth, rollout
from unmask_server.serve import HARD_STATUS
from unmask_server.tree import fsck

from tests.e2e.conftest import Stubs, World, fill
from tests.e2e.processes import server_process
from tests.e2e.test_main_job import growth_of, prefix

BUDGET = 30_000
MANY = 3_000
LEASE = ("--lease-seconds", "20")
PATIENT = (*LEASE, "--grace-seconds", "600", "--threads", "1")
IMPATIENT = (*LEASE, "--grace-seconds", "0", "--threads", "1")

Start = Callable[..., Awaitable[tuple[Stubs, subprocess.Popen[bytes]]]]


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit status."""
    return await asyncio.to_thread(process.wait, 100)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of an error that says when to try again."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert any(detail.Unpack(retry) for detail in status.details)
    return info.reason


async def begun(stubs: Stubs, request: growth_pb2.StartGrowthRequest) -> tuple[str, Any]:
    """Start a growth; return its id and a stream that has told of some rollouts."""
    started = await stubs.growth.StartGrowth(request)
    watch = stubs.growth.WatchGrowth(growth_pb2.WatchGrowthRequest(growth=started.growth.id))
    while not (await watch.read()).growth.rollouts_sampled:
        pass
    return started.growth.id, watch


async def to_its_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


def big(**options: Any) -> growth_pb2.StartGrowthRequest:
    return growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=BUDGET),
        allocation=growth_pb2.ALLOCATION_POLICY,
        **options,
    )


@pytest.mark.parametrize("by", ["another", "the restart"])
async def test_a_growth_is_handed_over(
    empty_url: str, tmp_path: Path, models: Path, by: str
) -> None:
    database = open_database(empty_url)
    flags = PATIENT
    async with server_process(empty_url, tmp_path / "a", flags=flags) as (stubs, process):
        await fill(World(stubs, "", None, None), models)  # type: ignore[arg-type]
        growth_id, watch = await begun(stubs, big())
        if by == "another":
            async with server_process(empty_url, tmp_path / "b", flags=flags) as (other, _):
                await stopped(process, watch, database)
                await finished(other, growth_id, database)
        else:
            await stopped(process, watch, database)
            async with server_process(empty_url, tmp_path / "a", flags=flags) as (again, _):
                await finished(again, growth_id, database)
    database.dispose()


async def stopped(process: subprocess.Popen[bytes], watch: Any, database: Any) -> None:
    process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_its_end(watch)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "SERVER_STOPPING"
    # It does not wait for its grace: nothing runs any more.
    assert await ended(process) == 0
    with read(database) as connection:
        kept = select(func.count()).select_from(rollout).scalar_subquery()
        stored, charged = connection.execute(select(kept, growth.c.rollouts_sampled)).one()
        assert 0 < stored == charged < BUDGET


async def finished(stubs: Stubs, growth_id: str, database: Any) -> None:
    """It goes on at once, where a lease that is left to run out would take 13 seconds and more."""
    async with asyncio.timeout(10):
        while True:
            with read(database) as connection:
                row = connection.execute(select(growth.c.owner, growth.c.attempt)).one()
            if row.owner and row.attempt == 2:
                break
            await asyncio.sleep(0.05)
    await stubs.growth.CancelGrowth(growth_pb2.CancelGrowthRequest(growth=growth_id))
    with read(database) as connection:
        kept = select(func.count()).select_from(rollout).scalar_subquery()
        stored, charged = connection.execute(select(kept, growth.c.rollouts_sampled)).one()
        assert stored == charged
    assert fsck(database).clean


async def sampling(stubs: Stubs) -> Any:
    """A call that samples trajectories, with some of them stored already."""
    request = trajectory_pb2.SampleTrajectoriesRequest(
        policy="student", questions=["one"], count=MANY, seed=1
    )
    call = stubs.trajectory.SampleTrajectories(request)
    while True:
        found = await stubs.cache.GetStatistics(cache_pb2.GetStatisticsRequest())
        if found.rollouts:
            break
    assert not call.done()
    return call


async def test_running_calls_end_and_new_ones_are_refused(tmp_path: Path, models: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with server_process(url, tmp_path / "a", flags=PATIENT) as (stubs, process):
        await fill(World(stubs, "", None, None), models)  # type: ignore[arg-type]
        call = await sampling(stubs)
        process.send_signal(signal.SIGTERM)
        answer = await call
        assert len(answer.trajectories) == MANY
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.cache.GetStatistics(cache_pb2.GetStatisticsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await ended(process) == 0
    assert_clean(url, at_least=MANY)


async def test_after_the_grace_a_call_is_told_and_what_it_sampled_is_kept(
    tmp_path: Path, models: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with server_process(url, tmp_path / "a", flags=IMPATIENT) as (stubs, process):
        await fill(World(stubs, "", None, None), models)  # type: ignore[arg-type]
        call = await sampling(stubs)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(caught.value) == "SERVER_STOPPING"
        assert await ended(process) == 0
    assert_clean(url, at_least=1)


async def test_a_second_signal_ends_it_at_once_and_loses_nothing_acknowledged(
    tmp_path: Path, models: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with server_process(url, tmp_path / "a", flags=PATIENT) as (stubs, process):
        await fill(World(stubs, "", None, None), models)  # type: ignore[arg-type]
        _, watch = await begun(stubs, big())
        call = await sampling(stubs)
        found = await stubs.cache.GetStatistics(cache_pb2.GetStatisticsRequest())
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await to_its_end(watch)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == HARD_STATUS
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert_clean(url, at_least=found.rollouts)


def assert_clean(url: str, *, at_least: int) -> None:
    database = open_database(url)
    with read(database) as connection:
        stored = connection.execute(select(func.count()).select_from(rollout)).scalar_one()
    assert stored >= at_least
    assert fsck(database).clean
    database.dispose()
