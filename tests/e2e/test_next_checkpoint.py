"""The next checkpoint of a student: what carries over, counted where models are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.app import build
from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.database.migrate import migrate
from unmask_server.engines.base import (
    Engine,
    ModelInfo,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.transformers import TransformersEngine
from unmask_server.serve import running

from tests.e2e.conftest import MAX_NEW_TOKENS, Stubs, World, fill
from tests.e2e.test_main_job import grow, growth_of, sampled
from tests.e2e.test_stored_teachers import put, said, stored
from tests.tiny import save, word_level

TEACHERS = ["teacher", "self-answer", "filed"]


@dataclass
class Counting:
    """An engine that counts the positions it scores, by the name of its model's folder."""

    inner: Engine
    name: str
    scored: Counter[str]

    @property
    def info(self) -> ModelInfo:
        return self.inner.info

    def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        return self.inner.sample(requests, sampling, stop_ids)

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        self.scored[self.name] += len(request.positions)
        return await self.inner.score(request)

    async def close(self) -> None:
        await self.inner.close()


@pytest.fixture
async def counted(tmp_path: Path, models: Path) -> AsyncIterator[tuple[World, Counter[str]]]:
    """A filled server, and how many positions each model has scored."""
    scored: Counter[str] = Counter()

    async def open_engine(model: Model, vocab_size: int) -> Engine:
        inner = await TransformersEngine.open(
            model.source, device="cpu", dtype="float32", max_batch=64, threads=1,
            vocab_size=vocab_size,
        )  # fmt: skip
        return Counting(inner, Path(model.source).name, scored)

    url = f"sqlite:///{tmp_path}/unmask.db"
    settings = Settings(database=url, listen=[f"unix:{tmp_path}/socket"], grace_seconds=0.2)
    migrate(url)
    app = build(settings, open_engine)
    async with running(settings, app) as bound, grpc.aio.insecure_channel(bound[0]) as channel:
        world = World(Stubs(channel), bound[0], app, settings)
        await fill(world, models)
        yield world, scored


async def alignments(
    world: World, trajectory: str
) -> list[diagnosis_pb2.StreamTrajectoryAlignmentsResponse]:
    request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
        trajectory=trajectory, teachers=TEACHERS
    )
    return [one async for one in world.stubs.diagnosis.StreamTrajectoryAlignments(request)]


async def test_the_next_checkpoint_starts_a_tree_and_reuses_the_teachers(
    counted: tuple[World, Counter[str]], models: Path, tmp_path: Path
) -> None:
    world, scored = counted
    generation = await sampled(world)
    await stored(world)
    await put(world, "filed", *await said(world, models, generation))
    await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=generation.id)))
    old = await alignments(world, generation.id)
    assert scored["student"] > 0
    assert scored["teacher"] == generation.length
    before = Counter(scored)

    # Trained on: other weights, the same vocabulary. Its questions are registered already.
    save(tmp_path / "next", word_level(), seed=11, scale=3.0)
    await world.stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="next", model=str(tmp_path / "next"), max_new_tokens=MAX_NEW_TOKENS
        )
    )
    submitted = (
        await world.stubs.trajectory.SubmitTrajectory(
            trajectory_pb2.SubmitTrajectoryRequest(
                policy="next",
                question="one",
                tokens=trajectory_pb2.TokenIds(ids=[token.id for token in generation.tokens]),
            )
        )
    ).trajectory
    fresh = await alignments(world, submitted.id)
    assert [one.node.rollouts for one in fresh] == [0] * generation.length

    # On the same prefixes no teacher is asked again: neither the external one, nor the old student
    # with its answer, nor the file, which needs no new lines.
    assert scored["teacher"] == before["teacher"]
    assert scored["student"] == before["student"]
    assert scored["next"] > 0
    filed = [one.alignments[2] for one in fresh]
    assert all(one.status != diagnosis_pb2.ALIGNMENT_STATUS_NOT_COVERED for one in filed)

    # Its rollouts are its own: the old tree stays as it is, and so do its answers.
    target = growth_pb2.GrowthTarget(trajectory=submitted.id)
    await grow(world, growth_of(target, request_id="next"))
    grown = await alignments(world, submitted.id)
    assert all(one.node.rollouts >= 64 for one in grown)
    assert await alignments(world, generation.id) == old
    assert (scored["teacher"], scored["student"]) == (before["teacher"], before["student"])
