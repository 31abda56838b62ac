"""Normal requests about things that no fuzzed request names: their answers may not change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

from tests.collected import collected
from tests.e2e.conftest import Stubs

NAME = "canary"
TEACHERS = ["teacher", "self-answer"]


@dataclass(frozen=True)
class Canary:
    """What is asked, and what was answered."""

    hidden: frozenset[str]
    """Ids and names that fuzzers are not told of."""
    asked: tuple[tuple[str, bytes, bool], ...]
    """Path, request, and whether the answer is a stream."""
    answered: tuple[list[bytes], ...]

    async def differences(self, channel: grpc.aio.Channel) -> list[str]:
        """The calls that are answered otherwise than before."""
        now = [await _ask(channel, *one) for one in self.asked]
        return [
            path
            for (path, *_), before, after in zip(self.asked, self.answered, now, strict=True)
            if before != after
        ]


async def make(channel: grpc.aio.Channel, models: Path) -> Canary:
    """Register, sample and grow what is asked about, and ask."""
    stubs: Any = Stubs(channel)
    policy = await stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name=NAME,
            model=str(models / "student"),
            max_new_tokens=7,
            sampling=catalog_pb2.Sampling(temperature=0.77),
        )
    )
    question = await stubs.catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            questions=[
                catalog_pb2.QuestionSpec(name=NAME, fields={"question": "q 3 3 1", "answer": "1"})
            ]
        )
    )
    sampled = await collected(
        stubs.trajectory.SampleTrajectories(
            trajectory_pb2.SampleTrajectoriesRequest(
                policy=NAME, questions=[NAME], count=4, seed=77
            )
        )
    )
    longest = max(sampled.trajectories, key=lambda one: one.length)
    target = growth_pb2.GrowthTarget(trajectory=longest.id)
    growth = await stubs.growth.StartGrowth(
        growth_pb2.StartGrowthRequest(
            request_id=NAME, targets=[target], budget=growth_pb2.Budget(rollouts=40)
        )
    )
    watch = stubs.growth.WatchGrowth(growth_pb2.WatchGrowthRequest(growth=growth.growth.id))
    async for progress in watch:
        last = progress.growth
    assert last.state == growth_pb2.GROWTH_STATE_SUCCEEDED, last.error
    hidden = {
        NAME,
        policy.policy.id,
        question.results[0].question.id,
        growth.growth.id,
        *(one.id for one in sampled.trajectories),
    }
    asked = tuple(_asked(longest.id))
    answered = tuple([await _ask(channel, *one) for one in asked])
    return Canary(frozenset(hidden), asked, answered)


def _asked(trajectory: str) -> list[tuple[str, bytes, bool]]:
    node = diagnosis_pb2.NodeRef(
        trajectory=diagnosis_pb2.TrajectoryPosition(trajectory=trajectory, position=0)
    )
    root = diagnosis_pb2.NodeRef(prefix=diagnosis_pb2.PrefixNode(policy=NAME, question=NAME))
    return [
        (f"/unmask.v1.{name}", request.SerializeToString(), name.partition("/")[2][:6] == "Stream")
        for name, request in (
            ("CatalogService/GetPolicy", catalog_pb2.GetPolicyRequest(policy=NAME)),
            (
                "CatalogService/PreviewPrompt",
                catalog_pb2.PreviewPromptRequest(policy=NAME, teacher="self-answer", question=NAME),
            ),
            (
                "TrajectoryService/GetTrajectory",
                trajectory_pb2.GetTrajectoryRequest(trajectory=trajectory),
            ),
            ("DiagnosisService/GetNode", diagnosis_pb2.GetNodeRequest(node=root)),
            (
                "DiagnosisService/GetIdealGradient",
                diagnosis_pb2.GetIdealGradientRequest(node=node),
            ),
            (
                "DiagnosisService/GetAlignment",
                diagnosis_pb2.GetAlignmentRequest(node=node, teachers=TEACHERS),
            ),
            (
                "DiagnosisService/StreamTrajectoryAlignments",
                diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
                    trajectory=trajectory, teachers=TEACHERS
                ),
            ),
            (
                "DiagnosisService/SummarizeAlignments",
                diagnosis_pb2.SummarizeAlignmentsRequest(
                    trajectories=[trajectory], teachers=TEACHERS
                ),
            ),
            (
                "CacheService/ListRollouts",
                cache_pb2.ListRolloutsRequest(policy=NAME, question=NAME),
            ),
        )
    ]


async def _ask(channel: grpc.aio.Channel, path: str, request: bytes, streams: bool) -> list[bytes]:
    if streams:
        return [part async for part in channel.unary_stream(path)(request, timeout=120)]
    return [await channel.unary_unary(path)(request, timeout=120)]
