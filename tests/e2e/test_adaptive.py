"""Growths that plan for themselves: over a real socket, on a real model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from unmask.v1 import diagnosis_pb2, growth_pb2
from unmask_server.growth.sampler import Sampler

from tests.e2e.conftest import World
from tests.e2e.test_main_job import at, grow, growth_of, prefix, sampled, statistics

TEACHERS = ["teacher", "self-answer"]
LOOSE = growth_pb2.Precision(half_width=0.35)


def adaptive(*targets: growth_pb2.GrowthTarget, **options: Any) -> growth_pb2.StartGrowthRequest:
    given: dict[str, Any] = {
        "allocation": growth_pb2.ALLOCATION_ADAPTIVE,
        "rollouts_per_node": 0,
        "budget": growth_pb2.Budget(rollouts=20_000),
        "teachers": TEACHERS,
        **options,
    }
    return growth_of(*targets, **given)


async def whole(world: World) -> growth_pb2.GrowthTarget:
    return growth_pb2.GrowthTarget(trajectory=(await sampled(world)).id)


async def test_a_growth_ends_when_it_is_precise_and_a_second_one_samples_nothing(
    world: World,
) -> None:
    target = await whole(world)
    first = await grow(world, adaptive(target, precision=LOOSE))
    assert 0 < first.rollouts_sampled < 20_000
    assert first.nodes_settled == first.nodes
    assert first.half_width <= 0.36
    second = await grow(world, adaptive(target, precision=LOOSE, request_id="again"))
    assert second.rollouts_sampled == 0
    assert second.rollouts_cached > 0
    request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
        trajectory=target.trajectory, teachers=TEACHERS
    )
    async for answer in world.stubs.diagnosis.StreamTrajectoryAlignments(request):
        for alignment in answer.alignments:
            if alignment.status != diagnosis_pb2.ALIGNMENT_STATUS_OK:
                continue
            width = alignment.cosine.high - alignment.cosine.low
            # Or |g| is certainly small: see Precision.flat_norm.
            assert width / 2 < 0.45 or alignment.ideal_norm_squared < 0.05**2


async def test_a_growth_says_what_the_next_halving_costs(world: World) -> None:
    growth = await grow(world, adaptive(await whole(world), precision=LOOSE))
    ahead = growth.next_halving
    assert 0 <= ahead.rollouts.low <= ahead.rollouts.median <= ahead.rollouts.high
    assert ahead.tokens.high >= ahead.rollouts.high


async def test_a_prediction_samples_nothing_and_knows_when_there_is_nothing_to_do(
    world: World,
) -> None:
    target = await whole(world)
    request = growth_pb2.PredictGrowthRequest(targets=[target], teachers=TEACHERS, precision=LOOSE)
    before = await statistics(world)
    first = await world.stubs.growth.PredictGrowth(request)
    assert (await statistics(world)).rollouts_sampled == before.rollouts_sampled
    assert 0 < first.forecast.rollouts.low <= first.forecast.rollouts.median
    # The trajectory itself was sampled, so a pace is known.
    assert first.forecast.seconds.median > 0
    assert first.nodes_settled < first.nodes
    await grow(world, adaptive(target, precision=LOOSE))
    done = await world.stubs.growth.PredictGrowth(request)
    assert done.nodes_settled == done.nodes
    assert done.forecast.rollouts.high == 0


async def test_a_goal_is_an_average_over_the_nodes(world: World) -> None:
    target = await whole(world)
    first = await grow(world, adaptive(target, rollouts_per_node=50))
    assert 0 < first.rollouts_sampled <= 50 * first.nodes
    second = await grow(world, adaptive(target, rollouts_per_node=50, request_id="again"))
    assert second.rollouts_sampled == 0


@pytest.mark.parametrize("budget", [{"rollouts": 300}, {"tokens": 700}])
async def test_a_budget_is_kept_with_plans_made_ahead(world: World, budget: dict[str, int]) -> None:
    precision = growth_pb2.Precision(half_width=0.02, flat_norm=0.0)
    request = adaptive(await whole(world), precision=precision, budget=growth_pb2.Budget(**budget))
    growth = await grow(world, request)
    if "rollouts" in budget:
        assert growth.rollouts_sampled == 300
    else:
        assert 600 <= growth.tokens_sampled <= 706


async def test_without_teachers_the_ideal_gradient_becomes_precise(world: World) -> None:
    growth = await grow(world, adaptive(await whole(world), teachers=[], precision=LOOSE))
    assert growth.nodes_settled == growth.nodes
    assert growth.half_width <= 0.36


@pytest.mark.parametrize(
    "statistic",
    [
        growth_pb2.STATISTIC_MEAN_COSINE,
        growth_pb2.STATISTIC_POOLED_COSINE,
        growth_pb2.STATISTIC_GAIN_PER_UNIT_STEP,
        growth_pb2.STATISTIC_RANKING,
    ],
)
async def test_a_statement_about_a_set_becomes_precise(
    world: World, statistic: growth_pb2.Statistic.ValueType
) -> None:
    precision = growth_pb2.Precision(statistic=statistic, half_width=0.5)
    targets = [growth_pb2.GrowthTarget(node=prefix(t)) for t in (2, 4, 5)]
    growth = await grow(world, adaptive(await whole(world), *targets, precision=precision))
    assert growth.nodes_settled == growth.nodes
    assert growth.rollouts_sampled > 0


async def test_a_question_as_a_whole_grows_beside_nodes(world: World) -> None:
    question = growth_pb2.GrowthTarget(
        question=growth_pb2.QuestionTarget(policy="student", question="two")
    )
    growth = await grow(world, adaptive(await whole(world), question, rollouts_per_node=40))
    assert growth.rollouts_sampled >= 40
    node = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(node=prefix(question="two"))
    )
    assert node.node.rollouts == 40


async def test_the_next_batch_is_there_before_the_last_one_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, was_late = 0, False
    second = asyncio.Event()
    plain = Sampler.sample

    async def held_back(self: Sampler, policy: Any, wanted: Sequence[Any]) -> AsyncIterator[Any]:
        """The first batch keeps its last quarter until the second one is asked for."""
        nonlocal batches, was_late
        batches += 1
        is_first = batches == 1
        if not is_first:
            second.set()
        given = 0
        async for item in plain(self, policy, wanted):
            if is_first and given >= len(wanted) * 3 // 4:
                try:
                    await asyncio.wait_for(second.wait(), 30.0)
                except TimeoutError:
                    was_late = True
            given += 1
            yield item

    target = await whole(world)
    monkeypatch.setattr(Sampler, "sample", held_back)
    precision = growth_pb2.Precision(half_width=0.05, flat_norm=0.0)
    budget = growth_pb2.Budget(rollouts=3000)
    growth = await grow(world, adaptive(target, precision=precision, budget=budget))
    assert batches > 1
    assert not was_late
    assert growth.rollouts_sampled == 3000


async def test_windows_share_a_generation_by_its_logarithm(world: World) -> None:
    trajectory = await sampled(world)
    request = growth_of(
        growth_pb2.GrowthTarget(trajectory=trajectory.id),
        allocation=growth_pb2.ALLOCATION_DEPTH_WINDOWS,
        teachers=TEACHERS,
        rollouts_per_node=60,
    )
    growth = await grow(world, request)
    windows = trajectory.length.bit_length()
    assert growth.rollouts_sampled <= 60 * windows + 21 * trajectory.length
    first = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(node=at(trajectory.id, 0), teachers=TEACHERS)
    )
    assert first.node.rollouts >= 40


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"precision": growth_pb2.Precision()}, "precision.half_width"),
        ({"precision": growth_pb2.Precision(half_width=float("nan"))}, "precision.half_width"),
        ({"precision": growth_pb2.Precision(half_width=0.1, flat_norm=2)}, "precision.flat_norm"),
        ({"precision": growth_pb2.Precision(half_width=0.1, confidence=1)}, "precision.confidence"),
        ({"precision": growth_pb2.Precision(half_width=0.1, statistic=99)}, "precision.statistic"),
        (
            {
                "precision": growth_pb2.Precision(half_width=0.1, statistic=5),
                "teachers": ["teacher"],
            },
            "teachers",
        ),
        (
            {"precision": LOOSE, "allocation": growth_pb2.ALLOCATION_EQUAL},
            "precision",
        ),
        (
            {
                "teachers": [],
                "algorithms": [diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_FORWARD_KL)],
            },
            "teachers",
        ),
    ],
)
async def test_bad_precisions_are_refused_by_field(
    world: World, options: dict[str, Any], field: str
) -> None:
    request = adaptive(growth_pb2.GrowthTarget(node=prefix()), **options)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stubs.growth.StartGrowth(request)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in refused.value.details()
