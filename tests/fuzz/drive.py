"""Many requests at once, counted by RPC and outcome."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from tests.fuzz import wire
from tests.fuzz.build import Builder
from tests.fuzz.calls import NEVER, Answer, Sent, odd_way, problem, send
from tests.fuzz.pool import Pool
from tests.fuzz.rpcs import Rpc, all_rpcs
from tests.fuzz.seeds import SEEDS, Known, seed

_COSTLY = ("Compare", "Summarize", "Predict", "Export", "Stream", "Sample", "StartGrowth", "Watch")
"""What takes long even when all is well is asked for less often than the rest, by this factor."""
_SELDOM = 12
_LIVES = 100
"""Valid requests of an RPC that are kept to be changed."""
_KEPT = 10
"""Problems of an RPC that are kept to be looked at."""
_TOLD = 5_000
_BAD = {code.name for code in NEVER}
_OVERSIZED = 3 * 2**19


@dataclass(frozen=True)
class Found:
    """A request that should not have been answered as it was."""

    sent: Sent
    problem: str
    index: int


@dataclass
class Fuzz:
    """Fuzzes one server."""

    channels: list[grpc.aio.Channel]
    models: list[Path]
    base: int
    """The seed."""
    pool: Pool
    name: str = ""
    """Of its store, for progress."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)
    slowest: dict[str, tuple[float, Sent]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rpcs = {rpc.path: rpc for rpc in all_rpcs()}
        self._by_name = {rpc.path.rpartition("/")[2]: rpc for rpc in self.rpcs.values()}
        self._paths = list(self.rpcs)
        self._weights = [
            1 if any(one in path for one in _COSTLY) else _SELDOM for path in self._paths
        ]
        self._valid: dict[str, list[bytes]] = {path: [] for path in self._paths}
        self._builder = Builder(self.pool, self.models)

    async def plant(self, models: Path) -> dict[str, str]:
        """Send the valid requests, in order; returns what was refused, and why."""
        known = Known(models)
        refused: dict[str, str] = {}
        for i, (name, given) in enumerate(SEEDS):
            if (rpc := self._by_name.get(name)) is None:
                continue
            request = seed(rpc, given, known)
            sent = Sent(rpc.path, request.SerializeToString())
            answer = await self._send(rpc, sent, -1)
            if answer.code is grpc.StatusCode.OK:
                _note(known, rpc, answer)
            else:
                refused[f"{name} ({i})"] = f"{answer.code.name}: {answer.message}"
        return refused

    async def run(
        self, until: int, *, workers: int, first: int = 0, deadline: float = math.inf
    ) -> None:
        """Send requests from number `first` until another one, several at a time.

        None is begun after the deadline, a time of `time.monotonic()`.
        """
        numbers = count(first)

        async def work(channel: grpc.aio.Channel) -> None:
            while time.monotonic() < deadline and (index := next(numbers)) < until:
                if index and index % _TOLD == 0:
                    bad = sum(n for (_, code), n in self.counts.items() if code in _BAD)
                    print(f"  {self.name}: {index} requests, {bad} INTERNAL or UNKNOWN", flush=True)
                rng = random.Random(f"{self.base}/{index}")
                rpc = self.rpcs[rng.choices(self._paths, self._weights)[0]]
                sent = Sent(rpc.path, self.request(rng, rpc), **odd_way(rng))
                await self._send(rpc, sent, index, channel)

        async with asyncio.TaskGroup() as group:
            for i in range(workers):
                group.create_task(work(self.channels[i % len(self.channels)]))

    def request(self, rng: random.Random, rpc: Rpc) -> bytes:
        """Bytes for a request."""
        if rng.random() < 0.001:
            return self._whole(rng, rpc) + wire.filler(_OVERSIZED)
        whole = self._whole(rng, rpc)
        if rng.random() < 0.2:
            other = self._whole(rng, self.rpcs[rng.choice(self._paths)])
            return wire.broken(rng, whole, other, rpc.request)
        return whole

    def _whole(self, rng: random.Random, rpc: Rpc) -> bytes:
        message = rpc.new_request()
        wild = rng.choice((0.0, 0.1, 0.1, 0.5, 0.9))
        valid = self._valid[rpc.path]
        if valid and rng.random() < 0.65:
            message.ParseFromString(rng.choice(valid))
            if rng.random() < 0.9:
                self._builder.mutate(rng, message, wild)
        else:
            self._builder.message(rng, message, wild)
        return message.SerializeToString()

    async def _send(
        self, rpc: Rpc, sent: Sent, index: int, channel: grpc.aio.Channel | None = None
    ) -> Answer:
        answer = await send(channel or self.channels[0], rpc, sent)
        self.counts[rpc.name, answer.code.name] += 1
        wrong = problem(rpc, sent, answer, self.pool)
        if wrong and sum(f.sent.path == rpc.path for f in self.found) < _KEPT:
            self.found.append(Found(sent, wrong, index))
        if answer.code is grpc.StatusCode.OK:
            self._remember(rpc, sent.data)
        if answer.seconds > self.slowest.get(rpc.name, (0.0, sent))[0]:
            self.slowest[rpc.name] = (answer.seconds, sent)
        return answer

    def _remember(self, rpc: Rpc, data: bytes) -> None:
        if len(data) > 20_000:
            return
        kept = self._valid[rpc.path]
        if len(kept) < _LIVES:
            kept.append(data)
        else:
            # The first ones, the seeds, stay.
            kept[_LIVES // 2 + hash(data) % (_LIVES // 2)] = data


def _note(known: Known, rpc: Rpc, answer: Answer) -> None:
    """What later seeds refer to."""
    for part in answer.parts:
        told: Message = rpc.parse_response(part)
        for trajectory in getattr(told, "trajectories", ()):
            if hasattr(trajectory, "id"):
                known.trajectory2, known.trajectory = known.trajectory, trajectory.id
        if rpc.path.endswith("/SampleTrajectories"):
            sampled = told.trajectories  # type: ignore[attr-defined]
            known.generations = known.generations or []
            known.generations += [
                {"question": one.question_id, "tokens": [t.id for t in one.tokens], "ordinal": i}
                for i, one in enumerate(sampled, len(known.generations))
            ]
        if hasattr(told, "growth"):
            known.growth = told.growth.id
        if getattr(getattr(told, "records", None), "rollouts", None):
            known.records = json_format.MessageToDict(told.records)


def as_text(rpc: Rpc, data: bytes) -> str:
    """A request as it reads."""
    try:
        message = rpc.new_request()
        message.ParseFromString(data)
        return str(message)[:2000] or "(empty)"
    except DecodeError:
        return f"no message: {data[:200]!r}"
