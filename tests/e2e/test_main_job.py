"""The main job, over a real socket, on a real model and a real database."""

from __future__ import annotations

import math
from pathlib import Path

import grpc
import numpy as np
import pytest
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.diagnosis import Algorithm, Loss, descent
from unmask_server.nodes.evidence import NEGLIGIBLE

from tests.collected import collected
from tests.e2e.conftest import MAX_NEW_TOKENS, World, fill, serving
from tests.stores import new_database


def sampling_of(world: World, **options: object) -> trajectory_pb2.SampleTrajectoriesRequest:
    return trajectory_pb2.SampleTrajectoriesRequest(
        **{"policy": "student", "questions": ["one"], "count": 2, "seed": 7, **options}
    )


def at(trajectory: str, position: int) -> diagnosis_pb2.NodeRef:
    return diagnosis_pb2.NodeRef(
        trajectory=diagnosis_pb2.TrajectoryPosition(trajectory=trajectory, position=position)
    )


def prefix(
    *tokens: int, question: str = "one", observed: int | None = None
) -> diagnosis_pb2.NodeRef:
    return diagnosis_pb2.NodeRef(
        prefix=diagnosis_pb2.PrefixNode(
            policy="student",
            question=question,
            tokens=trajectory_pb2.TokenIds(ids=tokens),
            observed_token=observed,
        )
    )


async def grow(world: World, request: growth_pb2.StartGrowthRequest) -> growth_pb2.Growth:
    started = await world.stubs.growth.StartGrowth(request)
    last = started.growth
    watch = growth_pb2.WatchGrowthRequest(growth=started.growth.id)
    async for progress in world.stubs.growth.WatchGrowth(watch):
        last = progress.growth
    assert last.state == growth_pb2.GROWTH_STATE_SUCCEEDED, last.error
    return last


def growth_of(
    *targets: growth_pb2.GrowthTarget, request_id: str = "g", **options: object
) -> growth_pb2.StartGrowthRequest:
    return growth_pb2.StartGrowthRequest(
        **{
            "request_id": request_id,
            "targets": targets,
            "budget": growth_pb2.Budget(rollouts=5000),
            "rollouts_per_node": 64,
            "allocation": growth_pb2.ALLOCATION_POLICY,
            **options,
        }
    )


async def statistics(world: World) -> cache_pb2.GetStatisticsResponse:
    return await world.stubs.cache.GetStatistics(cache_pb2.GetStatisticsRequest())


async def sampled(world: World) -> trajectory_pb2.Trajectory:
    response = await collected(world.stubs.trajectory.SampleTrajectories(sampling_of(world)))
    return max(response.trajectories, key=lambda t: t.length)


async def test_trajectories_of_a_seed_are_sampled_once(world: World) -> None:
    first = await collected(world.stubs.trajectory.SampleTrajectories(sampling_of(world)))
    assert first.sampled == 2
    again = await collected(world.stubs.trajectory.SampleTrajectories(sampling_of(world, count=3)))
    assert again.sampled == 1
    assert list(again.trajectories[:2]) == list(first.trajectories)
    for trajectory in first.trajectories:
        assert 1 <= trajectory.length <= MAX_NEW_TOKENS
        assert trajectory.length == len(trajectory.tokens)
        text = "".join(token.text for token in trajectory.tokens)
        assert text.startswith(trajectory.text)
        stopped = trajectory.finish_reason == trajectory_pb2.FINISH_REASON_STOP
        assert stopped == (trajectory.tokens[-1].id == 0)


async def test_a_second_growth_finds_what_the_first_one_sampled(world: World) -> None:
    trajectory = await sampled(world)
    target = growth_pb2.GrowthTarget(trajectory=trajectory.id)
    first = await grow(world, growth_of(target))
    assert first.rollouts_sampled > 0
    assert first.nodes == trajectory.length
    before = await statistics(world)
    second = await grow(world, growth_of(target, request_id="another"))
    assert second.rollouts_sampled == 0
    assert second.rollouts_cached == 64 * (second.nodes - second.nodes_flat)
    assert (await statistics(world)).rollouts_sampled == before.rollouts_sampled


async def test_every_node_of_a_grown_trajectory_rests_on_what_was_asked_for(world: World) -> None:
    trajectory = await sampled(world)
    await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id)))
    request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
        trajectory=trajectory.id, teachers=["teacher", "self-answer"]
    )
    ids = []
    for name in world.teachers:
        wanted = catalog_pb2.GetTeacherRequest(teacher=name)
        ids.append((await world.stubs.catalog.GetTeacher(wanted)).teacher.id)
    positions = []
    async for answer in world.stubs.diagnosis.StreamTrajectoryAlignments(request):
        positions.append(answer.node.position)
        assert answer.node.rollouts >= 64
        assert answer.node.observed.id == trajectory.tokens[answer.node.position].id
        assert [a.teacher_id for a in answer.alignments] == ids
        alone = await world.stubs.diagnosis.GetAlignment(
            diagnosis_pb2.GetAlignmentRequest(
                node=at(trajectory.id, answer.node.position), teachers=["teacher", "self-answer"]
            )
        )
        assert alone.node == answer.node
        assert list(alone.alignments) == list(answer.alignments)
    assert positions == list(range(trajectory.length))


async def test_the_same_request_gives_the_same_bytes(world: World) -> None:
    await grow(world, growth_of(growth_pb2.GrowthTarget(node=prefix())))
    request = diagnosis_pb2.GetAlignmentRequest(node=prefix(), teachers=["teacher"])
    latest = diagnosis_pb2.GetAlignmentRequest()
    latest.CopyFrom(request)
    latest.options.freshness = diagnosis_pb2.FRESHNESS_LATEST
    answers = [
        (await world.stubs.diagnosis.GetAlignment(r)).SerializeToString(deterministic=True)
        for r in (request, request, latest)
    ]
    assert len(set(answers)) == 1


async def test_a_restarted_server_answers_the_same_and_samples_nothing(
    tmp_path: Path, models: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    request = diagnosis_pb2.GetAlignmentRequest(node=prefix(), teachers=["teacher"])
    growth = growth_of(growth_pb2.GrowthTarget(node=prefix()))
    async with serving(url, tmp_path / "a") as world:
        await fill(world, models)
        await grow(world, growth)
        first = await world.stubs.diagnosis.GetAlignment(request)
    async with serving(url, tmp_path / "b") as world:
        assert await world.stubs.diagnosis.GetAlignment(request) == first
        again = await grow(world, growth)
        assert again.rollouts_sampled == 64
        made = await statistics(world)
        assert (made.rollouts_sampled, made.distributions_scored) == (0, 0)


async def test_a_new_verifier_regrades_and_samples_nothing(world: World) -> None:
    await grow(world, growth_of(growth_pb2.GrowthTarget(node=prefix())))
    before = await statistics(world)
    kind = catalog_pb2.VERIFIER_KIND_REGEX
    await world.stubs.catalog.RegisterVerifier(
        catalog_pb2.RegisterVerifierRequest(
            name="says-3", kind=kind, options={"pattern": "3", "truncated": "grade"}
        )
    )
    node = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(
            node=prefix(), options=diagnosis_pb2.NodeOptions(verifier="says-3")
        )
    )
    assert node.node.rollouts == 64
    plain = await world.stubs.diagnosis.GetNode(diagnosis_pb2.GetNodeRequest(node=prefix()))
    assert sum(c.reward_sum for c in node.candidates) > sum(c.reward_sum for c in plain.candidates)
    assert (await statistics(world)).rollouts_sampled == before.rollouts_sampled
    regraded = await world.stubs.cache.RegradeRollouts(
        cache_pb2.RegradeRolloutsRequest(policy="student", question="one", verifier="says-3")
    )
    assert regraded.graded == 0


async def test_served_numbers_are_the_dense_formula(world: World) -> None:
    """With a vocabulary this small all tokens are candidates but those that nobody would take."""
    import torch
    from transformers import AutoModelForCausalLM

    await grow(world, growth_of(growth_pb2.GrowthTarget(node=prefix(4)), rollouts_per_node=256))
    response = await world.stubs.diagnosis.GetNode(diagnosis_pb2.GetNodeRequest(node=prefix(4)))
    catalog = world.stubs.catalog
    prompt = await catalog.PreviewPrompt(
        catalog_pb2.PreviewPromptRequest(policy="student", question="one")
    )
    policy = (await catalog.GetPolicy(catalog_pb2.GetPolicyRequest(policy="student"))).policy
    teacher = (await catalog.GetTeacher(catalog_pb2.GetTeacherRequest(teacher="teacher"))).teacher
    dense = {}
    for name, source in (("p", policy.model.source), ("t", teacher.model.source)):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        logits = model(torch.tensor([[*prompt.policy.tokens, 4]])).logits[0, -1]
        # The teacher's padding columns are cut off before the softmax.
        dense[name] = torch.softmax(logits[: policy.model.vocab_size].double(), -1).detach().numpy()
    served = np.zeros(policy.model.vocab_size)
    for candidate in response.candidates:
        served[candidate.token.id] = candidate.probability
    left_out = served == 0.0
    assert dense["p"][left_out].max(initial=0.0) < NEGLIGIBLE
    assert response.tail.probability == pytest.approx(dense["p"][left_out].sum(), abs=1e-6)
    np.testing.assert_allclose(served[~left_out], dense["p"][~left_out], atol=1e-6)
    answer = await world.stubs.diagnosis.GetAlignment(
        diagnosis_pb2.GetAlignmentRequest(
            node=prefix(4),
            teachers=["teacher"],
            algorithms=[
                diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL),
                diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_FORWARD_KL),
            ],
        )
    )
    for alignment, loss in zip(answer.alignments, (Loss.REVERSE_KL, Loss.FORWARD_KL), strict=True):
        d = descent(Algorithm(loss), dense["p"], dense["t"])
        assert alignment.descent_norm_squared == pytest.approx(float(d @ d), rel=1e-4)
    kl = float(np.sum(dense["p"] * np.log(dense["p"] / dense["t"])))
    assert answer.alignments[0].divergence == pytest.approx(kl, rel=1e-4)


async def test_estimates_approach_the_exact_chances(world: World) -> None:
    """One token before the limit everything can be enumerated."""
    tokens = (4, 5, 6, 7, 8)
    assert len(tokens) == MAX_NEW_TOKENS - 1
    target = growth_pb2.GrowthTarget(node=prefix(*tokens))
    await grow(world, growth_of(target, allocation=growth_pb2.ALLOCATION_EQUAL))
    response = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(node=prefix(*tokens))
    )
    seen = [c for c in response.candidates if c.rollouts]
    assert seen
    for candidate in seen:
        # An end token or a truncation: known after one rollout, and never paid for again.
        assert candidate.exact
        assert candidate.rollouts == 1
        assert candidate.success.low == candidate.success.high


async def test_equal_allocation_forces_every_candidate_alike(world: World) -> None:
    request = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        allocation=growth_pb2.ALLOCATION_EQUAL,
        rollouts_per_node=60,
        options=diagnosis_pb2.NodeOptions(top_k=3),
    )
    await grow(world, request)
    response = await world.stubs.diagnosis.GetNode(diagnosis_pb2.GetNodeRequest(node=prefix()))
    counts = {c.token.id: c.rollouts for c in response.candidates if c.rollouts}
    assert len(counts) == 3
    assert all(n == 20 or token == 0 for token, n in counts.items())


async def test_a_budget_is_spent_and_not_exceeded(world: World) -> None:
    target = growth_pb2.GrowthTarget(node=prefix())
    for number, rollouts in enumerate((10, 25)):
        request = growth_of(
            target,
            request_id=f"g{number}",
            rollouts_per_node=0,
            budget=growth_pb2.Budget(rollouts=rollouts),
        )
        assert (await grow(world, request)).rollouts_sampled == rollouts
    assert (await statistics(world)).rollouts == 35
    tokens = await grow(
        world,
        growth_of(target, request_id="t", rollouts_per_node=0, budget=growth_pb2.Budget(tokens=40)),
    )
    assert 40 <= tokens.tokens_sampled < 40 + 16 * MAX_NEW_TOKENS


async def test_a_retried_request_id_spends_nothing_and_another_request_may_not_have_it(
    world: World,
) -> None:
    request = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=10),
    )
    first = await grow(world, request)
    again = await grow(world, request)
    assert again == first
    assert (await statistics(world)).rollouts == 10
    request.budget.rollouts = 11
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stubs.growth.StartGrowth(request)
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS


async def test_a_question_grows_by_free_rollouts_from_its_beginning(world: World) -> None:
    target = growth_pb2.GrowthTarget(
        question=growth_pb2.QuestionTarget(policy="student", question="two")
    )
    await grow(world, growth_of(target, allocation=growth_pb2.ALLOCATION_EQUAL))
    response = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(node=prefix(question="two"))
    )
    assert response.node.rollouts == 64
    assert len([c for c in response.candidates if c.rollouts]) > 3


async def test_cancelling_keeps_what_was_sampled(world: World) -> None:
    request = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=1_000_000),
    )
    started = await world.stubs.growth.StartGrowth(request)
    watch = world.stubs.growth.WatchGrowth(growth_pb2.WatchGrowthRequest(growth=started.growth.id))
    async for progress in watch:
        if progress.growth.rollouts_sampled:
            break
    watch.cancel()
    cancelled = await world.stubs.growth.CancelGrowth(
        growth_pb2.CancelGrowthRequest(growth=started.growth.id)
    )
    assert cancelled.growth.state == growth_pb2.GROWTH_STATE_CANCELLED
    assert cancelled.growth.rollouts_sampled > 0
    assert (await statistics(world)).rollouts >= cancelled.growth.rollouts_sampled
    listed = await world.stubs.growth.ListGrowths(growth_pb2.ListGrowthsRequest())
    assert [g.id for g in listed.growths] == [started.growth.id]


async def test_a_trajectory_brought_along_is_diagnosed_but_is_no_rollout(world: World) -> None:
    response = await world.stubs.trajectory.SubmitTrajectory(
        trajectory_pb2.SubmitTrajectoryRequest(policy="student", question="one", text="so 1 #### 3")
    )
    trajectory = response.trajectory
    assert trajectory.reward == 1.0
    assert trajectory.text == "so 1 #### 3"
    assert (await statistics(world)).rollouts == 0
    node = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(node=at(trajectory.id, 3))
    )
    assert node.node.observed.text == "3"
    by_tokens = await world.stubs.trajectory.SubmitTrajectory(
        trajectory_pb2.SubmitTrajectoryRequest(
            policy="student",
            question="one",
            tokens=trajectory_pb2.TokenIds(ids=[t.id for t in trajectory.tokens]),
        )
    )
    assert by_tokens.trajectory.id == trajectory.id


async def test_a_trajectory_does_not_vouch_for_itself(world: World) -> None:
    """Its own outcome is no evidence at its own nodes: it may have been chosen by it."""
    trajectory = await sampled(world)
    named = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(node=at(trajectory.id, 0))
    )
    by_prefix = await world.stubs.diagnosis.GetNode(diagnosis_pb2.GetNodeRequest(node=prefix()))
    assert by_prefix.node.rollouts == 2
    assert named.node.rollouts == 1


async def test_the_ideal_gradient_sums_to_zero_and_keeps_its_bound(world: World) -> None:
    await grow(world, growth_of(growth_pb2.GrowthTarget(node=prefix())))
    response = await world.stubs.diagnosis.GetIdealGradient(
        diagnosis_pb2.GetIdealGradientRequest(node=prefix())
    )
    assert response.norm.high <= response.norm_bound
    assert len(response.components) == response.node.candidates
    for component in response.components:
        value = component.value
        assert value.low <= value.median <= value.high


async def test_algorithms_without_a_teacher_come_last(world: World) -> None:
    trajectory = await sampled(world)
    await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id)))
    algorithms = [
        diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_DR_GRPO),
        diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_JSD, beta=0.3),
        diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_GRPO, form=diagnosis_pb2.FORM_SAMPLED),
    ]
    response = await world.stubs.diagnosis.GetAlignment(
        diagnosis_pb2.GetAlignmentRequest(
            node=at(trajectory.id, 0), teachers=["teacher"], algorithms=algorithms
        )
    )
    losses = [a.algorithm.loss for a in response.alignments]
    assert losses == [
        diagnosis_pb2.LOSS_JSD,
        diagnosis_pb2.LOSS_DR_GRPO,
        diagnosis_pb2.LOSS_GRPO,
    ]
    ideal = response.alignments[1]
    if ideal.HasField("cosine"):
        assert ideal.cosine.low == pytest.approx(1.0)


async def two_questions_grown(world: World) -> list[trajectory_pb2.Trajectory]:
    response = await collected(
        world.stubs.trajectory.SampleTrajectories(sampling_of(world, questions=["one", "two"]))
    )
    targets = [growth_pb2.GrowthTarget(trajectory=t.id) for t in response.trajectories]
    await grow(world, growth_of(*targets))
    return list(response.trajectories)


async def test_summaries_count_every_node(world: World) -> None:
    trajectories = await two_questions_grown(world)
    summary = await world.stubs.diagnosis.SummarizeAlignments(
        diagnosis_pb2.SummarizeAlignmentsRequest(
            trajectories=[t.id for t in trajectories],
            teachers=["teacher", "self-answer"],
        )
    )
    nodes = sum(t.length for t in trajectories)
    assert len(summary.summaries) == 2
    for row in summary.summaries:
        assert row.nodes == nodes
        assert row.scored + row.flat + row.no_signal + row.unbounded + row.no_data == nodes
        assert math.isfinite(row.gain_per_unit_step.median)
        assert len(row.effective_support_quartiles) == 3


async def test_teachers_are_compared_and_what_would_be_kept_is_said(world: World) -> None:
    trajectories = await two_questions_grown(world)
    request = diagnosis_pb2.SummarizeAlignmentsRequest(
        trajectories=[t.id for t in trajectories],
        teachers=["teacher", "self-answer"],
        algorithms=[
            diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL),
            diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_DR_GRPO),
            diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_FORWARD_KL),
        ],
    )
    answer = await world.stubs.diagnosis.SummarizeAlignments(request)
    again = await world.stubs.diagnosis.SummarizeAlignments(request)
    assert answer.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )
    rows = {(row.teacher_id, row.algorithm.loss): row for row in answer.summaries}
    assert len(rows) == 5
    ids = list(dict.fromkeys(row.teacher_id for row in answer.summaries if row.teacher_id))
    compared = [(c.teacher_id, c.other_teacher_id, c.algorithm.loss) for c in answer.comparisons]
    assert compared == [
        (*ids, diagnosis_pb2.LOSS_REVERSE_KL),
        (*ids, diagnosis_pb2.LOSS_FORWARD_KL),
    ]
    for pair in answer.comparisons:
        one, other = (rows[teacher, pair.algorithm.loss] for teacher in ids)
        assert one.probability_best == pytest.approx(pair.probability_better)
        assert one.probability_best + other.probability_best == pytest.approx(1)
        for name in ("gain_per_unit_step", "mean_advantage"):
            difference = getattr(pair, name)
            assert difference.low <= difference.median <= difference.high
            medians = getattr(one, name).median - getattr(other, name).median
            assert difference.low <= medians <= difference.high
    # Nobody competes with the group's own rewards.
    alone = rows["", diagnosis_pb2.LOSS_DR_GRPO]
    assert not alone.HasField("probability_best")
    for row in rows.values():
        assert row.HasField("kept") == (row.scored > 0)
        assert 0 <= row.kept.share <= 1
        assert row.kept.HasField("mean_cosine") == (row.kept.share > 0)
        assert row.kept.HasField("gain_per_unit_step") == (row.kept.share > 0)
    assert any(row.HasField("kept") for row in rows.values())


async def test_the_best_teacher_of_a_node_is_told_with_its_probability(world: World) -> None:
    trajectories = await two_questions_grown(world)
    loss = diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL)
    scored = 0
    for trajectory in trajectories:
        for teachers in (["teacher", "self-answer"], ["teacher"]):
            request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
                trajectory=trajectory.id, teachers=teachers, algorithms=[loss]
            )
            async for answer in world.stubs.diagnosis.StreamTrajectoryAlignments(request):
                told = [a.probability_best for a in answer.alignments if a.HasField("cosine")]
                for alignment in answer.alignments:
                    assert alignment.HasField("probability_best") == alignment.HasField("cosine")
                # One that has no rival is the best for sure.
                assert not told or sum(told) == pytest.approx(1)
                scored += len(told) == 2
    assert scored


@pytest.mark.parametrize("store", ["postgresql"])
async def test_the_same_on_postgresql(
    store: str, tmp_path: Path, models: Path, postgresql_url: str
) -> None:
    async with serving(new_database(postgresql_url), tmp_path) as world:
        await fill(world, models)
        trajectory = await sampled(world)
        first = await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id)))
        second = await grow(
            world, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id), request_id="b")
        )
        assert first.rollouts_sampled > 0
        assert second.rollouts_sampled == 0
