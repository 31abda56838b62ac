"""Checking and pruning under a live server, over a socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from typer.testing import CliRunner
from unmask.v1 import diagnosis_pb2, growth_pb2
from unmask_server.cli import app
from unmask_server.database.connect import open_database
from unmask_server.tree import fsck

from tests.collected import collected
from tests.e2e.conftest import World, fill, serving
from tests.e2e.test_main_job import grow, growth_of, prefix, sampling_of
from tests.stores import new_database


async def answers(world: World, trajectory: str) -> list[bytes]:
    request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
        trajectory=trajectory,
        teachers=world.teachers,
        algorithms=[diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL)],
    )
    stream = world.stubs.diagnosis.StreamTrajectoryAlignments(request)
    return [answer.SerializeToString(deterministic=True) async for answer in stream]


async def test_answers_about_what_is_kept_stay_the_same_bytes(world: World, tmp_path: Path) -> None:
    ids = {}
    for question in world.questions:
        made = await collected(
            world.stubs.trajectory.SampleTrajectories(sampling_of(world, questions=[question]))
        )
        ids[question] = made.trajectories[0].id
        target = growth_pb2.GrowthTarget(trajectory=ids[question])
        await grow(world, growth_of(target, request_id=question, rollouts_per_node=16))
    kept = await answers(world, ids["one"])
    assert kept
    url = world.settings.database
    command = ["prune", "--database", url, "--question", "two"]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 0, done.output
    done = await asyncio.to_thread(CliRunner().invoke, app, ["vacuum", "--database", url])
    assert done.exit_code == 0, done.output
    assert await answers(world, ids["one"]) == kept
    # Another server has no answers in memory.
    async with serving(url, tmp_path / "other") as other:
        assert await answers(other, ids["one"]) == kept
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answers(world, ids["two"])
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    node = diagnosis_pb2.GetNodeRequest(
        node=prefix(question="two"),
        options=diagnosis_pb2.NodeOptions(freshness=diagnosis_pb2.FRESHNESS_LATEST),
    )
    assert (await world.stubs.diagnosis.GetNode(node)).node.rollouts == 0
    # The server that was running goes on with the tree that was emptied.
    target = growth_pb2.GrowthTarget(node=prefix(question="two"))
    await grow(world, growth_of(target, request_id="again"))
    assert (await world.stubs.diagnosis.GetNode(node)).node.rollouts > 0
    database = open_database(url)
    report = fsck(database)
    assert report.clean, report.findings
    database.dispose()


async def test_a_client_that_has_had_its_share_is_told_when_it_is_free_again(
    tmp_path: Path, models: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path, quota_rollouts=100) as world:
        await fill(world, models)
        target = growth_pb2.GrowthTarget(node=prefix())
        budget = growth_pb2.Budget(rollouts=60)
        asked = growth_of(target, rollouts_per_node=0, budget=budget)
        await grow(world, asked)
        asked.request_id = "more"
        with pytest.raises(grpc.aio.AioRpcError) as full:
            await world.stubs.growth.StartGrowth(asked)
        assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(full.value)
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert 0 < retry.retry_delay.seconds <= 86_400
        mine = (("unmask-client", "another"),)
        await world.stubs.growth.StartGrowth(asked, metadata=mine)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_a_store_is_clean_while_it_grows(
    tmp_path: Path, models: Path, store: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    if store == "postgresql":
        url = new_database(request.getfixturevalue("postgresql_url"))
    async with serving(url, tmp_path) as world:
        await fill(world, models)
        budget = growth_pb2.Budget(rollouts=1500)
        target = growth_pb2.GrowthTarget(node=prefix())
        asked = growth_of(target, rollouts_per_node=0, budget=budget)
        growing = asyncio.create_task(grow(world, asked))
        database = open_database(url)
        seen = set()
        while not growing.done():
            report = await asyncio.to_thread(fsck, database, True)
            assert report.clean, report.findings
            assert report.repaired == 0
            seen.add(report.checked["rollout"])
        assert (await growing).rollouts_sampled == 1500
        assert fsck(database).checked["rollout"] == 1500
        database.dispose()
