"""All that a call of SampleTrajectories sends, as one message."""

from __future__ import annotations

from collections.abc import AsyncIterable

from unmask.v1 import trajectory_pb2


async def collected(
    parts: AsyncIterable[trajectory_pb2.SampleTrajectoriesResponse],
) -> trajectory_pb2.SampleTrajectoriesResponse:
    """The parts of a stream, put together."""
    whole = trajectory_pb2.SampleTrajectoriesResponse()
    async for part in parts:
        whole.trajectories.extend(part.trajectories)
        whole.sampled += part.sampled
    return whole
