"""The main job with its models on real SGLang servers, over a real socket."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.engines.sglang.launch import ManagedSglang

from tests.collected import collected
from tests.e2e.conftest import World, serving

pytestmark = pytest.mark.sglang

QUESTION = {"question": "q 1 2", "answer": "3"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path) as made:
        await made.stubs.catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest(
                questions=[catalog_pb2.QuestionSpec(name="one", fields=QUESTION)]
            )
        )
        yield made


def student(
    model: Path | str, servers: dict[str, ManagedSglang], **fields: object
) -> catalog_pb2.RegisterPolicyRequest:
    return catalog_pb2.RegisterPolicyRequest(
        model=str(model), endpoints=[servers["plain"].url], max_new_tokens=6, **fields
    )


def answer_node(trajectory: str) -> diagnosis_pb2.NodeRef:
    return diagnosis_pb2.NodeRef(
        trajectory=diagnosis_pb2.TrajectoryPosition(trajectory=trajectory, position=0)
    )


async def grown(world: World, trajectory: str) -> growth_pb2.Growth:
    started = await world.stubs.growth.StartGrowth(
        growth_pb2.StartGrowthRequest(
            request_id=uuid.uuid4().hex,
            targets=[growth_pb2.GrowthTarget(trajectory=trajectory)],
            rollouts_per_node=32,
            budget=growth_pb2.Budget(rollouts=2000),
        )
    )
    growth = started.growth
    async for seen in world.stubs.growth.WatchGrowth(
        growth_pb2.WatchGrowthRequest(growth=growth.id)
    ):
        growth = seen.growth
    return growth


async def test_from_registration_to_an_alignment(
    world: World, servers: dict[str, ManagedSglang], tiny_models: dict[str, Path]
) -> None:
    catalog = world.stubs.catalog
    registered = await catalog.RegisterPolicy(student(tiny_models["plain"], servers, name="s"))
    model = registered.policy.model
    assert model.endpoints == [servers["plain"].url]
    assert model.serving.weight_version == "default"
    assert model.serving.engine_version == "0.5.20"
    assert 0 <= model.serving.noise < 1e-3
    # transformers reads the tokenizer of a Qwen2 in its own way, and SGLang with it. Only ids are
    # sent, so it is told and not refused.
    assert any("another tokenizer" in warning for warning in registered.warnings)
    padded = await catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="t",
            model=str(tiny_models["padded"]),
            endpoints=[servers["padded"].url],
            policies=["s"],
        )
    )
    assert padded.teacher.model.serving.padding_mass > 0
    sampled = await collected(
        world.stubs.trajectory.SampleTrajectories(
            trajectory_pb2.SampleTrajectoriesRequest(policy="s", questions=["one"], count=2)
        )
    )
    trajectory = sampled.trajectories[0].id
    growth = await grown(world, trajectory)
    assert growth.state == growth_pb2.GROWTH_STATE_SUCCEEDED
    assert growth.rollouts_sampled > 0
    answer = await world.stubs.diagnosis.GetAlignment(
        diagnosis_pb2.GetAlignmentRequest(node=answer_node(trajectory), teachers=["t"])
    )
    assert answer.alignments[0].status != diagnosis_pb2.ALIGNMENT_STATUS_UNSPECIFIED
    assert answer.node.rollouts > 0
    # Losses of whole sequences have the rollouts scored by the servers, too.
    whole = await world.stubs.diagnosis.GetAlignment(
        diagnosis_pb2.GetAlignmentRequest(
            node=answer_node(trajectory),
            teachers=["t"],
            algorithms=[diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_MINILLM)],
        )
    )
    assert whole.alignments[0].sample_variance > 0
    # Another way of sampling the same model needs no server of its own, nor to be told where.
    other = await catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            model=str(tiny_models["plain"]),
            max_new_tokens=6,
            sampling=catalog_pb2.Sampling(temperature=0.5, top_p=0.9, top_k=8),
        )
    )
    assert other.policy.model.endpoints == model.endpoints
    assert other.policy.sampling.cut_order == catalog_pb2.CUT_ORDER_JOINT
    more = await collected(
        world.stubs.trajectory.SampleTrajectories(
            trajectory_pb2.SampleTrajectoriesRequest(
                policy=other.policy.id, questions=["one"], count=2
            )
        )
    )
    assert more.sampled == 2


async def test_a_model_whose_weights_are_only_there(
    world: World,
    servers: dict[str, ManagedSglang],
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_models["plain"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    catalog = world.stubs.catalog
    without = (await catalog.RegisterPolicy(student(bare, servers))).policy
    # What the servers have is their own directory's, and that can be read here.
    nameless = (await catalog.RegisterPolicy(student("", servers))).policy
    assert without.model.fingerprint != nameless.model.fingerprint
    assert nameless.model.source == str(tiny_models["plain"])
    sampled = await collected(
        world.stubs.trajectory.SampleTrajectories(
            trajectory_pb2.SampleTrajectoriesRequest(policy=without.id, questions=["one"], count=3)
        )
    )
    assert sampled.sampled == 3


async def test_another_model_than_the_servers_have_is_refused(
    world: World, servers: dict[str, ManagedSglang], tiny_models: dict[str, Path]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stubs.catalog.RegisterPolicy(student(tiny_models["padded"], servers))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "columns" in (caught.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stubs.catalog.RegisterPolicy(
            catalog_pb2.RegisterPolicyRequest(
                model=str(tiny_models["plain"]), endpoints=["http://127.0.0.1:9"]
            )
        )
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    for endpoint in ("127.0.0.1:30000", "ftp://x", "http://", "http://x:99999999"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stubs.catalog.RegisterPolicy(
                catalog_pb2.RegisterPolicyRequest(
                    model=str(tiny_models["plain"]), endpoints=[endpoint]
                )
            )
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "endpoints[0]" in (caught.value.details() or "")
