"""Caches that are exported, imported and merged, over sockets and on both stores."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from sqlalchemy import select
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, sharing_pb2, trajectory_pb2
from unmask_server.database import schema
from unmask_server.database.connect import query
from unmask_server.tree import check_tree

from tests.collected import collected
from tests.e2e.conftest import World, fill, serving
from tests.e2e.test_bad_input import INVALID, PRECONDITION, refused
from tests.e2e.test_main_job import at, grow, growth_of, prefix, sampled, sampling_of, statistics
from tests.e2e.test_stored_teachers import VOCAB, put, said, stored
from tests.stores import STORES, new_database

ROLLOUTS = sharing_pb2.EXPORT_KIND_ROLLOUTS
ESTIMATES = sharing_pb2.EXPORT_KIND_ESTIMATES

Parts = list[sharing_pb2.ExportCacheResponse]


@pytest.fixture(params=STORES)
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of another empty database, on each store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/other.db"
    return new_database(request.getfixturevalue("postgresql_url"))


async def exported(world: World, **wanted: object) -> Parts:
    request = sharing_pb2.ExportCacheRequest(**wanted)
    return [part async for part in world.stubs.cache.ExportCache(request)]


async def imported(world: World, parts: Parts) -> sharing_pb2.ImportCacheResponse:
    """Import all parts; returns the sums of what was counted."""
    total = sharing_pb2.ImportCacheResponse()
    for part in parts:
        if part.records.ByteSize():
            request = sharing_pb2.ImportCacheRequest(records=part.records)
            done = await world.stubs.cache.ImportCache(request)
            for field, value in done.ListFields():
                if field.name == "warnings":
                    total.warnings.extend(value)
                else:
                    setattr(total, field.name, getattr(total, field.name) + value)
    return total


def rollouts_of(parts: Parts) -> dict[str, sharing_pb2.SharedRollout]:
    return {one.id: one for part in parts for one in part.records.rollouts}


def assert_sound(world: World) -> None:
    """Every tree of the world holds what it promises."""
    database = world.app.database
    for tree_id in query(database, lambda c: list(c.scalars(select(schema.tree.c.id)))):
        assert check_tree(database, tree_id) == []


@asynccontextmanager
async def empty(url: str, folder: Path, **options: object) -> AsyncIterator[World]:
    async with serving(url, folder, **options) as world:
        yield world


async def grown(world: World, request_id: str = "g", seed: int = 7) -> str:
    """A trajectory with rollouts all along it, and a node of its own with more."""
    request = sampling_of(world, seed=seed)
    trajectories = (
        await collected(world.stubs.trajectory.SampleTrajectories(request))
    ).trajectories
    trajectory = max(trajectories, key=lambda t: t.length)
    target = growth_pb2.GrowthTarget(trajectory=trajectory.id)
    root = growth_pb2.GrowthTarget(node=prefix(question="two"))
    await grow(world, growth_of(target, root, request_id=request_id, rollouts_per_node=24))
    return trajectory.id


async def answers(world: World, trajectory: str, teachers: Sequence[str]) -> list[object]:
    """What is answered at the trajectory's nodes and at a root, but for the version."""
    found: list[object] = []
    for node in [prefix(), prefix(question="two")]:
        found.append(await world.stubs.diagnosis.GetNode(diagnosis_pb2.GetNodeRequest(node=node)))
    stream = world.stubs.diagnosis.StreamTrajectoryAlignments(
        diagnosis_pb2.StreamTrajectoryAlignmentsRequest(trajectory=trajectory, teachers=teachers)
    )
    found += [answer async for answer in stream]
    for answer in found:
        answer.node.ClearField("tree_version")  # type: ignore[attr-defined]
    return found


async def counts(world: World) -> dict[str, tuple[int, ...]]:
    """By node: its candidates' rollouts and rewards."""
    found = {}
    for question in world.questions:
        node = prefix(question=question)
        answer = await world.stubs.diagnosis.GetNode(diagnosis_pb2.GetNodeRequest(node=node))
        for one in answer.candidates:
            found[f"{question} {one.token.id}"] = (one.rollouts, round(one.reward_sum, 6))
    return found


async def test_an_empty_cache_answers_as_the_one_that_was_exported(
    world: World, models: Path, other_url: str, tmp_path: Path
) -> None:
    trajectory = await grown(world)
    of_two = await world.stubs.catalog.GetPolicy(catalog_pb2.GetPolicyRequest(policy="student"))
    generation = await sampled(world)
    await stored(world)
    await put(world, "filed", *await said(world, models, generation))
    teachers = ["teacher", "self-answer", "filed"]
    before = await answers(world, trajectory, teachers)
    parts = await exported(world)
    async with empty(other_url, tmp_path / "b") as other:
        done = await imported(other, parts)
        assert done.rollouts_added == (await statistics(world)).rollouts
        assert not done.rollouts_known
        assert not done.warnings
        assert_sound(other)
        assert await answers(other, trajectory, teachers) == before
        found = await other.stubs.catalog.GetPolicy(catalog_pb2.GetPolicyRequest(policy="student"))
        assert found.policy.id == of_two.policy.id
        # Nothing was sampled or scored for it: all was in the cache.
        told = await statistics(other)
        assert (told.rollouts_sampled, told.distributions_scored) == (0, 0)
        mine = await statistics(world)
        assert (told.rollouts, told.tokens, told.trees) == (mine.rollouts, mine.tokens, mine.trees)
        again = await imported(other, parts)
        assert (again.rollouts_added, again.rollouts_known) == (0, done.rollouts_added)
        assert (again.trajectories_added, again.distributions_added, again.registered) == (0, 0, 0)
        assert (again.outcomes_added, again.rollouts_different) == (0, 0)
        # And it gives on what it was given.
        assert rollouts_of(await exported(other)) == rollouts_of(parts)


@pytest.mark.slow
async def test_caches_that_overlap_merge_both_ways_to_the_same(
    world: World, models: Path, other_url: str, tmp_path: Path
) -> None:
    await grown(world, "shared")
    async with serving(other_url, tmp_path / "b") as other:
        await fill(other, models)
        await imported(other, await exported(world))
        # Both go on, each by itself, under the same request_id.
        for one, seed in ((world, 8), (other, 9)):
            await grown(one, "next", seed=seed)
        mine, theirs = rollouts_of(await exported(world)), rollouts_of(await exported(other))
        assert mine.keys() - theirs.keys()
        assert theirs.keys() - mine.keys()
        assert mine.keys() & theirs.keys()
        there = await imported(other, await exported(world))
        here = await imported(world, await exported(other))
        assert there.rollouts_added == len(mine.keys() - theirs.keys())
        assert here.rollouts_added == len(theirs.keys() - mine.keys())
        assert (there.rollouts_different, here.rollouts_different) == (0, 0)
        for one in (world, other):
            assert_sound(one)
            assert rollouts_of(await exported(one)) == mine | theirs
        assert await counts(world) == await counts(other)


async def test_an_export_goes_on_where_it_was_cut_off(world: World) -> None:
    await grown(world)
    kinds = [*range(1, 5)]
    await exported(world, kinds=[ESTIMATES])  # scores what was not
    whole = await exported(world, kinds=kinds)
    assert len(whole) > 5
    assert {len(part.cursor) > 0 for part in whole} == {True}
    for i, part in enumerate(whole):
        rest = await exported(world, kinds=kinds, cursor=part.cursor)
        assert [one.records for one in rest if one.records.ByteSize()] == [
            one.records for one in whole[i + 1 :] if one.records.ByteSize()
        ]
    for cursor in ("nonsense", whole[0].cursor):
        request = sharing_pb2.ExportCacheRequest(kinds=[ROLLOUTS], cursor=cursor)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in world.stubs.cache.ExportCache(request):
                pass
        assert error.value.code() == INVALID


async def test_only_what_was_asked_for_is_exported(world: World) -> None:
    await grown(world)
    parts = await exported(world, policy="student", questions=["two"], kinds=[ROLLOUTS])
    found = rollouts_of(parts).values()
    (question,) = (one for part in parts for one in part.records.questions)
    assert question.name == "two"
    assert {one.question_id for one in found} == {question.id}
    assert not any(part.records.trajectories or part.records.distributions for part in parts)


async def test_estimates_are_what_get_node_answers(world: World, models: Path) -> None:
    trajectory = await grown(world)
    asked = trajectory_pb2.GetTrajectoryRequest(trajectory=trajectory)
    generation = (await world.stubs.trajectory.GetTrajectory(asked)).trajectory
    await stored(world)
    lines = await said(world, models, generation, k=VOCAB)
    await put(world, "filed", *lines[:-1])
    teachers = ["teacher", "filed"]
    parts = await exported(world, kinds=[ESTIMATES], teachers=teachers)
    found = [one for part in parts for one in part.records.estimates]
    at_hand = [one for one in found if one.answer.node.trajectory_id == trajectory]
    for one in at_hand:
        node = at(trajectory, one.answer.node.position)
        request = diagnosis_pb2.GetNodeRequest(node=node, teachers=teachers)
        assert await world.stubs.diagnosis.GetNode(request) == one.answer
    assert [one.answer.node.position for one in at_hand] == list(range(generation.length))
    # The file is the teacher itself, as far as it goes.
    for line, one in zip(lines, at_hand, strict=True):
        truth = dict(zip(line["ids"], map(math.exp, line["logprobs"]), strict=True))
        last = one is at_hand[-1]
        assert len(one.teachers) == (1 if last else 2)
        for told in one.teachers:
            assert sum(told.probabilities) == pytest.approx(1.0, abs=1e-5)
            for candidate, p in zip(one.answer.candidates, told.probabilities, strict=False):
                assert p == pytest.approx(truth[candidate.token.id], abs=1e-5)
    records = next(part.records for part in parts if part.records.estimates)
    await refused(
        world.stubs.cache.ImportCache(sharing_pb2.ImportCacheRequest(records=records)),
        INVALID,
        "records.estimates",
    )


async def test_outcomes_of_verifiers_go_along(world: World, models: Path, tmp_path: Path) -> None:
    await grown(world)
    verifier = (
        await world.stubs.catalog.RegisterVerifier(
            catalog_pb2.RegisterVerifierRequest(
                kind=catalog_pb2.VERIFIER_KIND_EXTERNAL,
                name="guard",
                options={"source": "guard v1"},
            )
        )
    ).verifier
    async with serving(f"sqlite:///{tmp_path}/b.db", tmp_path / "b") as other:
        first = await imported(other, await exported(world))
        listed = await world.stubs.cache.ListRollouts(
            cache_pb2.ListRolloutsRequest(policy="student", question="one", page_size=1000)
        )
        numbers = [
            cache_pb2.RolloutOutcome(rollout=one.id, reward=i % 5 / 4)
            for i, one in enumerate(listed.rollouts)
        ]
        await world.stubs.cache.PutOutcomes(
            cache_pb2.PutOutcomesRequest(verifier="guard", outcomes=numbers)
        )
        second = await imported(other, await exported(world))
        assert first.rollouts_added == second.rollouts_known
        assert second.outcomes_added == len(numbers)
        request = diagnosis_pb2.GetNodeRequest(
            node=prefix(), options=diagnosis_pb2.NodeOptions(verifier="guard")
        )
        mine = await world.stubs.diagnosis.GetNode(request)
        theirs = await other.stubs.diagnosis.GetNode(request)
        assert mine.node.verifier_id == theirs.node.verifier_id == verifier.id
        assert mine.candidates == theirs.candidates
        assert_sound(other)
        # Once counted by it, what has its numbers goes on being counted.
        await grown(world, "more", seed=11)
        await refused(world.stubs.diagnosis.GetNode(request), PRECONDITION, "guard")
        await imported(other, await exported(world))
        await refused(other.stubs.diagnosis.GetNode(request), PRECONDITION, "guard")
        assert_sound(other)


async def test_numbers_that_contradict_stay_as_they_are(world: World, tmp_path: Path) -> None:
    await grown(world)
    parts = await exported(world)
    async with empty(f"sqlite:///{tmp_path}/b.db", tmp_path / "b") as other:
        await imported(other, parts)
        before = await counts(other)
        for part in parts:
            for one in part.records.rollouts:
                one.outcomes[0].reward = 1.0 - one.outcomes[0].reward
        done = await imported(other, parts)
        assert done.outcomes_different == done.rollouts_known > 0
        assert await counts(other) == before
        # The same id with other tokens is the same draw, told by another engine.
        for part in parts:
            for one in part.records.rollouts:
                if one.forced < len(one.tokens) - 1:
                    one.tokens[-2] = 5 if one.tokens[-2] != 5 else 6
        done = await imported(other, parts)
        assert done.rollouts_different > 0
        assert done.rollouts_added == 0
        assert await counts(other) == before
        assert_sound(other)


@pytest.mark.parametrize("has_roots", [False, True])
async def test_a_model_that_is_not_here_is_kept_by_its_description(
    world: World, models: Path, tmp_path: Path, has_roots: bool
) -> None:
    await grown(world)
    parts = await exported(world)
    for part in parts:
        for policy in part.records.policies:
            policy.model.source = "/nowhere/student"
        for teacher in part.records.teachers:
            teacher.model.source = "/nowhere/model"
    options = {"model_roots": [str(models)]} if has_roots else {}
    async with empty(f"sqlite:///{tmp_path}/b.db", tmp_path / "b", **options) as other:
        done = await imported(other, parts)
        assert any("is not here" in warning for warning in done.warnings)
        assert_sound(other)
        assert rollouts_of(await exported(other)) == rollouts_of(parts)
        node = diagnosis_pb2.GetNodeRequest(node=prefix())
        code = grpc.StatusCode.PERMISSION_DENIED if has_roots else PRECONDITION
        await refused(other.stubs.diagnosis.GetNode(node), code, "/nowhere")
        # Registering the model where it is here is all it takes.
        await fill(other, models)
        mine = await world.stubs.diagnosis.GetNode(node)
        assert (await other.stubs.diagnosis.GetNode(node)).candidates == mine.candidates


def _first(parts: Parts, name: str) -> sharing_pb2.CacheRecords:
    records = sharing_pb2.CacheRecords()
    found = next(getattr(p.records, name)[0] for p in parts if getattr(p.records, name))
    getattr(records, name).append(found)
    return records


async def test_what_contradicts_itself_is_refused_and_nothing_is_kept(
    world: World, tmp_path: Path
) -> None:
    await grown(world)
    parts = await exported(world)
    async with empty(f"sqlite:///{tmp_path}/b.db", tmp_path / "b") as other:
        take = other.stubs.cache.ImportCache

        async def wrong(records: sharing_pb2.CacheRecords, about: str) -> None:
            request = sharing_pb2.ImportCacheRequest(records=records)
            await refused(take(request), INVALID, about)

        rollout = _first(parts, "rollouts")
        request = sharing_pb2.ImportCacheRequest(records=rollout)
        await refused(take(request), PRECONDITION, "not described")
        await imported(other, [part for part in parts if not part.records.rollouts
                               and not part.records.trajectories])  # fmt: skip
        policy = _first(parts, "policies")
        policy.policies[0].sampling.temperature = 0.5
        await wrong(policy, "records.policies[0].id")
        question = _first(parts, "questions")
        question.questions[0].fields["answer"] = "4"
        await wrong(question, "records.questions[0].id")
        teacher = _first(parts, "teachers")
        teacher.teachers[0].teacher.context.template = "{{ question }}?"
        await wrong(teacher, "records.teachers[0].id")
        verifier = _first(parts, "verifiers")
        verifier.verifiers[0].version += 1
        await wrong(verifier, "records.verifiers[0].id")
        for change, about in (
            ({"id": "12"}, "records.rollouts[0].id"),
            ({"tokens": [1, 0, 1]}, "records.rollouts[0].tokens[1]"),
            ({"tokens": [99]}, "records.rollouts[0].tokens[0]"),
            ({"tokens": []}, "records.rollouts[0].tokens"),
            ({"forced": 99}, "records.rollouts[0].forced"),
            ({"finish_reason": 0}, "records.rollouts[0].finish_reason"),
        ):
            records = sharing_pb2.CacheRecords()
            records.CopyFrom(rollout)
            for name, value in change.items():
                records.rollouts[0].ClearField(name)
                if name == "tokens":
                    records.rollouts[0].tokens.extend(value)
                else:
                    setattr(records.rollouts[0], name, value)
            await wrong(records, about)
        reward = sharing_pb2.CacheRecords()
        reward.CopyFrom(rollout)
        reward.rollouts[0].outcomes[0].reward = 2.0
        await wrong(reward, "records.rollouts[0].outcomes[0].reward")
        trajectory = _first(parts, "trajectories")
        request = sharing_pb2.ImportCacheRequest(records=trajectory)
        await refused(take(request), PRECONDITION, "import the rollouts first")
        trajectory.trajectories[0].ordinal += 1
        await wrong(trajectory, "records.trajectories[0].id")
        distribution = _first(parts, "distributions")
        distribution.distributions[0].logprobs[0] = 0.5
        await wrong(distribution, "records.distributions[0].logprobs")
        await wrong(sharing_pb2.CacheRecords(), "records")
        assert (await statistics(other)).rollouts == 0
