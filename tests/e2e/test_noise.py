"""A teacher that repeats itself badly: refused, or taken for what it is."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

from tests.collected import collected
from tests.e2e.conftest import World, serving
from tests.sglang.stand_in import StandIn
from tests.tiny import WORDS

NOISE = 0.3
PADDING = 3
"""Of the fixture's teacher."""


@pytest.fixture
async def noisy() -> AsyncIterator[StandIn]:
    async with StandIn(columns=len(WORDS) + PADDING).running() as server:
        server.warm_shift = NOISE
        yield server


def teacher(models: Path, server: StandIn, **fields: bool) -> catalog_pb2.RegisterTeacherRequest:
    """The fixture's teacher, served from now on."""
    return catalog_pb2.RegisterTeacherRequest(
        model=str(models / "teacher"),
        endpoints=[server.url],
        policies=["student"],
        **fields,
    )


async def test_a_noisy_teacher_is_refused_unless_it_is_welcome(
    world: World, models: Path, noisy: StandIn
) -> None:
    register = world.stubs.catalog.RegisterTeacher
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await register(teacher(models, noisy))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "0.3 nats" in (caught.value.details() or "")
    assert "allow_noisy" in (caught.value.details() or "")
    taken = await register(teacher(models, noisy, allow_noisy=True))
    assert taken.teacher.model.serving.noise == pytest.approx(NOISE, rel=1e-6)
    assert any("0.3 nats" in warning for warning in taken.warnings)


async def test_a_push_that_noise_could_be_is_no_signal(
    world: World, models: Path, noisy: StandIn
) -> None:
    """The same teacher with and without: only what its servers said at registration differs."""
    stubs = world.stubs
    sampled = await collected(
        stubs.trajectory.SampleTrajectories(
            trajectory_pb2.SampleTrajectoriesRequest(policy="student", questions=["one"], count=1)
        )
    )
    trajectory = sampled.trajectories[0].id
    started = await stubs.growth.StartGrowth(
        growth_pb2.StartGrowthRequest(
            request_id=uuid.uuid4().hex,
            targets=[growth_pb2.GrowthTarget(trajectory=trajectory)],
            rollouts_per_node=400,
            budget=growth_pb2.Budget(rollouts=4000),
        )
    )
    async for _ in stubs.growth.WatchGrowth(
        growth_pb2.WatchGrowthRequest(growth=started.growth.id)
    ):
        pass
    noisy.warm_shift = 10.0
    await stubs.catalog.RegisterTeacher(teacher(models, noisy, allow_noisy=True))

    async def ask() -> diagnosis_pb2.Alignment:
        node = diagnosis_pb2.TrajectoryPosition(trajectory=trajectory, position=0)
        answer = await stubs.diagnosis.GetAlignment(
            diagnosis_pb2.GetAlignmentRequest(
                node=diagnosis_pb2.NodeRef(trajectory=node),
                teachers=["teacher"],
                options=diagnosis_pb2.NodeOptions(
                    freshness=diagnosis_pb2.FRESHNESS_LATEST, min_coverage=0.5
                ),
            )
        )
        return answer.alignments[0]

    found = await ask()
    assert found.status == diagnosis_pb2.ALIGNMENT_STATUS_NO_SIGNAL
    noisy.warm_shift = 0.0
    await stubs.catalog.RegisterTeacher(teacher(models, noisy))
    async with serving(
        world.settings.database, Path(world.address.removeprefix("unix:")).parent / "again"
    ) as again:
        stubs = again.stubs
        quiet = await ask()
    assert quiet.status != diagnosis_pb2.ALIGNMENT_STATUS_NO_SIGNAL
    assert quiet.descent_norm_squared == pytest.approx(found.descent_norm_squared)
