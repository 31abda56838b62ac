"""Trajectories come in the order asked, each as soon as it can, however many there are."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs
from unmask.v1 import cache_pb2, catalog_pb2, trajectory_pb2
from unmask_server.access.principals import Budget
from unmask_server.api import sizes
from unmask_server.api import trajectory as service
from unmask_server.api.guard import CallGuard
from unmask_server.app import App
from unmask_server.catalog.errors import NotFound
from unmask_server.catalog.types import Question
from unmask_server.database import schema
from unmask_server.database.connect import open_database, read
from unmask_server.database.migrate import migrate
from unmask_server.engines.base import FinishReason, Sample, SampleRequest, Sampling
from unmask_server.growth import slices, trajectories
from unmask_server.growth.asked import Asked
from unmask_server.growth.quota import Quota, Quotas
from unmask_server.growth.trajectories import Made, TrajectoryMaker
from unmask_server.keeping.prune import prune_trees

from tests.collected import collected
from tests.e2e.conftest import Stubs, fill
from tests.e2e.scripted_engine import VOCABULARY, ScriptedEngine
from tests.e2e.test_main_job import sampling_of, statistics
from tests.e2e.test_replicas import Replica, replica

LONG = 240
"""Tokens of a long generation."""


class Wordy(ScriptedEngine):
    """Goes on for as long as it may."""

    def rollout(
        self, request: SampleRequest, stop_ids: frozenset[int]
    ) -> tuple[tuple[int, ...], FinishReason]:
        rng = np.random.default_rng(request.seed)
        tokens = rng.integers(1, VOCABULARY, request.max_new_tokens).tolist()
        return tuple(tokens), FinishReason.LENGTH


class Patient(ScriptedEngine):
    """Samples one at once, several when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may = asyncio.Event(), asyncio.Event()

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        if len(requests) > 1:
            self.begun.set()
            await self.may.wait()
        async for sample in super().sample(requests, sampling, stop_ids):
            yield sample


class Lazy(ScriptedEngine):
    """Samples the first that it is asked for."""

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        async for sample in super().sample(requests[:1], sampling, stop_ids):
            yield sample


@pytest.fixture
async def held(tmp_path: Path, models: Path) -> AsyncIterator[Replica]:
    """A server whose engine samples what it is allowed to; a client may have 600 a day."""
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    migrate(url)
    async with replica(url, tmp_path / "server", quota_rollouts=600) as server:
        await fill(server, models)
        yield server


@asynccontextmanager
async def wordy_server(tmp_path: Path, models: Path) -> AsyncIterator[Replica]:
    """A server that sends messages of 1 MiB at most, and a policy that says much: `wordy`."""
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    migrate(url)
    async with replica(url, tmp_path / "server", Wordy(), max_message_mib=1) as server:
        await fill(server, models)
        await server.stubs.catalog.RegisterPolicy(
            catalog_pb2.RegisterPolicyRequest(
                name="wordy", model=str(models / "student"), max_new_tokens=LONG
            )
        )
        yield server


@pytest.fixture
async def wordy(tmp_path: Path, models: Path) -> AsyncIterator[Replica]:
    async with wordy_server(tmp_path, models) as server:
        yield server


def call(server: Replica, **options: object) -> Any:
    return server.stubs.trajectory.SampleTrajectories(sampling_of(server, **options))


async def asked_of(server: Replica, policy: str, count: int) -> Asked:
    catalog = server.app.trajectory_service._catalog
    return Asked(catalog.get_policy(policy), [catalog.get_question("one")], count, 7)


async def until(server: Replica, holds: Callable[[cache_pb2.GetStatisticsResponse], bool]) -> None:
    """Wait until it does."""
    async with asyncio.timeout(60):
        while not holds(await statistics(server)):
            pass


async def test_they_come_question_by_question_as_they_were_asked_for(held: Replica) -> None:
    there = await collected(call(held, questions=["one"], count=3))
    found = await collected(call(held, questions=["two", "one"], count=5))
    assert found.sampled == 7
    assert list(found.trajectories[5:8]) == list(there.trajectories)
    questions = [trajectory.question_id for trajectory in found.trajectories]
    assert questions == [questions[0]] * 5 + [there.trajectories[0].question_id] * 5
    assert len({trajectory.id for trajectory in found.trajectories}) == 10
    for trajectory in found.trajectories:
        get = trajectory_pb2.GetTrajectoryRequest(trajectory=trajectory.id)
        assert (await held.stubs.trajectory.GetTrajectory(get)).trajectory == trajectory


async def test_the_same_call_gives_the_same_bytes_again(held: Replica) -> None:
    first = await collected(call(held, count=300))
    again = [[part.SerializeToString() async for part in call(held, count=300)] for _ in range(2)]
    assert again[0] == again[1]
    second = await collected(call(held, count=300))
    assert (first.sampled, second.sampled) == (300, 0)
    first.sampled = 0
    assert first.SerializeToString() == second.SerializeToString()


async def test_what_is_there_is_sent_before_the_rest_is_sampled(held: Replica) -> None:
    there = await collected(call(held, questions=["one"], count=2))
    held.engine.allow(2)
    stream = call(held, questions=["one", "two"], count=2)
    first = await stream.read()
    assert first == trajectory_pb2.SampleTrajectoriesResponse(trajectories=there.trajectories)
    # One is sent as soon as it is finished, though no other is.
    held.engine.allow(1)
    second = await stream.read()
    assert (len(second.trajectories), second.sampled) == (1, 1)
    held.engine.allow(None)
    third = await stream.read()
    assert (len(third.trajectories), third.sampled) == (1, 1)
    assert await stream.read() is grpc.aio.EOF
    assert held.engine.sampled == 4


async def test_what_is_there_is_sent_while_another_call_samples_the_rest(held: Replica) -> None:
    await collected(call(held, count=2))
    held.engine.allow(2)
    sampling = aiter(call(held, count=4))
    assert len((await anext(sampling)).trajectories) == 2
    waiting = aiter(call(held, count=4))
    assert len((await anext(waiting)).trajectories) == 2
    held.engine.allow(None)
    (first, second) = await asyncio.gather(collected(sampling), collected(waiting))
    assert (first.sampled, second.sampled) == (2, 0)
    assert list(first.trajectories) == list(second.trajectories)


async def test_an_engine_that_answers_too_little_ends_the_call(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_ROLLOUTS", 4)
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    migrate(url)
    async with replica(url, tmp_path / "server", Lazy()) as server, asyncio.timeout(60):
        await fill(server, models)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collected(call(server, count=10))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        # One of each of the three slices.
        assert (await statistics(server)).rollouts == 3


async def test_a_call_with_another_seed_waits_for_nothing(tmp_path: Path, models: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    migrate(url)
    engine = Patient()
    async with replica(url, tmp_path / "server", engine) as server:
        await fill(server, models)
        first = asyncio.ensure_future(collected(call(server, count=2, seed=1)))
        await engine.begun.wait()
        async with asyncio.timeout(30):
            other = await collected(call(server, count=1, seed=2))
        assert other.sampled == 1
        assert not first.done()
        engine.may.set()
        assert (await first).sampled == 2


async def test_an_answer_may_be_larger_than_any_message(wordy: Replica) -> None:
    parts = [part async for part in call(wordy, policy="wordy", count=600)]
    assert sum(part.ByteSize() for part in parts) > 2**20
    assert max(part.ByteSize() for part in parts) < 2 * sizes.PART_BYTES
    found = [trajectory.id for part in parts for trajectory in part.trajectories]
    assert len(found) == len(set(found)) == 600
    again = await collected(call(wordy, policy="wordy", count=600))
    assert [trajectory.id for trajectory in again.trajectories] == found


async def test_a_message_has_one_trajectory_where_that_is_large(
    wordy: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PART_BYTES", 1)
    parts = [part async for part in call(wordy, policy="wordy", count=9)]
    assert [(len(part.trajectories), part.sampled) for part in parts] == [(1, 1)] * 9


async def test_a_client_that_takes_nothing_holds_up_no_sampling(wordy: Replica) -> None:
    stream = call(wordy, policy="wordy", count=600)
    await until(wordy, lambda there: there.rollouts == 600)
    assert (await collected(stream)).sampled == 600


async def test_a_client_that_takes_nothing_loses_nothing_when_the_server_stops(
    tmp_path: Path, models: Path
) -> None:
    async with AsyncExitStack() as stack:
        async with wordy_server(tmp_path, models) as server:
            server.engine.allow(500)
            channel = grpc.aio.insecure_channel(server.address)
            stubs = Stubs(await stack.enter_async_context(channel))
            request = sampling_of(server, policy="wordy", count=600)
            stream = stubs.trajectory.SampleTrajectories(request)
            await until(server, lambda _: server.engine.sampled == 500)
            assert not stream.done()
        assert server.engine.calls == 0
    database = open_database(server.settings.database)
    with read(database) as connection:
        stored = connection.scalar(select(func.count()).select_from(schema.trajectory))
    database.dispose()
    assert stored == 500


async def test_of_an_answer_little_is_held_at_once(wordy: Replica) -> None:
    asked = await asked_of(wordy, "wordy", 1100)
    unlimited = Quotas(wordy.app.database, Quota())
    pieces = wordy.app.trajectory_service._maker.sample(
        asked, lambda *most: unlimited.sampling("", Budget(), *most)
    )
    lengths = [sum(len(one.tokens) for one, _ in piece) async for piece in pieces]
    assert sum(lengths) == 1100 * LONG
    assert max(lengths) <= trajectories._READ_TOKENS


async def test_a_client_that_leaves_loses_nothing_and_pays_for_what_was_sampled(
    held: Replica,
) -> None:
    held.engine.allow(200)
    stream = call(held, count=400)
    got = (await stream.read()).trajectories
    await until(held, lambda _: held.engine.sampled == 200)
    stream.cancel()
    await until(held, lambda _: held.engine.calls == 0)
    # All 400 were counted; now those 200 are, or these would not fit.
    held.engine.allow(None)
    done = await collected(call(held, count=400))
    assert done.sampled == 200
    assert list(done.trajectories[: len(got)]) == list(got)
    assert held.engine.sampled == (await statistics(held)).rollouts_sampled == 400
    await collected(call(held, count=200, seed=8))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collected(call(held, count=1, seed=9))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_server_that_stops_stores_what_a_client_that_left_had_sampled(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    migrate(url)
    begun, may, happened = threading.Event(), threading.Event(), list[str]()
    store, end, close = TrajectoryMaker._store, CallGuard._end, App.close
    drain = CallGuard.drain

    def store_when_it_may(*given: Any) -> None:
        begun.set()
        assert may.wait(60)
        store(*given)
        happened.append("stored")

    def end_and_let_store(*given: Any) -> None:
        end(*given)
        ended.append(asyncio.create_task(let_store()))

    async def let_store() -> None:
        # The call has been told by then.
        for _ in range(20):
            await asyncio.sleep(0)
        may.set()

    async def drain_with_patience(guard: CallGuard, _: float) -> None:
        # Calls that were cut off have so long, too: enough on a busy machine.
        await drain(guard, 4.0)

    async def closed(app: App) -> None:
        happened.append("closed")
        may.set()
        await close(app)

    ended: list[asyncio.Task[None]] = []
    monkeypatch.setattr(TrajectoryMaker, "_store", store_when_it_may)
    monkeypatch.setattr(CallGuard, "_end", end_and_let_store)
    monkeypatch.setattr(CallGuard, "drain", drain_with_patience)
    monkeypatch.setattr(App, "close", closed)
    async with replica(url, tmp_path / "server") as server:
        await fill(server, models)
        server.engine.allow(100)
        stream = call(server, count=400)
        await until(server, lambda _: begun.is_set())
        # While one batch is being stored, there are some more.
        server.engine.allow(100)
        await until(server, lambda _: server.engine.sampled == 200)
        stream.cancel()
        await until(server, lambda _: server.engine.calls == 0)
    assert ended
    assert happened == ["stored", "stored", "closed"]
    database = open_database(url)
    with read(database) as connection:
        found = connection.scalar(select(func.count()).select_from(schema.trajectory))
    database.dispose()
    assert found == 200


async def test_what_comes_before_an_error_is_sent(held: Replica) -> None:
    long = catalog_pb2.QuestionSpec(name="long", fields={"question": "q " * 300, "answer": "1"})
    await held.stubs.catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(questions=[long], verifier="last_number")
    )
    there = await collected(call(held, count=2))
    stream = call(held, questions=["one", "long", "two"], count=2)
    assert list((await stream.read()).trajectories) == list(there.trajectories)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (await statistics(held)).rollouts == 2


@pytest.mark.parametrize("questions", [("one", "two"), ("two", "one")])
async def test_a_question_that_cannot_be_stored_takes_no_other_with_it(
    held: Replica, monkeypatch: pytest.MonkeyPatch, questions: tuple[str, ...]
) -> None:
    bad, store = held.app.trajectory_service._catalog.get_question("one"), TrajectoryMaker._store

    def store_but_one(
        maker: TrajectoryMaker, asked: Asked, question: Question, made: Sequence[Made]
    ) -> None:
        if question.id == bad.id:
            raise ZeroDivisionError
        store(maker, asked, question, made)

    got: list[trajectory_pb2.Trajectory] = []

    async def take() -> None:
        async for part in call(held, questions=questions, count=3):
            got.extend(part.trajectories)

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryMaker, "_store", store_but_one)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await take()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert held.engine.sampled == 6
    # What comes before the first that is missing was sent.
    assert len(got) == (3 if questions[0] == "two" else 0)
    found = await collected(call(held, questions=questions, count=3))
    assert found.sampled == 3
    assert list(found.trajectories[: len(got)]) == got


async def test_a_database_that_is_away_is_waited_for_once(
    held: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Question] = []

    def fail(_: TrajectoryMaker, asked: Asked, question: Question, made: Sequence[Made]) -> None:
        tried.append(question)
        raise OperationalError("", {}, ConnectionError())

    monkeypatch.setattr(TrajectoryMaker, "_store", fail)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collected(call(held, questions=["one", "two"], count=1))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(tried) == 1


async def test_the_log_tells_where_an_unforeseen_error_came_from(
    held: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_here(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TrajectoryMaker, "_store", fails_here)
    with capture_logs() as said, pytest.raises(grpc.aio.AioRpcError) as caught:
        await collected(call(held, count=1))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    [error] = [one["exc_info"] for one in said if one["event"] == "unforeseen error"]
    assert "fails_here" in "".join(traceback.format_exception(error))


async def test_too_many_are_refused_before_anything_is_done(held: Replica) -> None:
    names = [f"nobody-{i}" for i in range(11)]
    with pytest.raises(grpc.aio.AioRpcError, match="more than 100000 trajectories in all") as error:
        await collected(call(held, questions=names, count=10_000))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_one_that_is_pruned_before_it_is_sent_is_told(
    held: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "_READ", 1)
    await collected(call(held, count=3))
    asked = await asked_of(held, "student", 3)
    unlimited = Quotas(held.app.database, Quota())
    pieces = held.app.trajectory_service._maker.sample(
        asked, lambda *most: unlimited.sampling("", Budget(), *most)
    )
    assert len(await anext(pieces)) == 1
    tree = held.app.runner._work._trees.open_tree(asked.policy.id, asked.questions[0].id)
    prune_trees(held.app.database, [tree.id])
    with pytest.raises(NotFound):
        await anext(pieces)
    # The next call samples them anew, and they are the same.
    found = await collected(call(held, count=3))
    assert found.sampled == 3
