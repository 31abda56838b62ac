"""Sampling, whose answer comes in parts: one object, or one generation after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import unmask
from unmask.calls import Resumed
from unmask.channel import TRIES
from unmask.requests.trajectory import sample_trajectories
from unmask.v1 import trajectory_pb2 as pb

from tests.client.scripted import ScriptedServer

METHOD = "SampleTrajectories"


def part(*names: str, sampled: int = 0) -> pb.SampleTrajectoriesResponse:
    return pb.SampleTrajectoriesResponse(
        trajectories=[pb.Trajectory(id=name) for name in names], sampled=sampled
    )


def ids(found: Any) -> list[str]:
    return [one.id for one in found]


def broken_off(request: pb.SampleTrajectoriesRequest, context: grpc.ServicerContext) -> Any:
    """Never more than a server sends that is stopped each time."""
    yield part("a", "b", sampled=1)
    context.abort(grpc.StatusCode.UNAVAILABLE, "stops")


class Restarted:
    """A server that is stopped twice, in the middle of its answer; what it sampled, it keeps."""

    def __init__(self) -> None:
        self.streams = 0

    def __call__(self, request: pb.SampleTrajectoriesRequest, context: grpc.ServicerContext) -> Any:
        self.streams += 1
        if self.streams == 1:
            yield part("a", sampled=1)
            yield part("b", "c", sampled=2)
        elif self.streams == 2:
            # Divided otherwise.
            yield part("a", "b")
            yield part("c", "d", sampled=1)
        else:
            yield part("a", "b", "c")
            yield part("d", "e", sampled=1)
            return
        context.abort(grpc.StatusCode.UNAVAILABLE, "stops")


def test_parts_are_put_together(server: ScriptedServer, client: unmask.Client) -> None:
    server.answer(METHOD, [part("a", "b", sampled=1), part(), part("c", sampled=1), part("d")])
    whole = client.sample_trajectories("p", ["q"], count=4)
    assert (ids(whole.trajectories), whole.sampled) == (["a", "b", "c", "d"], 2)
    assert ids(client.iter_sampled_trajectories("p", ["q"], count=4)) == ["a", "b", "c", "d"]
    (first, second) = server.requests(METHOD)
    assert first == second


async def test_and_with_asyncio(server: ScriptedServer) -> None:
    server.answer(METHOD, [part("a", "b", sampled=1), part("c", sampled=1)])
    async with unmask.AsyncClient(server.address) as client:
        whole = await client.sample_trajectories("p", ["q"], count=3)
        assert (ids(whole.trajectories), whole.sampled) == (["a", "b", "c"], 2)
        found = [one async for one in client.iter_sampled_trajectories("p", ["q"], count=3)]
    assert ids(found) == ["a", "b", "c"]


def test_a_generation_is_there_before_the_next_is(
    server: ScriptedServer, client: unmask.Client
) -> None:
    taken, gone = threading.Event(), threading.Event()

    def answer(request: pb.SampleTrajectoriesRequest, context: grpc.ServicerContext) -> Any:
        context.add_callback(gone.set)
        yield part("a")
        assert taken.wait(20)
        yield part("b")
        gone.wait(20)

    server.answer(METHOD, answer)
    found = client.iter_sampled_trajectories("p", ["q"], count=3)
    assert next(found).id == "a"
    taken.set()
    assert next(found).id == "b"
    # Who leaves the loop has no call left.
    found.close()  # type: ignore[attr-defined]
    assert gone.wait(20)


def test_a_stream_that_breaks_is_begun_again_and_nothing_comes_twice(
    server: ScriptedServer, client: unmask.Client
) -> None:
    server.answer(METHOD, Restarted())
    whole = client.sample_trajectories("p", ["q"], count=5)
    assert (ids(whole.trajectories), whole.sampled) == (list("abcde"), 5)
    server.answer(METHOD, Restarted())
    assert ids(client.iter_sampled_trajectories("p", ["q"], count=5)) == list("abcde")
    assert len(server.requests(METHOD)) == 6


async def test_and_is_with_asyncio(server: ScriptedServer) -> None:
    server.answer(METHOD, Restarted())
    async with unmask.AsyncClient(server.address) as client:
        whole = await client.sample_trajectories("p", ["q"], count=5)
        assert (ids(whole.trajectories), whole.sampled) == (list("abcde"), 5)
        server.answer(METHOD, Restarted())
        found = [one async for one in client.iter_sampled_trajectories("p", ["q"], count=5)]
    assert ids(found) == list("abcde")


def test_one_that_breaks_again_and_again_is_given_up_after_growing_pauses(
    server: ScriptedServer, client: unmask.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("unmask.client.sleep", pauses.append)
    server.answer(METHOD, broken_off)
    with pytest.raises(unmask.UnavailableError, match="stops"):
        client.sample_trajectories("p", ["q"], count=5)
    assert len(server.requests(METHOD)) == TRIES
    assert pauses == pytest.approx([0.1, 0.3, 0.9, 2.0])


async def test_and_pauses_with_asyncio(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("unmask.aio.sleep", sleep)
    server.answer(METHOD, broken_off)
    async with unmask.AsyncClient(server.address) as client:
        with pytest.raises(unmask.UnavailableError, match="stops"):
            await client.sample_trajectories("p", ["q"], count=5)
    assert pauses == pytest.approx([0.1, 0.3, 0.9, 2.0])


def test_the_pause_is_the_one_that_the_server_names_within_the_time() -> None:
    told = unmask.UnavailableError(grpc.StatusCode.UNAVAILABLE, "stops")
    told.retry_seconds = 1.5
    call = sample_trajectories("p", ["q"], count=5)
    assert Resumed(call, None).broke(told) == 1.5
    with pytest.raises(unmask.UnavailableError):
        Resumed(call, 1.0).broke(told)


def test_no_more_is_counted_as_sampled_than_came(
    server: ScriptedServer, client: unmask.Client
) -> None:
    answers = iter(([part("a", sampled=1)], [part("a", "b", sampled=2)]))

    def pruned_meanwhile(
        request: pb.SampleTrajectoriesRequest, context: grpc.ServicerContext
    ) -> Any:
        answer = next(answers)
        yield from answer
        if len(answer[0].trajectories) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "stops")

    server.answer(METHOD, pruned_meanwhile)
    whole = client.sample_trajectories("p", ["q"], count=2)
    assert (ids(whole.trajectories), whole.sampled) == (["a", "b"], 2)


def test_whatever_else_is_wrong_is_told_at_once(
    server: ScriptedServer, client: unmask.Client
) -> None:
    def answer(request: pb.SampleTrajectoriesRequest, context: grpc.ServicerContext) -> Any:
        yield part("a")
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more today")

    server.answer(METHOD, answer)
    found: Iterator[pb.Trajectory] = client.iter_sampled_trajectories("p", ["q"], count=2)
    assert next(found).id == "a"
    with pytest.raises(unmask.ResourceExhaustedError, match="no more today"):
        next(found)
    assert len(server.requests(METHOD)) == 1


def test_the_timeout_is_for_all_of_an_answer(server: ScriptedServer, client: unmask.Client) -> None:
    gone = threading.Event()

    def answer(request: pb.SampleTrajectoriesRequest, context: grpc.ServicerContext) -> Any:
        context.add_callback(gone.set)
        yield part("a")
        gone.wait(20)

    server.answer(METHOD, answer)
    with pytest.raises(unmask.DeadlineExceededError):
        client.with_timeout(0.2).sample_trajectories("p", ["q"])
    assert gone.wait(20)


def test_iterating_tells_what_sampling_tells() -> None:
    for kind in (unmask.Client, unmask.AsyncClient):
        method = kind.iter_sampled_trajectories
        assert method.__name__ == "iter_sampled_trajectories"
        assert (method.__doc__ or "").startswith("Sample generations of a policy, and iterate")
        assert "seed: another seed gives others" in (method.__doc__ or "")
        assert sample_trajectories.__doc__ == kind.sample_trajectories.__doc__
