"""Servers over one database, their clients, and what was acknowledged to these."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from unmask.v1 import catalog_pb2, growth_pb2, trajectory_pb2
from unmask_server.database.migrate import migrate

from tests.chaos.server import Options, start
from tests.collected import collected
from tests.e2e.conftest import Stubs

QUESTIONS = ("one", "two")
READY_SECONDS = 60.0
RETRIED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
ENDED = (
    growth_pb2.GROWTH_STATE_SUCCEEDED,
    growth_pb2.GROWTH_STATE_CANCELLED,
    growth_pb2.GROWTH_STATE_FAILED,
)


def has_more_than(seen: int) -> Callable[[growth_pb2.Growth], bool]:
    """Whether a growth has moved since a client was told of so many rollouts."""
    return lambda growth: growth.rollouts_sampled > seen


class Server:
    """One process and a channel to it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._process = start(options)

    async def ready(self) -> Server:
        """Wait until it listens."""
        async with asyncio.timeout(READY_SECONDS):
            # gRPC would wait for a second after it was refused.
            while not self.options.socket.exists():
                assert self.is_alive, f"it ended at its start: see {self.options.log}"
                await asyncio.sleep(0.01)
            self.channel = grpc.aio.insecure_channel(f"unix:{self.options.socket}")
            self.stubs = Stubs(self.channel)
            await self.channel.channel_ready()
        return self

    @property
    def is_alive(self) -> bool:
        return bool(self._process.is_alive())

    def terminate(self) -> None:
        """Tell it to stop."""
        self._process.terminate()

    async def ended(self) -> int:
        """Its exit status."""
        await asyncio.to_thread(self._process.join)
        return int(self._process.exitcode)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.join()

    async def close(self) -> None:
        self.kill()
        await self.channel.close()


class Team:
    """What servers over one database share, and what their clients were told."""

    def __init__(self, url: str, folder: Path, models: Path, **options: Any) -> None:
        self.folder = folder
        self.models = models
        self.answered = folder / "answered"
        self.url = url
        self._options = options
        self._numbers = itertools.count()
        self.acknowledged: dict[str, tuple[tuple[int, ...], float]] = {}
        """Trajectories that a client got, with their rewards."""
        self.progress: dict[str, int] = {}
        """The most rollouts that a client was told of, by growth."""
        self.budgets: dict[str, int] = {}
        self.wanted: dict[str, str] = {}
        """Growths by request_id."""
        self.refusals: dict[str, int] = {}
        """How often a call ended in which status."""
        self._seeds = itertools.count()
        migrate(url)

    async def start(self, **options: Any) -> Server:
        """One more server."""
        number = next(self._numbers)
        made = Options(
            url=self.url,
            socket=self.folder / f"s{number}",
            answered=self.answered,
            log=self.folder / f"log{number}",
        )
        return await Server(replace(made, **{**self._options, **options})).ready()

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Server]:
        """A server until the end of the block."""
        server = await self.start(**options)
        try:
            yield server
        finally:
            await server.close()

    async def fill(self, server: Server, **policy: Any) -> None:
        """Register a policy and two questions."""
        await server.stubs.catalog.RegisterPolicy(
            catalog_pb2.RegisterPolicyRequest(
                name="student", model=str(self.models / "student"), max_new_tokens=6, **policy
            )
        )
        rows = [{"name": name, "question": "q 1 2", "answer": "3"} for name in QUESTIONS]
        rows[1]["question"] = "q 2 2"
        found = await server.stubs.catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest(
                jsonl="\n".join(map(json.dumps, rows)).encode(), verifier="last_number"
            )
        )
        assert all(result.HasField("question") for result in found.results)

    async def grow(
        self, server: Server, request_id: str, rollouts: int, question: str = "one"
    ) -> growth_pb2.Growth:
        """Start a growth of so many rollouts, or find it."""
        target = growth_pb2.QuestionTarget(policy="student", question=question)
        request = growth_pb2.StartGrowthRequest(
            request_id=request_id,
            targets=[growth_pb2.GrowthTarget(question=target)],
            budget=growth_pb2.Budget(rollouts=rollouts),
            allocation=growth_pb2.ALLOCATION_POLICY,
        )
        growth = (await server.stubs.growth.StartGrowth(request, timeout=60)).growth
        self.budgets[growth.id] = rollouts
        self.wanted[request_id] = growth.id
        self._told(growth)
        return growth

    async def watch(
        self, server: Server, growth_id: str, until: Callable[[growth_pb2.Growth], bool]
    ) -> growth_pb2.Growth:
        """Follow a growth until something is true of it, or to its end."""
        request = growth_pb2.WatchGrowthRequest(growth=growth_id)
        call = server.stubs.growth.WatchGrowth(request)
        async for progress in call:
            last = progress.growth
            self._told(last)
            if until(last):
                break
        call.cancel()
        return last

    async def finish(self, server: Server, request_id: str, rollouts: int, **options: Any) -> None:
        """Have a growth reach its budget, however often it fails on the way."""
        async with asyncio.timeout(120):
            while True:
                growth = await self.grow(server, request_id, rollouts, **options)
                last = await self.watch(server, growth.id, lambda g: False)
                if last.state == growth_pb2.GROWTH_STATE_SUCCEEDED:
                    return
                assert last.state != growth_pb2.GROWTH_STATE_CANCELLED

    async def sample(
        self, server: Server, question: str = "two", count: int = 2, seed: int | None = None
    ) -> None:
        """Sample trajectories, of a new seed if None, and keep what was acknowledged."""
        request = trajectory_pb2.SampleTrajectoriesRequest(
            policy="student",
            questions=[question],
            count=count,
            seed=10**6 + next(self._seeds) if seed is None else seed,
        )
        found = await collected(server.stubs.trajectory.SampleTrajectories(request, timeout=60))
        for made in found.trajectories:
            tokens = tuple(token.id for token in made.tokens)
            self.acknowledged[made.id] = (tokens, made.reward)

    @asynccontextmanager
    async def sampling(self, server: Callable[[], Server]) -> AsyncIterator[None]:
        """Sample during the block, at whatever server there is; what it refuses is counted."""
        done = asyncio.Event()

        async def keep_sampling() -> None:
            while not done.is_set():
                try:
                    await self.sample(server())
                except grpc.aio.AioRpcError as error:
                    self.refused(error)
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(keep_sampling())
            try:
                yield
            finally:
                done.set()

    def refused(self, error: grpc.aio.AioRpcError) -> None:
        """Count a call that failed."""
        name = error.code().name
        self.refusals[name] = self.refusals.get(name, 0) + 1

    def _told(self, growth: growth_pb2.Growth) -> None:
        known = self.progress.get(growth.id, 0)
        self.progress[growth.id] = max(known, growth.rollouts_sampled)
