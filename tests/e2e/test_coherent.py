"""Servers of one database give the same bytes at the same versions, and see each other's growth."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from unmask.v1 import diagnosis_pb2, trajectory_pb2

from tests.collected import collected
from tests.e2e.test_main_job import at
from tests.e2e.test_replicas import Replica, asked, ended, pair, start

__all__ = ["pair"]

LATEST = diagnosis_pb2.NodeOptions(freshness=diagnosis_pb2.FRESHNESS_LATEST)
OBJECTIVES = [diagnosis_pb2.Objective(), diagnosis_pb2.Objective(verifier="exact")]


async def sampled(server: Replica, name: str) -> trajectory_pb2.Trajectory:
    request = trajectory_pb2.SampleTrajectoriesRequest(policy="student", questions=[name], count=2)
    made = await collected(server.stubs.trajectory.SampleTrajectories(request))
    return max(made.trajectories, key=lambda t: t.length)


async def answers(
    server: Replica, trajectories: list[str], options: diagnosis_pb2.NodeOptions
) -> dict[str, list[Any]]:
    """Every kind of answer about the trajectories."""
    pb, stub = diagnosis_pb2, server.stubs.diagnosis
    node, teachers = at(trajectories[0], 0), list(server.teachers)
    about = {"teachers": teachers, "options": options}
    stream = stub.StreamTrajectoryAlignments(
        pb.StreamTrajectoryAlignmentsRequest(trajectory=trajectories[0], **about)
    )
    groups = [pb.TrajectoryGroup(name=t, trajectories=[t]) for t in trajectories]
    return {
        "node": [await stub.GetNode(pb.GetNodeRequest(node=node, options=options))],
        "gradient": [
            await stub.GetIdealGradient(pb.GetIdealGradientRequest(node=node, options=options))
        ],
        "alignment": [await stub.GetAlignment(pb.GetAlignmentRequest(node=node, **about))],
        "stream": [answer async for answer in stream],
        "summary": [
            await stub.SummarizeAlignments(
                pb.SummarizeAlignmentsRequest(trajectories=trajectories, **about)
            )
        ],
        "groups": [await stub.CompareGroups(pb.CompareGroupsRequest(groups=groups, **about))],
        "objectives": [
            await stub.CompareObjectives(
                pb.CompareObjectivesRequest(
                    trajectories=trajectories, teachers=teachers, objectives=OBJECTIVES
                )
            )
        ],
    }


def versions(found: dict[str, list[Any]]) -> set[int]:
    """Of the first question's tree, as all answers name it."""
    named = set()
    for answer in (one for kind in found.values() for one in kind):
        if hasattr(answer, "tree_versions"):
            assert len({tree.question_id for tree in answer.tree_versions}) == 2
            named.add(answer.tree_versions[0].version)
        else:
            named.add(answer.node.tree_version)
    return named


@pytest.mark.slow
async def test_the_same_version_gives_the_same_bytes_on_every_server(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    trajectories = [(await sampled(a, name)).id for name in ("one", "two")]
    options = diagnosis_pb2.NodeOptions()
    # Verifiers that were never asked about change a tree when they are.
    await answers(a, trajectories, options)
    before = await answers(a, trajectories, LATEST)
    assert before == await answers(b, trajectories, LATEST)
    (version,) = versions(before)
    await ended(b, await start(b, asked("g", "one", "two", goal=100)))
    after = await answers(a, trajectories, LATEST)
    assert after != before
    (grown,) = versions(after)
    assert grown > version
    again = await answers(b, trajectories, LATEST)
    for kind, found in after.items():
        assert [one.SerializeToString(deterministic=True) for one in found] == [
            one.SerializeToString(deterministic=True) for one in again[kind]
        ], kind


async def test_another_servers_growth_is_seen_within_a_second_or_at_once(
    pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    trajectory = (await sampled(a, "one")).id
    request = diagnosis_pb2.GetNodeRequest(node=at(trajectory, 0))
    fresh = diagnosis_pb2.GetNodeRequest(node=at(trajectory, 0), options=LATEST)
    before = await a.stubs.diagnosis.GetNode(request)
    assert await a.stubs.diagnosis.GetNode(fresh) == before
    if a.app.notices.is_possible:
        while a.app.notices.complete_since is None:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    else:
        # As if no time passed: what is known stays young.
        monkeypatch.setattr("unmask_server.nodes.versions.MAX_AGE_SECONDS", 1e9)
    await ended(b, await start(b, asked("g", "one", goal=100)))
    newest = await a.stubs.diagnosis.GetNode(fresh) if not a.app.notices.is_possible else None
    if newest is None:
        # Told, not asked: the answer becomes the new one although the old version is young.
        monkeypatch.setattr("unmask_server.nodes.versions.MAX_AGE_SECONDS", 1e9)
        newest = await b.stubs.diagnosis.GetNode(request)
        while await a.stubs.diagnosis.GetNode(request) != newest:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    assert newest.node.tree_version > before.node.tree_version
    assert await a.stubs.diagnosis.GetNode(request) == newest
